"""The relay's role: nodes wait here, callers name one, and bytes are copied that it cannot read.

Anyone can run one and nobody has to trust it: both ends speak TLS 1.3 through it under the key that
the node's offer pins. What it can do is to refuse, to delay and to count. What it must bear are
strangers on both sides, so that everything below is bounded by `protocol.limits`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from inferpool.identity.signing import verify
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import (
    RELAY_GREETINGS_MAX,
    RELAY_IDLE_S,
    RELAY_LINE_MAX,
    RELAY_NODES_MAX,
    RELAY_NODES_PER_ADDRESS_MAX,
    RELAY_OPEN_TIMEOUT_S,
    RELAY_SILENCE_S,
    RELAY_STREAMS_MAX,
    RELAY_STREAMS_PER_NODE_MAX,
)
from inferpool.protocol.reach import NONCE_BYTES, TOKEN_BYTES, VERSION, hello_digest
from inferpool.transport.asgi import stop_task
from inferpool.transport.relayed import ReachError, read_line

_LOG = logging.getLogger("inferpool.relay")
_BUFFER: Final = 32 * 1024  # a direction of a stream holds twice that at most
_SWEEP_S: Final = 5.0
_FIRST_WORD: Final = VERSION.encode()


@dataclass(slots=True)
class _Node:
    """A node that waits: its control connection, and how many streams it has."""

    address: bytes
    host: str
    writer: asyncio.StreamWriter
    streams: int = 0


@dataclass(slots=True, eq=False)
class _Stream:
    """Two connections whose bytes are copied."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    last_s: float


