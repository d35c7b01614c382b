"""A relay between real sockets: who may wait, what passes, what a stranger can break."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inferpool.identity.certificate import TlsIdentity, tls_identity
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import RELAY_NODES_PER_ADDRESS_MAX
from inferpool.protocol.reach import VERSION, hello_digest, parse_relay_url, relay_url
from inferpool.relay.relay import Relay
from inferpool.transport.asgi import stop_task
from inferpool.transport.base import ConnectFailed, ConnectionCut
from inferpool.transport.http import open_transport
from inferpool.transport.relayed import Reach, ReachError, RelayAddress, open_stream
from inferpool.transport.tls import server_context

SECRET = b"the patient's name is written here"
NODE = Key(bytes(31) + b"\1")


class Answering(asyncio.Protocol):
    """A server of one answer; a path that begins with /slow never ends."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._on_lost, self._data = on_lost, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, body = self._data.partition(b"\r\n\r\n")
        if b"/slow" in head:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun")
        elif body == SECRET or b"content-length" not in head:
            self._data = b""
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
            self._transport.write(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


@dataclass(slots=True)
class Wiretap(Relay):
    """A relay whose operator looks at everything that passes."""

    seen: bytearray = field(default_factory=bytearray)

    async def _pump(self, reader: Any, writer: Any, stream: Any) -> None:
        class Tee:
            async def read(_, size: int) -> bytes:  # noqa: N805
                data: bytes = await reader.read(size)
                self.seen += data
                return data

        await super(Wiretap, self)._pump(Tee(), writer, stream)  # type: ignore[arg-type]


@dataclass
class Rig:
    relay: Wiretap
    port: int
    node_tls: TlsIdentity
    directory: Path

    @property
    def url(self) -> str:
        return relay_url("127.0.0.1", self.port, NODE.address)

    def reach(self, key: Key = NODE, pin: bytes = b"") -> Reach:
        context = server_context(self.node_tls.certificate, self.node_tls.key)
        return Reach(RelayAddress("127.0.0.1", self.port, pin), key.address, key.sign, context)


@asynccontextmanager
async def relaying(tmp_path: Path, port: int = 0, **options: Any) -> AsyncIterator[Rig]:
    own = tls_identity(tmp_path / "relay")
    relay = Wiretap(server_context(own.certificate, own.key), own.spki, **options)
    listening = socket.create_server(("127.0.0.1", port))
    task = asyncio.create_task(relay.serve(listening))
    try:
        yield Rig(relay, listening.getsockname()[1], tls_identity(tmp_path / "node"), tmp_path)
    finally:
        await stop_task(task)


@asynccontextmanager
async def waiting(reach: Reach) -> AsyncIterator[Reach]:
    task = asyncio.create_task(reach.run(Answering))
    try:
        async with asyncio.timeout(20):
            await reach.connected.wait()
        yield reach
    finally:
        await stop_task(task)


async def ask(url: str, pin: bytes, body: bytes = SECRET, path: str = "/") -> bytes:
    transport = open_transport(url, pin)
    try:
        answer = await transport.request("POST", path, [], body, timeout_s=20)
        assert answer.peer_spki == pin
        return await answer.read(10_000)
    finally:
        await transport.close()


async def test_an_answer_that_the_relay_cannot_read(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig, waiting(rig.reach()):
        assert await ask(rig.url, rig.node_tls.spki) == SECRET
        assert rig.relay.bytes_copied > 2 * len(SECRET)
        assert len(rig.relay.seen) >= rig.relay.bytes_copied
        assert SECRET not in rig.relay.seen
        assert b"HTTP/1.1" not in rig.relay.seen


async def test_many_streams_at_once_and_one_connection_for_many_requests(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig, waiting(rig.reach()):
        transport = open_transport(rig.url, rig.node_tls.spki)

        async def one() -> bytes:
            answer = await transport.request("POST", "/", [], SECRET, timeout_s=20)
            return await answer.read(1000)

        assert await asyncio.gather(*(one() for _ in range(40))) == [SECRET] * 40
        most = rig.relay.facts()["streams"]
        for _ in range(5):
            assert await one() == SECRET
        assert rig.relay.facts()["streams"] == most  # idle connections are used again
        await transport.close()


async def test_nothing_is_sent_to_another_key(tmp_path: Path) -> None:
    """A relay that leads to its own machine instead: the pin of the offer decides."""
    async with relaying(tmp_path) as rig, waiting(rig.reach()):
        with pytest.raises(ConnectFailed, match="another key") as caught:
            await ask(rig.url, bytes(32 * [7]))
        assert not caught.value.sent
    with pytest.raises(Refused):
        open_transport(rig.url)  # never without a pin


async def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig:
        with pytest.raises(ConnectFailed, match="not here") as caught:
            await ask(rig.url, rig.node_tls.spki)
        assert not caught.value.sent


async def test_a_lost_relay_cuts_and_is_found_again(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig:
        reach, port = rig.reach(), rig.port
        task = asyncio.create_task(reach.run(Answering))
        await reach.connected.wait()
        transport = open_transport(rig.url, rig.node_tls.spki)
        answer = await transport.request("POST", "/slow", [], b"x", timeout_s=20)
        chunks = aiter(answer.chunks())
        assert await anext(chunks) == b"begun"
    with pytest.raises(ConnectionCut):
        await anext(chunks)
    async with relaying(tmp_path, port) as rig, asyncio.timeout(25):
        while not rig.relay.facts()["nodes"]:  # noqa: ASYNC110 - another task's step
            await asyncio.sleep(0.02)
        assert await ask(rig.url, rig.node_tls.spki) == SECRET
        await transport.close()
        await stop_task(task)


async def test_only_the_key_s_holder_waits_under_it(tmp_path: Path) -> None:
    liar = Key(bytes(31) + b"\2")
    async with relaying(tmp_path) as rig:
        false = rig.reach()
        false._sign = liar.sign  # claims NODE's address
        with pytest.raises((OSError, EOFError)):
            await false._enter()
        assert rig.relay.facts()["nodes"] == 0
        async with waiting(rig.reach()):
            with pytest.raises((OSError, EOFError)):
                await false._enter()
            assert await ask(rig.url, rig.node_tls.spki) == SECRET


def test_a_proof_names_the_relay_that_asked() -> None:
    nonce = secrets.token_bytes(32)
    assert hello_digest(NODE.address, nonce, bytes(32)) != hello_digest(
        NODE.address, nonce, b"\1" * 32
    )


async def test_a_pinned_relay_and_an_impostor(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig:
        async with waiting(rig.reach(pin=rig.relay.spki)):
            pass
        with pytest.raises(ReachError, match="another TLS key"):
            await rig.reach(pin=b"\7" * 32)._enter()


async def test_the_same_key_anew_takes_its_place(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig, waiting(rig.reach()):
        _, first = await rig.reach()._enter()
        assert rig.relay.facts()["nodes"] == 1
        first.transport.abort()


async def test_whom_the_operator_lets_in(tmp_path: Path) -> None:
    other = Key(bytes(31) + b"\3")
    async with relaying(tmp_path, allow={NODE.address}) as rig, waiting(rig.reach()):
        with pytest.raises(ReachError, match="other nodes"):
            await rig.reach(other)._enter()


async def test_nodes_of_one_address_are_bounded(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig:
        writers = []
        for number in range(RELAY_NODES_PER_ADDRESS_MAX):
            _, writer = await rig.reach(Key(bytes(30) + bytes([1, number])))._enter()
            writers.append(writer)
        with pytest.raises(ReachError, match="full"):
            await rig.reach()._enter()
        writers[0].transport.abort()
        async with asyncio.timeout(20):
            while rig.relay.facts()["nodes"] == len(writers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with waiting(rig.reach()):
            assert await ask(rig.url, rig.node_tls.spki) == SECRET
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\n",
        f"{VERSION} OPEN\n".encode(),
        f"{VERSION} OPEN 0x00\n".encode(),
        f"{VERSION} OPEN {'x' * 42}\n".encode(),
        f"{VERSION} JOIN 0x{'0' * 32}\n".encode(),
        f"{VERSION} JOIN \xff\n".encode("latin-1"),
        f"{VERSION} CLOSE\n".encode(),
        f"{VERSION} NODE\nmore".encode(),
        b"x" * 300,
        b"INFERPOOL-RELAY/2 NODE\n",
    ],
)
async def test_what_is_not_the_protocol_is_closed(tmp_path: Path, line: bytes) -> None:
    async with relaying(tmp_path) as rig, waiting(rig.reach()):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(line)
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                assert not (await reader.read(100)).startswith(b"OK")
        writer.transport.abort()
        assert await ask(rig.url, rig.node_tls.spki) == SECRET


async def test_a_token_serves_once(tmp_path: Path) -> None:
    """Who guesses or overhears a token gets nothing once it was used."""
    async with relaying(tmp_path) as rig:
        reader, writer = await rig.reach()._enter()
        caller = asyncio.create_task(open_stream("127.0.0.1", rig.port, NODE.address))
        token = (await reader.readuntil(b"\n")).split()[1]
        joins = []
        for _ in range(2):
            _, join = await asyncio.open_connection("127.0.0.1", rig.port)
            join.write(f"{VERSION} JOIN ".encode() + token + b"\n")
            joins.append(join)
            await caller
        assert rig.relay.facts()["streams"] == 1
        for item in (*joins, writer):
            item.transport.abort()
        caller.result().close()


@pytest.mark.parametrize(
    "url",
    [
        "relay://h:1/",
        "relay://h/0x" + "00" * 20,
        "relay://h:1/0x" + "00" * 19,
        "relay://u@h:1/0x" + "00" * 20,
        "relay://H:1/0x" + "00" * 20,
        "relay://h:1/0x" + "00" * 20 + "/x",
        "relay://h:1/0x" + "00" * 20 + "?q",
        "relay://h:99999/0x" + "00" * 20,
        "https://h:1/0x" + "00" * 20,
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        parse_relay_url(url)


def test_addresses() -> None:
    for host in ("relay.example", "203.0.113.7", "2001:db8::7"):
        url = relay_url(host, 8424, NODE.address)
        assert parse_relay_url(url) == (host, 8424, NODE.address)
    pin = "0x" + "ab" * 32
    assert RelayAddress.parse(f"[::1]:8424 {pin}") == RelayAddress("::1", 8424, b"\xab" * 32)
    assert RelayAddress.parse("Relay.Example:1") == RelayAddress("relay.example", 1)
    for wrong in ("", "host", "host:", ":1", "host:0", "host:70000", "host:1 0x00", "host:1 pin"):
        with pytest.raises(Refused) as caught:
            RelayAddress.parse(wrong)
        assert caught.value.param == "node.relays"
    assert to_hex(NODE.address) in relay_url("h", 1, NODE.address)
