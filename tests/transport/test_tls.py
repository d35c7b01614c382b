"""TLS between our own two ends, on 127.0.0.2: loopback for the kernel, the outside for our rule."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from inferpool.identity.certificate import TlsIdentity, tls_identity
from inferpool.protocol.errors import Refused
from inferpool.transport.base import ConnectFailed
from inferpool.transport.http import LEARN, HttpTransport, open_transport
from inferpool.transport.tls import NO_TLS, client_context, server_context

OUTSIDE = "127.0.0.2"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def _has_outside() -> bool:
    try:
        with socket.socket() as made:
            made.bind((OUTSIDE, 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not _has_outside(), reason=f"this system has no {OUTSIDE} (macOS: ifconfig lo0 alias)"
)


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop


@pytest.fixture
def identity(tmp_path: Path) -> TlsIdentity:
    return tls_identity(tmp_path / "tls")


class Server:
    """Counts what reaches it above TLS."""

    def __init__(self) -> None:
        self.url, self.port = "", 0
        self.taken = 0
        self.received = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(OK)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def serving(context: ssl.SSLContext | None) -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, OUTSIDE, 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    server.url = f"https://{OUTSIDE}:{server.port}"
    try:
        yield server
    finally:
        listener.close()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def client(url: str, pin: bytes | None) -> AsyncIterator[HttpTransport]:
    transport = open_transport(url, pin)
    try:
        yield transport
    finally:
        await transport.close()


async def test_the_pinned_key_is_spoken_to(identity: TlsIdentity) -> None:
    context = server_context(identity.certificate, identity.key)
    async with serving(context) as server, client(server.url, identity.spki) as transport:
        for _ in range(2):
            answer = await transport.request("POST", "/", [], b"body", timeout_s=5)
            assert await answer.read(10) == b"ok"
            assert answer.peer_spki == identity.spki
        assert server.received.count(b"body") == 2
        assert server.taken == 1


async def test_nothing_is_sent_to_another_key(identity: TlsIdentity, tmp_path: Path) -> None:
    impostor = tls_identity(tmp_path / "impostor")
    context = server_context(impostor.certificate, impostor.key)
    async with serving(context) as server, client(server.url, identity.spki) as transport:
        with pytest.raises(ConnectFailed, match="another key") as caught:
            await transport.request("POST", "/", [], b"a secret prompt", timeout_s=5)
        assert not caught.value.sent  # so that a paid request is not counted as taken
        await asyncio.sleep(0.05)
        assert server.received == b""


async def test_a_server_of_tls_1_2_is_refused(identity: TlsIdentity) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(context) as server:
        for pin in (identity.spki, LEARN):
            async with client(server.url, pin) as transport:
                with pytest.raises(ConnectFailed):
                    await transport.request("POST", "/", [], b"secret", timeout_s=5)
        assert server.received == b""


async def test_a_client_of_tls_1_2_is_refused(identity: TlsIdentity) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(server_context(identity.certificate, identity.key)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(OUTSIDE, server.port, ssl=old)
        assert server.received == b""


async def test_plain_http_is_not_answered_on_a_tls_port(identity: TlsIdentity) -> None:
    async with serving(server_context(identity.certificate, identity.key)) as server:
        reader, writer = await asyncio.open_connection(OUTSIDE, server.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"HTTP/1.1")
        writer.close()
        assert server.received == b""


async def test_the_shown_key_is_told_to_who_asks_for_it(identity: TlsIdentity) -> None:
    context = server_context(identity.certificate, identity.key)
    async with serving(context) as server, client(server.url, LEARN) as transport:
        answer = await transport.request("GET", "/", [], timeout_s=5)
        await answer.read(10)
        assert answer.peer_spki == identity.spki


async def test_without_a_pin_a_self_signed_certificate_is_refused(identity: TlsIdentity) -> None:
    context = server_context(identity.certificate, identity.key)
    async with serving(context) as server, client(server.url, None) as transport:
        with pytest.raises(ConnectFailed):
            await transport.request("GET", "/", [], timeout_s=5)
        assert server.received == b""


@pytest.mark.parametrize("pin", [None, LEARN])
def test_plain_http_leaves_for_the_two_literal_hosts_only(pin: bytes | None) -> None:
    for host in (OUTSIDE, "localhost", "10.0.0.1", "node.example", "127.0.0.1.example", "[::2]"):
        with pytest.raises(Refused, match="plain http"):
            open_transport(f"http://{host}:8421", pin)
    for host in ("127.0.0.1", "[::1]"):
        open_transport(f"http://{host}:8421", pin)


def test_the_client_s_context_trusts_nobody_by_name() -> None:
    context = client_context(pinned=True)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.cert_store_stats()["x509_ca"] == 0
    assert client_context(pinned=True) is context
    assert len(NO_TLS) == 32
