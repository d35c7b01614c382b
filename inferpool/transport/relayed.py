"""Connections through a relay: `open_stream` leads to a node, `Reach` is the node's own side.

Every stream is a TCP connection of its own, so that a lost packet holds up one answer and no
other. See `protocol.reach` for the words.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import (
    RELAY_LINE_MAX,
    RELAY_OPEN_TIMEOUT_S,
    RELAY_PING_EVERY_S,
    RELAY_RETRY_MAX_S,
    RELAY_SILENCE_S,
    RELAY_STREAMS_PER_NODE_MAX,
)
from inferpool.protocol.reach import (
    NONCE_BYTES,
    TOKEN_BYTES,
    VERSION,
    hello_digest,
    relay_url,
)
from inferpool.transport.tls import PIN_BYTES, client_context, spki_sha256

_LOG = logging.getLogger("inferpool.reach")
_RETRY_S: Final = 0.5
OK: Final = b"OK"


class ReachError(OSError):
    """The relay does not answer, or says no."""


async def read_line(sock: socket.socket) -> bytes:
    """One line without its end, and nothing after it: the sender waits for an answer, or else its
    bytes would be lost. Raises ReachError."""
    loop, data = asyncio.get_running_loop(), b""
    while not data.endswith(b"\n"):
        more = await loop.sock_recv(sock, RELAY_LINE_MAX - len(data))
        data += more
        if not more or b"\n" in data[:-1] or len(data) >= RELAY_LINE_MAX:
            raise ReachError("not a line of this protocol")
    return data[:-1]


async def connect(host: str, port: int) -> socket.socket:
    """A TCP connection that asyncio may take over. Raises OSError."""
    loop, last = asyncio.get_running_loop(), OSError("no address")
    for family, kind, number, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, number)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last


async def open_stream(host: str, port: int, node: bytes) -> socket.socket:
    """A connection that ends at the node, through the relay at that address; TLS comes next.

    Raises OSError; the caller bounds the time.
    """
    sock = await connect(host, port)
    try:
        line = f"{VERSION} OPEN {to_hex(node)}\n".encode()
        await asyncio.get_running_loop().sock_sendall(sock, line)
        answer = await read_line(sock)
        if answer != OK:
            told = answer.decode("ascii", "replace").removeprefix("NO ")
            raise ReachError(f"the relay says: {told}")
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """`HOST:PORT`, and the SHA-256 of the relay's TLS key where the owner pins it."""

    host: str
    port: int
    pin: bytes = b""

    @classmethod
    def parse(cls, text: str) -> RelayAddress:
        """From `HOST:PORT` or `HOST:PORT PIN`. Raises Refused(bad_config)."""
        address, _, pin = text.strip().partition(" ")
        host, _, port = address.rpartition(":")
        try:
            found = cls(host.strip("[]").lower(), int(port), from_hex(pin, 32) if pin else b"")
        except ValueError:
            found = cls("", 0)
        if not found.host or not 0 < found.port < 65536:
            raise Refused(
                f'{text!r} is not "HOST:PORT" or "HOST:PORT 0xPIN" of a relay',
                code="bad_config",
                param="node.relays",
            )
        return found


# Makes the server's protocol for one stream; calls its argument when the stream has ended.
Serve = Callable[[Callable[[], None]], asyncio.Protocol]