@dataclass(slots=True)
class Relay:
    """`tls` and `spki`: the relay's own context and the SHA-256 of its key, for nodes that wait.
    `allow`: node keys that may; empty: all."""

    tls: ssl.SSLContext
    spki: bytes
    allow: Collection[bytes] = ()
    bytes_copied: int = 0
    _nodes: dict[bytes, _Node] = field(default_factory=dict)
    _hosts: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, asyncio.Future[socket.socket]] = field(default_factory=dict)
    _streams: set[_Stream] = field(default_factory=set)
    _open: int = 0  # streams and those that wait for their node
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _greetings: int = 0

    def facts(self) -> dict[str, object]:
        """Counts, for the log and for tests."""
        return {"nodes": len(self._nodes), "streams": self._open, "bytes": self.bytes_copied}

    async def serve(self, listening: socket.socket) -> None:
        """Take connections until cancelled; then cut them all."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        self._start(self._sweep())
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(listening)
                except OSError as error:  # no descriptors left: those there are go on
                    _LOG.warning("a connection could not be taken: %s", error)
                    await asyncio.sleep(0.1)
                    continue
                sock.setblocking(False)
                if self._greetings >= RELAY_GREETINGS_MAX:
                    sock.close()
                    continue
                self._greetings += 1
                self._start(self._greet(sock, str(address[0])))
        finally:
            for task in tuple(self._tasks):
                await stop_task(task)
            listening.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _greet(self, sock: socket.socket, host: str) -> None:
        """The first line decides; what takes longer than that runs in its own bounds."""
        greeted, ours = False, True
        try:
            async with asyncio.timeout(RELAY_OPEN_TIMEOUT_S):
                words = (await read_line(sock)).split(b" ")
            greeted = True
            self._greetings -= 1
            if words[0] != _FIRST_WORD or len(words) not in (2, 3):
                raise ReachError("not this protocol")
            argument = words[2].decode("ascii") if len(words) == 3 else ""
            if words[1] == b"NODE":
                await self._keep(sock, host)
            elif words[1] == b"OPEN":
                await self._bring(sock, from_hex(argument, 20))
            elif words[1] == b"JOIN":
                self._hand_over(sock, argument)
                ours = False
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError, Refused) as error:
            _LOG.debug("%s: %r", host, error)
        finally:
            if not greeted:
                self._greetings -= 1
            if ours:
                sock.close()

    # -- nodes -----------------------------------------------------------------------------------

    async def _keep(self, sock: socket.socket, host: str) -> None:
        """A node's control connection, as long as it beats."""
        loop = asyncio.get_running_loop()
        full = len(self._nodes) >= RELAY_NODES_MAX
        if full or self._hosts[host] >= RELAY_NODES_PER_ADDRESS_MAX:
            await loop.sock_sendall(sock, b"NO this relay is full\n")
            return
        self._hosts[host] += 1
        node = None
        try:
            await loop.sock_sendall(sock, b"OK\n")
            reader, writer = await _streams(sock, self.tls)
            try:
                async with asyncio.timeout(RELAY_OPEN_TIMEOUT_S):
                    address = await self._know(reader, writer)
                old = self._nodes.get(address)
                if old is not None:  # the same key from anew: its old connection is dead
                    old.writer.transport.abort()
                node = self._nodes[address] = _Node(address, host, writer)
                _LOG.info("node %s waits", to_hex(address))
                while True:
                    async with asyncio.timeout(RELAY_SILENCE_S):
                        await reader.readuntil(b"\n")
                    writer.write(b"PONG\n")
                    await writer.drain()
            finally:
                writer.transport.abort()
        finally:
            self._hosts[host] -= 1
            self._hosts += Counter()  # forget zeros
            if node is not None and self._nodes.get(node.address) is node:
                del self._nodes[node.address]

    async def _know(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Who it is, by its signature. Raises Refused, ValueError."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        writer.write(f"{to_hex(nonce)}\n".encode())
        said, signature = (await reader.readuntil(b"\n")).decode("ascii").split()
        address = from_hex(said, 20)
        verify(hello_digest(address, nonce, self.spki), from_hex(signature, 65), address)
        if self.allow and address not in self.allow:
            writer.write(b"NO this relay serves other nodes\n")
            await writer.drain()
            writer.close()
            raise Refused("not a node that is served here")
        writer.write(b"OK\n")
        return address

    # -- streams ---------------------------------------------------------------------------------

    async def _bring(self, sock: socket.socket, address: bytes) -> None:
        """Call the node and copy, until one side ends."""
        loop = asyncio.get_running_loop()
        node = self._nodes.get(address)
        if node is None:
            await loop.sock_sendall(sock, b"NO that node is not here\n")
            return
        if self._open >= RELAY_STREAMS_MAX or node.streams >= RELAY_STREAMS_PER_NODE_MAX:
            await loop.sock_sendall(sock, b"NO too many streams\n")
            return
        self._open, node.streams = self._open + 1, node.streams + 1
        try:
            other = await self._called(node)
            if other is None:
                await loop.sock_sendall(sock, b"NO that node does not answer\n")
                return
            try:
                await loop.sock_sendall(sock, b"OK\n")
                await self._copy(sock, other)
            finally:
                other.close()
        finally:
            self._open, node.streams = self._open - 1, node.streams - 1

    async def _called(self, node: _Node) -> socket.socket | None:
        token = to_hex(secrets.token_bytes(TOKEN_BYTES))
        future: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        given: socket.socket | None = None
        self._waiting[token] = future
        try:
            node.writer.write(f"OPEN {token}\n".encode())
            async with asyncio.timeout(RELAY_OPEN_TIMEOUT_S):
                given = await future
            return given
        except (OSError, TimeoutError):
            return None
        finally:
            del self._waiting[token]
            if given is None and future.done() and not future.cancelled():
                future.result().close()  # it came at the moment when we left

    def _hand_over(self, sock: socket.socket, token: str) -> None:
        """Give a node's new connection to who waits for it; a token serves once."""
        future = self._waiting.get(token)
        if future is None or future.done():
            raise ReachError("nobody waits for that")
        future.set_result(sock)

    async def _copy(self, one: socket.socket, other: socket.socket) -> None:
        one_reader, one_writer = await _streams(one)
        try:
            other_reader, other_writer = await _streams(other)
        except BaseException:
            one_writer.transport.abort()
            raise
        stream = _Stream((one_writer, other_writer), asyncio.get_running_loop().time())
        self._streams.add(stream)
        pumps = [
            asyncio.create_task(self._pump(one_reader, other_writer, stream)),
            asyncio.create_task(self._pump(other_reader, one_writer, stream)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for writer in stream.ends:  # sends what it still holds; neither end half-closes
                writer.close()
            await asyncio.wait(pumps, timeout=RELAY_OPEN_TIMEOUT_S)
        finally:
            self._streams.discard(stream)
            for pump in pumps:
                await stop_task(pump)
            for writer in stream.ends:
                writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: _Stream
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(_BUFFER):
                writer.write(data)
                await writer.drain()
                stream.last_s = loop.time()
                self.bytes_copied += len(data)
        except OSError:
            pass

    async def _sweep(self) -> None:
        """Cut streams on which nothing moved for a minute."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            oldest_s = loop.time() - RELAY_IDLE_S
            for stream in [item for item in self._streams if item.last_s < oldest_s]:
                for writer in stream.ends:
                    writer.transport.abort()


async def _streams(
    sock: socket.socket, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reader and writer over an accepted socket, with little buffered."""
    loop = asyncio.get_running_loop()
    limit = RELAY_LINE_MAX if tls else _BUFFER
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    timeout_s = RELAY_OPEN_TIMEOUT_S if tls else None
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=tls, ssl_handshake_timeout=timeout_s
    )
    transport.set_write_buffer_limits(high=_BUFFER)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
