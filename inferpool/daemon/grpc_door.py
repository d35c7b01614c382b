"""The gRPC port of a role: plain on loopback; elsewhere our own TLS 1.3 in front of it.

gRPC's Python server negotiates TLS 1.2 too and has no switch for it. So it listens on loopback, on
a port of the kernel's choice, and this door ends TLS under the same key as the role's HTTPS. Who
comes through a relay and chose HTTP/2 in the handshake is led to the same port.
Bytes are passed on as they are, with backpressure; connections are counted.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from inferpool.identity.certificate import TlsIdentity
from inferpool.protocol.errors import Refused
from inferpool.transport.asgi import stop_task
from inferpool.transport.grpc_front import GrpcFront
from inferpool.transport.memory import App
from inferpool.transport.piping import pass_on
from inferpool.transport.tls import HTTP2, server_context

_LOG = logging.getLogger("inferpool.grpc")
CONNECTIONS_MAX: Final = 256  # each carries many calls; the front bounds those
_HANDSHAKE_S: Final = 10.0


@dataclass(slots=True)
class GrpcDoor:
    """An open gRPC port, for others and, without TLS, on loopback."""

    port: int
    host: str
    inner: int
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on until either side ends; at most so many at once."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._running) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._running.add(task)
        try:
            await pass_on(reader, writer, *await asyncio.open_connection(self.host, self.inner))
        except OSError as error:
            _LOG.info("a gRPC connection ended: %s", error)
        finally:
            self._running.discard(task)
            writer.transport.abort()

    def relayed(self, on_lost: Callable[[], None]) -> asyncio.Protocol:
        """The protocol of a connection whose TLS has ended already."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.serve(reader, writer)
            finally:
                on_lost()

        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)

    async def close(self) -> None:
        """Cut what runs."""
        for task in list(self._running):
            await stop_task(task)


@asynccontextmanager
async def grpc_door(
    app: App, host: str, port: int, tls: TlsIdentity | None
) -> AsyncIterator[GrpcDoor | None]:
    """Serve gRPC while inside; None where `port` is 0 (off).

    Raises Refused(bad_config): the extra is missing, the port is taken.
    """
    if port == 0:
        yield None
        return
    front = GrpcFront(app)
    door: GrpcDoor | None = None
    try:
        if tls is None:
            inner = await front.start(host, port)
            door = GrpcDoor(inner, host, inner)
            yield door
        else:
            door = GrpcDoor(port, "127.0.0.1", await front.start("127.0.0.1", 0))
            async with _listening(door, host, _context(tls)):
                yield door
    finally:
        if door is not None:
            await door.close()
        await front.close()


def _context(tls: TlsIdentity) -> ssl.SSLContext:
    context = server_context(tls.certificate, tls.key)
    context.set_alpn_protocols([HTTP2])
    return context


@asynccontextmanager
async def _listening(door: GrpcDoor, host: str, context: ssl.SSLContext) -> AsyncIterator[None]:
    try:
        server = await asyncio.start_server(
            door.serve, host, door.port, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S
        )
    except OSError as error:
        message = f"the gRPC port {door.port} on {host} cannot be used: {error.strerror}"
        raise Refused(message, code="bad_config", param="grpc_port") from None
    try:
        yield
    finally:
        server.close()