class Reach:
    """A node's standing connection to one relay, made again whenever it ends.

    `sign` signs a digest with the node key; `serve` makes the server's protocol for one stream,
    which runs under `tls`, the node's own context. `chance`: from 0 to below 1, for the pauses.
    """

    def __init__(
        self,
        relay: RelayAddress,
        node: bytes,
        sign: Callable[[bytes], bytes],
        tls: ssl.SSLContext,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.relay, self.node = relay, node
        self.connected = asyncio.Event()
        self.error = "not connected yet"
        self._sign, self._tls, self._chance = sign, tls, chance
        self._streams: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The endpoint for the offer."""
        return relay_url(self.relay.host, self.relay.port, self.node)

    async def run(self, serve: Serve) -> None:
        """Stay connected until cancelled, with growing pauses where the relay is away.

        Each pause is drawn from its second half: nodes that lost a relay together do not come
        back to it together.
        """
        pause_s = _RETRY_S
        try:
            while True:
                try:
                    await self._stay(serve)
                except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
                    self.error = str(error) or type(error).__name__
                    _LOG.warning("relay %s:%d: %s", self.relay.host, self.relay.port, self.error)
                pause_s = _RETRY_S if self.connected.is_set() else pause_s
                self.connected.clear()
                await asyncio.sleep(pause_s * (1 + self._chance()) / 2)
                pause_s = min(RELAY_RETRY_MAX_S, 2 * pause_s)
        finally:
            for stream in self._streams:
                stream.cancel()

    async def _stay(self, serve: Serve) -> None:
        reader, writer = await self._enter()
        beat = asyncio.create_task(self._beat(writer))
        try:
            self.connected.set()
            self.error = ""
            while True:
                async with asyncio.timeout(RELAY_SILENCE_S):
                    word, _, token = (await reader.readuntil(b"\n")).decode("ascii").partition(" ")
                if word == "OPEN" and len(self._streams) < RELAY_STREAMS_PER_NODE_MAX:
                    from_hex(token.strip(), TOKEN_BYTES)
                    stream = asyncio.create_task(self._join(token.strip(), serve))
                    self._streams.add(stream)
                    stream.add_done_callback(self._streams.discard)
        finally:
            beat.cancel()
            writer.transport.abort()

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(RELAY_PING_EVERY_S)
            writer.write(b"PING\n")

    async def _enter(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The control connection, by TLS, once the relay knows who we are."""
        async with asyncio.timeout(2 * RELAY_OPEN_TIMEOUT_S):
            sock = await connect(self.relay.host, self.relay.port)
            try:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, f"{VERSION} NODE\n".encode())
                answer = await read_line(sock)
                if answer != OK:
                    raise ReachError(f"the relay says: {answer.decode('ascii', 'replace')}")
                reader, writer = await asyncio.open_connection(
                    sock=sock, ssl=client_context(True), server_hostname="", limit=RELAY_LINE_MAX
                )
            except BaseException:
                sock.close()
                raise
            try:
                await self._prove(reader, writer)
            except BaseException:
                writer.transport.abort()
                raise
            return reader, writer

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        spki = spki_sha256(certificate)
        assert len(spki) == PIN_BYTES
        if self.relay.pin and spki != self.relay.pin:
            raise ReachError("the relay shows another TLS key than the pinned one")
        nonce = from_hex((await reader.readuntil(b"\n")).decode("ascii").strip(), NONCE_BYTES)
        signature = self._sign(hello_digest(self.node, nonce, spki))
        writer.write(f"{to_hex(self.node)} {to_hex(signature)}\n".encode())
        answer = (await reader.readuntil(b"\n")).strip()
        if answer != OK:
            raise ReachError(f"the relay says: {answer.decode('ascii', 'replace')}")

    async def _join(self, token: str, serve: Serve) -> None:
        """Dial once more, for one stream, and serve it as if it had come to our own door."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RELAY_OPEN_TIMEOUT_S):
                sock = await connect(self.relay.host, self.relay.port)
                try:
                    await loop.sock_sendall(sock, f"{VERSION} JOIN {token}\n".encode())
                    ended = asyncio.Event()
                    await loop.connect_accepted_socket(
                        lambda: serve(ended.set), sock, ssl=self._tls
                    )
                except BaseException:
                    sock.close()
                    raise
            await ended.wait()  # counted as long as it is open
        except (OSError, TimeoutError) as error:
            _LOG.info("a stream through the relay failed: %r", error)
