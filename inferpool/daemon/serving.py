"""Serving an ASGI app until told to stop, and ending with whoever started us."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson
import uvicorn

from inferpool.daemon.http import Http
from inferpool.home import Home
from inferpool.identity.certificate import TlsIdentity
from inferpool.protocol.errors import Refused
from inferpool.transport.relayed import Reach
from inferpool.transport.tls import HTTP2, server_context

_LOG = logging.getLogger("inferpool.daemon")
SHUTDOWN_S: Final = 5
GC_YOUNG: Final = 10_000  # objects more than at the last look; Python's 700 are a few small calls


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises Refused that says what to do.

    Whether TLS is spoken on it is decided where the role opens its door: `door.open_door`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        why = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
        raise Refused(
            f"port {port} on {host} cannot be used ({why}); choose another with {flag}",
            code="bad_config",
        ) from None
    found.listen(2048)
    return found


def url_of(listening: socket.socket) -> str:
    """http://host:port of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Uvicorn without its signal handling: `run_role` has one event, whoever sets it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class _Relayed(Http):
    """HTTP on a connection that we dialled: its caller is nobody on this machine."""

    def __init__(self, server: uvicorn.Server, on_lost: Callable[[], None]) -> None:
        super().__init__(config=server.config, server_state=server.server_state, app_state={})
        self._on_lost = on_lost

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = ("relayed", 0)  # the relay's address, which may be loopback, says nothing

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_lost()


# Makes the protocol of one relayed connection; calls its argument when that has ended.
Relayed = Callable[[Callable[[], None]], asyncio.Protocol]


class _Chosen(asyncio.Protocol):
    """A relayed connection before its first byte: the handshake says which server it is for."""

    def __init__(self, http: Relayed, http2: Relayed | None, on_lost: Callable[[], None]) -> None:
        self._http, self._http2, self._on_lost = http, http2, on_lost

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        make = self._http2 if chosen == HTTP2 and self._http2 is not None else self._http
        protocol = make(self._on_lost)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _relayed(server: uvicorn.Server, http2: Relayed | None) -> Relayed:
    def http(on_lost: Callable[[], None]) -> asyncio.Protocol:
        return _Relayed(server, on_lost)

    return lambda on_lost: _Chosen(http, http2, on_lost)


def _stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def until_told(role: str, facts: dict[str, object]) -> None:
    """Say that a role is ready that serves without ASGI; return when it is told to stop."""
    stop = _stop_event()
    watch = asyncio.create_task(_stdin_closed(stop)) if _follows_parent() else None
    sys.stdout.write(_ready(role, facts))
    sys.stdout.flush()
    try:
        await stop.wait()
    finally:
        if watch is not None:
            watch.cancel()


async def run_role(
    home: Home,
    role: str,
    app: Any,
    listening: socket.socket,
    facts: dict[str, object],
    close: Callable[[], Awaitable[None]],
    log_level: str = "warning",
    tls: TlsIdentity | None = None,
    leaving: Callable[[], None] = lambda: None,
    reach: Sequence[Reach] = (),
    relayed_http2: Relayed | None = None,
    beside: Sequence[socket.socket] = (),
) -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input; then close and forget the role.

    `leaving` ends what would else stay open for as long as its reader likes. `reach`: relays
    through which this role is served as well, to who asks for HTTP/2 there by `relayed_http2`.
    `beside`: more sockets of this process alone.
    """
    stop = _stop_event()
    config = uvicorn.Config(
        app,
        http=Http,
        lifespan="off",
        log_level=log_level,
        access_log=False,
        proxy_headers=False,  # nobody may say for another where a request comes from
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=75,
        limit_concurrency=4096,
        ssl_context_factory=_context_factory(tls),
    )
    server = _Server(config)
    dialling = [asyncio.create_task(item.run(_relayed(server, relayed_http2))) for item in reach]
    home.announce(role, {**facts, "pid": os.getpid()})
    serving = asyncio.create_task(server.serve(sockets=[listening, *beside]), name="serve")
    watch = asyncio.create_task(_stdin_closed(stop)) if _follows_parent() else None
    stopped = asyncio.create_task(stop.wait())
    _settle()
    sys.stdout.write(_ready(role, facts))
    sys.stdout.flush()
    try:
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving()
        server.should_exit = True
        await serving
        await close()
        home.gone(role)
        for task in filter(None, (watch, stopped, *dialling)):
            task.cancel()


def _settle() -> None:
    """Let the collector of cycles look no more at what a start made, and less often at the rest:
    a request's objects go as their counts fall."""
    gc.freeze()
    gc.set_threshold(GC_YOUNG, 20, 20)


def _context_factory(tls: TlsIdentity | None) -> Callable[..., ssl.SSLContext] | None:
    if tls is None:
        return None
    return lambda *_: server_context(tls.certificate, tls.key)


def _ready(role: str, facts: dict[str, object]) -> str:
    return orjson.dumps({"role": role, **facts}).decode() + "\n"


def _follows_parent() -> bool:
    return os.environ.get("INFERPOOL_FOLLOW") == "1"


async def _stdin_closed(stop: asyncio.Event) -> None:
    """Set `stop` when the pipe from our supervisor ends, however it died."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while await reader.read(1024):
            pass
        stop.set()
    finally:
        transport.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a role's main on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_awaited(main))
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_awaited(main))


async def _awaited(main: Callable[[], Awaitable[None]]) -> None:
    await main()
