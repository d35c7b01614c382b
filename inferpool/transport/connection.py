"""One HTTP/1.1 connection: a protocol over httptools, one exchange at a time.

The parser checks the syntax (also smuggling: two lengths, length and chunks). This module adds
limits, backpressure, and the exact word on how an answer ended: whole, cut, silent or invalid.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final, cast

import httptools

from inferpool.transport.answer import Answer
from inferpool.transport.base import (
    AnswerInvalid,
    AnswerTimeout,
    ConnectionCut,
    TransportError,
)
from inferpool.transport.tls import NO_TLS

# A receipt, an x402 answer and a browser's worth of other headers are below 16 KiB.
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256  # nobody sends more than some dozens
READ_BYTES: Final = 32 * 1024  # per connection; 16 KiB is a whole TLS record
# Above this, head and body are not joined: the copy costs more than a second system call.
JOIN_BYTES: Final = 32 * 1024

_NO_BODY: Final = frozenset((204, 304))
# POLLRDHUP tells a peer's close from late bytes (TLS tickets); where it lacks, any byte is stale.
_HUNG_UP: Final = getattr(select, "POLLRDHUP", select.POLLIN) | select.POLLHUP | select.POLLERR


class Connection(asyncio.BufferedProtocol):
    """A connection to one endpoint. `on_free(self)` is called when it may carry the next request.

    After connecting: `exchange` -> (head arrives) -> `Answer` -> (body ends) -> `on_free`. Any
    failure closes it; `closed` is then True and `on_closed` was called, once.
    """

    def __init__(
        self, on_free: Callable[[Connection], None], on_closed: Callable[[Connection], None]
    ) -> None:
        self.closed = False
        self.idle_since_s = 0.0  # loop time, set by the pool
        self.answered = False  # any byte came back in this exchange
        self.gone = asyncio.Event()  # the socket is closed
        self.peer_spki = NO_TLS  # SHA-256 of the key that the peer showed, set by the pool
        self._on_free, self._on_closed = on_free, on_closed
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._loop = asyncio.get_running_loop()
        self._head: asyncio.Future[Answer] | None = None
        self._due_s, self._fires_s = 0.0, 0.0  # when the head must be there; of the timer
        self._timer: asyncio.TimerHandle | None = None
        self._answer: Answer | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._paused = False

    # -- the pool's side -------------------------------------------------------------------------

    def stale(self) -> bool:
        """Whether the peer has closed this idle connection, also where the loop has yet to see it.

        A poll of the socket itself (1 us): the news lies in the kernel, not in the loop.
        """
        return self.closed or bool(self._poll.poll(0))

    async def exchange(self, method: str, head: bytes, body: bytes, timeout_s: float) -> Answer:
        """Send a request; return when the answer's head is there. The connection must be free."""
        assert self._transport is not None
        assert self._head is None, "one exchange at a time"
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._head = future
        self._begin(method)
        self._patience_s, self._due_s = timeout_s, self._loop.time() + timeout_s
        if self._timer is None or self._fires_s > self._due_s:
            self._arm()
        if len(body) <= JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        try:
            return await future
        except asyncio.CancelledError:
            # Not simply abort(): an answer that came whole in this very round has given the
            # connection back, and it may be carrying another caller's request by now.
            if self._head is future:
                self.abort()
            elif not future.cancelled() and future.exception() is None:
                await future.result().close()
            raise

    def abort(self) -> None:
        """Close at once; the server sees it with its next read."""
        if self._transport is not None and not self.closed:
            self._fail(ConnectionCut("the connection was closed by this side"))
            self._transport.abort()

    def resume(self) -> None:
        """The reader took what was there: read on."""
        if self._paused and not self.closed and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _begin(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = method == "HEAD"
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._since_body_bytes = 0
        self._framed = False
        self.answered = False

    # One timer for many exchanges: it looks, when it fires, whether one is late, and sleeps on.

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_s = self._due_s
        self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._head is None:
            return
        if self._loop.time() < self._due_s:
            self._arm()
        else:
            self._stop(AnswerTimeout(f"no answer within {self._patience_s:g} s"))

    # -- asyncio's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # TCP_NODELAY is asyncio's and uvloop's own default for TCP.
        self._poll.register(transport.get_extra_info("socket").fileno(), _HUNG_UP)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._parser is None or (self._head is None and self._answer is None):
            self._stop(AnswerInvalid("bytes came that no request asked for"))
            return
        self.answered = True
        # Bytes since the last piece of body: head, chunk extensions and trailers are all bounded
        # by it, since httptools keeps an unfinished line however long it grows.
        self._since_body_bytes += nbytes
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except httptools.HttpParserUpgrade:
            self._stop(AnswerInvalid("the server switched protocols"))
        except httptools.HttpParserError as error:
            self._stop(AnswerInvalid(f"not an HTTP answer: {error}"))
        if self._since_body_bytes > MAX_HEAD_BYTES and not self.closed:
            self._stop(AnswerInvalid(f"a head or trailer over {MAX_HEAD_BYTES} bytes"))

    def eof_received(self) -> bool:
        # Neither a length nor chunks: then the close itself is the end (RFC 9112 section 6.3).
        if self._answer is not None and not self._framed:
            self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self._fail(ConnectionCut(f"the connection ended early: {exc or 'closed by the server'}"))

    # -- httptools' side -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._head is None:
            raise httptools.HttpParserError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) >= MAX_HEADERS:
            raise httptools.HttpParserError("too many or too long headers")
        if self._answer is None:  # else a trailer: tolerated, counted, dropped
            name = name.lower()
            self._framed = self._framed or name in (b"content-length", b"transfer-encoding")
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:  # 100, 103: the answer itself follows
            self._headers, self._framed = [], False
            return
        future, self._head = self._head, None
        if future is None or future.done():  # cancelled a moment ago: nobody will read it
            raise httptools.HttpParserError("the caller left")
        self._answer = answer = Answer(self, status, self._headers, self.peer_spki)
        future.set_result(answer)
        if self._bodiless or status in _NO_BODY:
            self._framed = True
        if self._bodiless:  # the parser cannot know that no body follows: not used again
            self._finish()

    def on_body(self, body: bytes) -> None:
        self._since_body_bytes = 0
        if self._answer is not None and self._answer.feed(body) and not self._paused:
            self._paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._answer is None:
            return  # of a 1xx
        assert self._parser is not None
        assert self._transport is not None
        keep = self._parser.should_keep_alive() and self._framed
        # An answer before the request was written (413): what is left of it must not follow.
        if keep and not self._transport.get_write_buffer_size() and not self.closed:
            answer, self._answer = self._answer, None
            answer.end(None)
            self.resume()
            self._on_free(self)
        else:
            self._finish()

    # -- endings ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The answer is whole, the connection is not to be used again."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.end(None)
        self.abort()

    def _stop(self, error: TransportError) -> None:
        self._fail(error)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: TransportError) -> None:
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        future, answer, self._head, self._answer = self._head, self._answer, None, None
        if future is not None and not future.done():
            future.set_exception(error)
        if answer is not None:
            answer.end(error)
        self._on_closed(self)
