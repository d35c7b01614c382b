"""Transports without a network: an ASGI app in the same process.

`MemoryTransport` keeps a server's manners (streams, backpressure, `http.disconnect`) and uses
nothing of the loop but tasks, futures and its clock, so that it runs under virtual time.
`FaultyTransport`, in `faulty`, wraps any transport and fails on demand.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from inferpool.transport.base import (
    AnswerInvalid,
    AnswerTimeout,
    ConnectFailed,
    ConnectionCut,
    Headers,
    TransportError,
)
from inferpool.transport.faulty import Fault, Faults, FaultyTransport, RandomFaults
from inferpool.transport.tls import NO_TLS

__all__ = ["App", "Fault", "Faults", "FaultyTransport", "MemoryTransport", "RandomFaults"]

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

HIGH_WATER_BYTES: Final = 64 * 1024  # where uvicorn, too, makes the app wait
CLOSE_GRACE_S: Final = 1.0  # an app that was told of a disconnect may still tidy up


class MemoryTransport:
    """A `Transport` to an ASGI app. The app's lifespan is the caller's business."""

    def __init__(self, app: App, *, client: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._app = app
        self._client = client
        self._tasks: dict[asyncio.Task[None], _Call] = {}
        self._closed = False

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> MemoryAnswer:
        """See `base.Transport`; never a ConnectFailed before `close`."""
        if self._closed:
            raise ConnectFailed("the transport is closed")
        loop = asyncio.get_running_loop()
        call = _Call(loop, body)
        task = loop.create_task(self._run(call, self._scope(method, path, headers, body)))
        self._tasks[task] = call
        task.add_done_callback(self._tasks.pop)
        timer = loop.call_later(timeout_s, call.time_out, timeout_s)
        try:
            return await call.head
        except BaseException:
            call.disconnect()
            raise
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Tell every app that its client left; after a second, cancel what still runs."""
        self._closed = True
        for call in self._tasks.values():
            call.disconnect()
        tasks = tuple(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _scope(self, method: str, path: str, headers: Headers, body: bytes) -> Message:
        raw_path, _, query = path.partition("?")
        lines = [(bytes(name), bytes(value)) for name, value in headers]
        if all(name != b"host" for name, _ in lines):
            lines.insert(0, (b"host", b"memory"))
        if body or method not in ("GET", "HEAD", "OPTIONS"):
            lines.append((b"content-length", b"%d" % len(body)))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": unquote_to_bytes(raw_path).decode(errors="replace"),
            "raw_path": raw_path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": lines,
            "client": self._client,
            "server": ("memory", 80),
            "state": {},
        }

    async def _run(self, call: _Call, scope: Message) -> None:
        try:
            await self._app(scope, call.receive, call.send)
        except asyncio.CancelledError:
            call.end(ConnectionCut("the server stopped"))
            raise
        except Exception as error:
            call.end(ConnectionCut(f"the app failed: {error!r}"))
        else:
            call.end(ConnectionCut("the app returned before its answer was whole"))


class MemoryAnswer:
    """An answer of an app in this process; implements `base.Response`."""

    def __init__(self, call: _Call, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.peer_spki = NO_TLS
        self._call = call

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def chunks(self) -> MemoryAnswer:
        """The body, one chunk per message of the app. Raises ConnectionCut."""
        return self

    def __aiter__(self) -> MemoryAnswer:
        return self

    async def __anext__(self) -> bytes:
        return await self._call.take()

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises AnswerInvalid past `limit` bytes, ConnectionCut."""
        body = bytearray()
        async for chunk in self:
            body += chunk
            if len(body) > limit:
                self._call.disconnect()
                raise AnswerInvalid(f"the answer is over {limit} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Tell the app that its client left, unless the answer was whole."""
        self._call.disconnect()


class _Call:
    """The pipe between one request and the app that serves it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: bytes) -> None:
        self.head: asyncio.Future[MemoryAnswer] = loop.create_future()
        self._loop = loop
        self._body: bytes | None = body
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._left: int | None = None  # bytes that content-length still promises
        self._answer: MemoryAnswer | None = None
        self._done = self._gone = False
        self._error: TransportError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []  # app side: in receive() or a full send()

    # -- the app's side --------------------------------------------------------------------------

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while not (self._gone or self._done):
            await self._pause()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._gone:  # as uvicorn: an app that does not listen is not told here either
            return
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            self._feed(bytes(message.get("body", b"")), message.get("more_body", False))
            while self._size > HIGH_WATER_BYTES and not self._gone:
                await self._pause()

    def _start(self, message: Message) -> None:
        if self._answer is not None:
            raise RuntimeError("the app started its answer twice")
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message["headers"]]
        self._answer = MemoryAnswer(self, message["status"], headers)
        length = self._answer.header(b"content-length")
        self._left = int(length) if length is not None else None

    def _feed(self, body: bytes, more: bool) -> None:
        if self._answer is None or self._done:
            raise RuntimeError("the app sent a body outside its answer")
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left > 0 and not more):
                raise RuntimeError("the app's body is not as long as its content-length")
        if not self.head.done():  # as servers do: the head leaves with the first piece of body
            self.head.set_result(self._answer)
        if body:
            self._parts.append(body)
            self._size += len(body)
        if not more:
            self.end(None)
        self._wake()

    async def _pause(self) -> None:
        future = self._loop.create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    # -- the client's side -----------------------------------------------------------------------

    async def take(self) -> bytes:
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._done:
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        part = self._parts.popleft()
        self._size -= len(part)
        self._wake()
        return part

    def disconnect(self) -> None:
        self._gone = True
        self._parts.clear()
        self.end(ConnectionCut("the answer was closed by its reader"))

    def time_out(self, timeout_s: float) -> None:
        if not self.head.done():
            self.end(AnswerTimeout(f"no answer within {timeout_s:g} s"))
            self.disconnect()

    def end(self, error: TransportError | None) -> None:
        if not self._done:
            self._done, self._error = True, error
            if error is not None and not self.head.done():
                self.head.set_exception(error)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
