"""Our own HTTP/1.1 client: a keep-alive pool for one endpoint, plain on loopback, else TLS.

It exists because failover and payment need what general clients hide: whether a request can have
reached the other side, and whether an answer was whole. It costs a third of aiohttp's time.
Not in it, on purpose: redirects, cookies, proxies, decompression, HTTP/2.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from inferpool.protocol.errors import Refused
from inferpool.protocol.reach import SCHEME, parse_relay_url
from inferpool.transport.answer import Answer
from inferpool.transport.base import AnswerTimeout, ConnectFailed, ConnectionCut, Headers
from inferpool.transport.connection import Connection
from inferpool.transport.reach import public_addresses
from inferpool.transport.relayed import open_stream
from inferpool.transport.tls import PIN_BYTES, client_context, pin_matches, spki_sha256

CONNECT_TIMEOUT_S: Final = 5.0  # a second SYN goes out after 1 s, a third after 3 s
# Below the 5 s after which uvicorn closes an idle connection, so that we close first: the race
# between its close and our next request then all but disappears.
IDLE_S: Final = 4.0
MAX_IDLE: Final = 64  # per endpoint; 32 KiB each
MAX_CONNECTIONS: Final = 1024  # per endpoint, under the usual limit on open files
# Safe methods of RFC 9110 section 9.2.1: sending them twice changes nothing.
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_OURS: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))
# Literally these: 127.0.0.2 is loopback too, but `localhost` may be anything, and a rule with one
# exception is checked in one line on every side (design, "Transport security").
LOOPBACK: Final = frozenset(("127.0.0.1", "::1"))
LEARN: Final = b""  # in the place of a pin: take any key, and tell which it was
_PORTS: Final = {"http": 80, "https": 443}


def open_transport(
    url: str, tls_spki: bytes | None = None, *, public_only: bool = False
) -> HttpTransport:
    """A pipe to `url` (scheme, host, port; a path is put before each request's path).

    `tls_spki`: the 32 bytes of the pinned key; without it https asks the system's authorities.
    `LEARN` takes whatever key is shown and tells it in `Response.peer_spki`: for the one question
    "who are you?", whose answer is signed and names that key, and for nothing else.
    `public_only`: a stranger named the URL, so that no address of our own network is dialled.
    Raises Refused(bad_config): plain HTTP off loopback, a pin without TLS, not an http(s) URL.
    """
    return HttpTransport(url, tls_spki, public_only=public_only)


class HttpTransport:
    """A `Transport` over TCP; belongs to the event loop that first uses it."""

    def __init__(
        self,
        url: str,
        tls_spki: bytes | None = None,
        *,
        public_only: bool = False,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_s: float = IDLE_S,
        max_idle: int = MAX_IDLE,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._node = b""  # behind a relay: its key's address
        if url.startswith(f"{SCHEME}:"):
            self._host, self._port, self._node = parse_relay_url(url)
            self._prefix, secure = "", True
            if tls_spki is None:
                raise Refused("a node behind a relay needs a pinned key", code="bad_config")
        else:
            self._host, self._port, self._prefix, secure = _endpoint(url, tls_spki)
        self._tls = client_context(tls_spki is not None) if secure else None
        self._pin = tls_spki if secure else None
        self._public_only = public_only
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._host_line = f"host: {host}:{self._port}\r\n".encode()
        self._connect_timeout_s, self._idle_s = connect_timeout_s, idle_s
        self._max_idle, self._max_connections = max_idle, max_connections
        self._idle: list[Connection] = []  # the last used at the end: the rest can age out
        self._all: set[Connection] = set()
        self._connecting = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Answer:
        """See `base.Transport`. ValueError: a line end in a header, or one that is set here.

        One retry, for safe methods only. A reused connection may end while a request is on its
        way: the server closed it for idleness, or it took the request and died. From here both
        look the same, and a request that is paid for must never run twice. So a POST is sent
        again only where it was not sent at all: the pool asks the socket just before the write
        and skips connections that the peer has closed. What slips through that gap of one
        round trip is a ConnectionCut, and the caller decides with a new attempt and a new id.
        """
        head = self._request_head(method, path, headers, body)
        connection = self._reusable()
        if connection is not None and method not in _SAFE:
            return await connection.exchange(method, head, body, timeout_s)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        if connection is not None:
            try:
                return await connection.exchange(method, head, body, timeout_s)
            except ConnectionCut:
                if connection.answered or self._closed:
                    raise
        connection = await self._connect(timeout_s)
        left_s = deadline_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            connection.abort()
            raise AnswerTimeout(f"no answer within {timeout_s:g} s")
        return await connection.exchange(method, head, body, left_s)

    async def close(self) -> None:
        """Close every connection, cutting answers under way; the sockets are closed on return."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        connections = tuple(self._all)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.gone.wait()

    # -- the request -----------------------------------------------------------------------------

    def _request_head(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        parts = [f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode("ascii"), self._host_line]
        for name, value in headers:
            if name in _OURS:
                raise ValueError(f"the transport sets {name.decode()} itself")
            parts += (name, b": ", value, b"\r\n")
        lines = len(headers) + 3
        if body or method not in _SAFE:
            parts.append(b"content-length: %d\r\n" % len(body))
            lines += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        # One line end per line, or something in a header or the path tries to be two lines.
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise ValueError("a line end within the request's path or headers")
        if parts[0].count(b" ") != 2:
            raise ValueError("a space within the request's path")
        return head

    # -- the pool --------------------------------------------------------------------------------

    def _reusable(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale():
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_s: float) -> Connection:
        if self._closed:
            raise ConnectFailed("the transport is closed")
        if len(self._all) + self._connecting >= self._max_connections:
            raise ConnectFailed(f"{self._max_connections} connections to one endpoint are open")
        where = f"{self._host}:{self._port}"
        self._connecting += 1
        try:
            async with asyncio.timeout(min(timeout_s, self._connect_timeout_s)):
                transport, connection = await self._dial()
        except Refused as error:
            raise ConnectFailed(error.message) from error
        except TimeoutError as error:
            raise ConnectFailed(f"{where} did not take the connection in time") from error
        except (OSError, ssl.SSLError) as error:
            raise ConnectFailed(f"{where} cannot be reached: {error}") from error
        finally:
            self._connecting -= 1
        self._all.add(connection)
        self._check(connection, transport, where)
        return connection

    async def _dial(self) -> tuple[asyncio.Transport, Connection]:
        """A connection to the host; to one of the addresses that were checked, where they must be.

        Raises OSError, Refused.
        """
        loop = asyncio.get_running_loop()
        hosts, server = [self._host], None
        if self._public_only:
            hosts = await public_addresses(self._host, self._port)
            server = self._host if self._tls is not None else None
        last: OSError | None = None
        for host in hosts:
            where: dict[str, Any] = {"host": host, "port": self._port, "server_hostname": server}
            try:
                if self._node:
                    sock = await open_stream(host, self._port, self._node)
                    where = {"sock": sock, "server_hostname": ""}
                return await loop.create_connection(
                    lambda: Connection(self._free, self._forget), ssl=self._tls, **where
                )
            except OSError as error:
                last = error
        assert last is not None, "a host has an address"
        raise last

    def _check(self, connection: Connection, transport: asyncio.Transport, where: str) -> None:
        """Before anything is sent: the pinned key, and that nobody closed this transport."""
        if self._pin is not None:
            certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if self._pin == LEARN:
                connection.peer_spki = spki_sha256(certificate)
            elif not pin_matches(certificate, self._pin):
                connection.abort()
                raise ConnectFailed(f"{where} shows another key than its offer names")
            else:
                connection.peer_spki = self._pin
        if self._closed or connection.closed:
            connection.abort()
            raise ConnectFailed(f"the connection to {where} was closed at once")

    def _free(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= self._max_idle:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what has been idle for too long; runs at most once per `idle_s`."""
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - self._idle_s
        for connection in [one for one in self._idle if one.idle_since_s <= oldest_s]:
            connection.abort()
        self._sweeper = None
        if self._idle:
            next_s = self._idle[0].idle_since_s + self._idle_s
            self._sweeper = loop.call_at(next_s, self._sweep)


def _endpoint(url: str, tls_spki: bytes | None) -> tuple[str, int, str, bool]:
    """(host, port, path before each path, whether by TLS). Raises Refused(bad_config)."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise Refused(f"{url!r} has no valid port", code="bad_config") from error
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        raise Refused(f"{url!r} is not an http or https address", code="bad_config")
    if parts.username is not None:
        raise Refused("an address must not carry a password", code="bad_config")
    secure = parts.scheme == "https"
    if not secure and parts.hostname not in LOOPBACK:
        message = f"{url!r}: plain http goes to 127.0.0.1 or [::1] only; use https"
        raise Refused(message, code="bad_config")
    if tls_spki and (not secure or len(tls_spki) != PIN_BYTES):
        message = "a pinned key is the 32-byte SHA-256 of an https endpoint's key"
        raise Refused(message, code="bad_config")
    return parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/"), secure
