"""The gRPC port of a role: plain on loopback; elsewhere our own TLS 1.3 in front of it.

gRPC's Python server negotiates TLS 1.2 too and has no switch for it. So it listens on loopback, on
a port of the kernel's choice, and this relay ends TLS under the same key as the role's HTTPS.
Bytes are passed on as they are, with backpressure; connections are counted.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from inferpool.identity.certificate import TlsIdentity
from inferpool.protocol.errors import Refused
from inferpool.transport.grpc_front import GrpcFront
from inferpool.transport.memory import App
from inferpool.transport.tls import server_context

_LOG = logging.getLogger("inferpool.grpc")
CONNECTIONS_MAX: Final = 256  # each carries many calls; the front bounds those
_READ_BYTES: Final = 64 * 1024
_HANDSHAKE_S: Final = 10.0


@asynccontextmanager
async def grpc_door(
    app: App, host: str, port: int, tls: TlsIdentity | None
) -> AsyncIterator[int | None]:
    """Serve gRPC while inside; gives the port, None where `port` is 0 (off).

    Raises Refused(bad_config): the extra is missing, the port is taken.
    """
    if port == 0:
        yield None
        return
    front = GrpcFront(app)
    try:
        if tls is None:
            yield await front.start(host, port)
        else:
            inner = await front.start("127.0.0.1", 0)
            async with _relay(host, port, inner, _context(tls)):
                yield port
    finally:
        await front.close()


def _context(tls: TlsIdentity) -> ssl.SSLContext:
    context = server_context(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def _relay(host: str, port: int, inner: int, context: ssl.SSLContext) -> AsyncIterator[None]:
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(running) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        running.add(task)
        try:
            await _pass_on(reader, writer, inner)
        finally:
            running.discard(task)
            writer.transport.abort()

    try:
        server = await asyncio.start_server(
            serve, host, port, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S
        )
    except OSError as error:
        message = f"the gRPC port {port} on {host} cannot be used: {error.strerror}"
        raise Refused(message, code="bad_config", param="grpc_port") from None
    try:
        yield
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inner: int) -> None:
    """Both directions until either side ends; then both end."""
    there, back = await asyncio.open_connection("127.0.0.1", inner)
    ways = [
        asyncio.create_task(_pump(reader, back)),
        asyncio.create_task(_pump(there, writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        back.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # a side that ends hard ends the other
        while data := await source.read(_READ_BYTES):
            sink.write(data)
            await sink.drain()
