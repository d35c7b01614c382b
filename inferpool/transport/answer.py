"""The body of one HTTP answer: what arrived, held for its reader, and how it ended."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from inferpool.transport.base import AnswerInvalid, ConnectionCut, Headers, TransportError
from inferpool.transport.tls import NO_TLS

# A reader that stops holds at most this and one read of the socket: 160 KiB.
HIGH_WATER_BYTES: Final = 128 * 1024


class Wire(Protocol):
    """What an answer needs of its connection."""

    def abort(self) -> None:
        """Close at once."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...


class Answer:
    """An answer whose head has arrived; implements `base.Response`."""

    __slots__ = (
        "_connection",
        "_done",
        "_error",
        "_parts",
        "_size",
        "_waiter",
        "headers",
        "peer_spki",
        "status",
    )

    def __init__(
        self, connection: Wire, status: int, headers: Headers, peer_spki: bytes = NO_TLS
    ) -> None:
        self.status = status
        self.headers = headers
        self.peer_spki = peer_spki
        self._connection: Wire | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._error: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def chunks(self) -> Answer:
        """The body as it arrives. Raises ConnectionCut, AnswerInvalid where it was not whole."""
        return self

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._done:
                raise StopAsyncIteration
            await self._wait()
        return self._take()

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises AnswerInvalid past `limit` bytes, ConnectionCut."""
        if self._done and self._error is None and len(self._parts) == 1 and self._size <= limit:
            self._size = 0
            return self._parts.pop()  # it came with its head, as small answers do
        parts, size = [], 0
        async for part in self:
            size += len(part)
            if size > limit:
                self._abandon()
                raise AnswerInvalid(f"the answer is over {limit} bytes")
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def close(self) -> None:
        """Cut the connection, unless the answer has arrived whole and it was given back already."""
        self._abandon()

    def _abandon(self) -> None:
        self._parts.clear()
        if not self._done:
            connection = self._connection
            self.end(ConnectionCut("the answer was closed by its reader"))
            if connection is not None:
                connection.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self) -> bytes:
        parts = self._parts
        taken = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.resume()
        return taken

    def feed(self, part: bytes) -> bool:
        """Called by the connection: more of the body. Returns whether to stop reading."""
        self._parts.append(part)
        self._size += len(part)
        self._wake()
        return self._size > HIGH_WATER_BYTES

    def end(self, error: TransportError | None) -> None:
        """Called by the connection: the answer is whole (None), or how it failed."""
        self._done, self._error, self._connection = True, error, None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
