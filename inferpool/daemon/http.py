"""HTTP as the roles serve it: uvicorn's protocol, where a small answer costs little.

ASGI passes a body and an answer through dictionaries and events, and the server writes an answer's
head and body apart: each write is a system call and a packet. Here a request whose body is there
already is read at once, and a whole answer is one write. What is unusual goes uvicorn's own way:
other versions of HTTP, upgrades, pipelining, HEAD, a reader that is slow, a door that is full.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, cast

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from inferpool.protocol.limits import PIPELINED_MAX, READER_STALL_S
from inferpool.transport.base import Headers
from inferpool.transport.connection import MAX_HEAD_BYTES, MAX_HEADERS

JOIN_BYTES: Final = 64 * 1024  # above it the copy costs more than a second system call
_NO_BODY: Final = (204, 304)
_UNSOUND: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # in a head, beside line ends


class _Joined:
    """A connection whose answer's head waits for the body that comes with it.

    The server writes them one after the other, and a write is a system call and a packet: joined,
    a small answer costs the kernel half, and wakes its reader once. The head of a stream, whose
    body comes later, leaves at the end of this turn of the loop.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send, or keep a head for a moment."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def whole(self, head: bytes, body: bytes) -> None:
        """Send a whole answer now."""
        self.flush()
        if len(body) <= JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def flush(self) -> None:
        """Send a head that has no body yet."""
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def close(self) -> None:
        """Send what is kept, then close; a reader that takes none of it is not waited for."""
        self.flush()
        self._transport.close()
        self._watch()

    def _watch(self, before: int | None = None) -> None:
        """Look again and again whether the reader took anything of what it had left `before`."""
        left = self._transport.get_write_buffer_size()
        if before is not None and left >= before:
            self._transport.abort()
        elif left:
            self._loop.call_later(READER_STALL_S, self._watch, left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _News:
    """An `asyncio.Event` that is made only where somebody waits."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        """See asyncio.Event."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        """See asyncio.Event."""
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    async def wait(self) -> None:
        """See asyncio.Event."""
        if not self._is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()


class _Cycle(RequestResponseCycle):
    """One request, that may be read and answered without ASGI's messages: see `asgi.Direct`."""

    def whole_body(self) -> bytes | None:
        """See Direct."""
        if self.more_body or self.disconnected or self.waiting_for_100_continue:
            return None
        body, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        self.flow.resume_reading()
        return body

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """See Direct."""
        if self.disconnected:
            return True
        if self.response_started or not self.keep_alive or self.flow.write_paused:
            return False
        if status in _NO_BODY or self.scope["method"] == "HEAD":
            return False
        self.response_started = True
        parts = [STATUS_LINE[status]]
        for name, value in self.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"content-length: %d\r\n\r\n" % len(body))
        head = b"".join(parts)
        lines = len(self.default_headers) + len(headers) + 3
        if head.count(b"\n") != lines or head.count(b"\r") != lines or _UNSOUND.search(head):
            raise RuntimeError("Invalid HTTP header.")
        cast(_Joined, self.transport).whole(head, body)
        self.response_complete = True
        self.message_event.set()
        self.on_response()
        return True

    def part(self, data: bytes) -> bool:
        """See Direct."""
        if not self.chunked_encoding or self.response_complete:
            return False
        if not self.disconnected:
            if self.flow.write_paused:
                return False
            if data:
                self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


class Http(HttpToolsProtocol):
    """HTTP whose small answers are one write, and whose heads have a limit.

    The parser takes a head of any length, and any number of requests behind one that is answered.
    Between two answers a whole head has to come within the time that a connection may be idle.
    """

    _since_body_bytes = 0  # of heads, chunks' sizes and trailers
    _receiving = False
    _running: RequestResponseCycle | None = None  # `cycle` is the last that came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Joined(transport, self.loop))
        idle_s, close = self.timeout_keep_alive, self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(idle_s, close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, also where others wait behind it."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _unset_keepalive_if_required(self) -> None:
        if not self._receiving:  # bytes alone are no request: see on_headers_complete
            super()._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._since_body_bytes += len(data)
        self._receiving = True
        super().data_received(data)
        self._receiving = False
        if self._since_body_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response(f"A head over {MAX_HEAD_BYTES} bytes.")
            else:
                self.transport.close()

    def on_body(self, body: bytes) -> None:
        """More of a body."""
        self._since_body_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._since_body_bytes = 0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        super()._unset_keepalive_if_required()
        parser, url = self.parser, self.url
        if len(self.headers) > MAX_HEADERS or len(self.pipeline) >= PIPELINED_MAX:
            raise HttpParserError("too many headers or requests at once")
        if (
            parser.should_upgrade()
            or parser.get_http_version() != "1.1"
            or (self.cycle is not None and not self.cycle.response_complete)
            or self._is_full()
            or self.access_log
            or not url.startswith(b"/")
            or b"%" in url
            or b"#" in url
            or not url.isascii()
        ):
            super().on_headers_complete()
            return
        path, _, query = url.partition(b"?")
        scope = cast(dict[str, Any], self.scope)
        scope["method"] = parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"] = path.decode("ascii"), path
        scope["query_string"] = query
        self.cycle = scope["inferpool.direct"] = _Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=cast(asyncio.Event, _News()),
            expect_100_continue=self.expect_100_continue,
            keep_alive=parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)

    def _is_full(self) -> bool:
        limit = self.limit_concurrency
        return limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)
