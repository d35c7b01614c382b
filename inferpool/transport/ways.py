"""Several ways to one node (relays, its own door) as one pipe: the next where one fails.

It stays with the way that works. A request that was not sent goes on by the next way at once; one
that may have arrived never does: the caller decides with a new attempt, which finds the next way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from inferpool.transport.base import (
    AnswerTimeout,
    ConnectFailed,
    ConnectionCut,
    Headers,
    Response,
    Transport,
)

# A stream beats each second: one that is given up after so long a pause hung on its way.
SILENT_S: Final = 2.5


class Ways:
    """A `Transport` over others; `close` closes those of `owned`."""

    def __init__(self, ways: Sequence[Transport], *, owned: Sequence[Transport]) -> None:
        assert ways, "a node is reached in some way"
        self._ways, self._owned = tuple(ways), tuple(owned)
        self._at = 0

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Response:
        """See `base.Transport`; `timeout_s` holds for all ways together."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        for _ in self._ways:
            at = self._at
            left_s = until_s - loop.time()
            try:
                found = await self._ways[at].request(method, path, headers, body, timeout_s=left_s)
            except ConnectFailed as error:
                self._lost(at)
                last = error
                if until_s <= loop.time():
                    break
            except (ConnectionCut, AnswerTimeout):
                self._lost(at)
                raise
            else:
                return _Watched(found, lambda at=at: self._lost(at))  # type: ignore[misc]
        raise last

    def _lost(self, at: int) -> None:
        """The next way from now on; many answers that one cut ends move on once."""
        if at == self._at:
            self._at = (at + 1) % len(self._ways)

    async def close(self) -> None:
        """Close the ways that are this node's own."""
        for way in self._owned:
            await way.close()


class _Watched:
    """An answer that tells when its way fails; implements `base.Response`."""

    __slots__ = ("_inner", "_loop", "_lost", "_moved_s", "headers", "peer_spki", "status")

    def __init__(self, inner: Response, lost: Callable[[], None]) -> None:
        self.status, self.headers, self.peer_spki = inner.status, inner.headers, inner.peer_spki
        self._inner, self._lost = inner, lost
        self._loop = asyncio.get_running_loop()
        self._moved_s: float | None = self._loop.time()  # None: nothing more is to come

    def header(self, name: bytes) -> bytes | None:
        """See `base.Response`."""
        return self._inner.header(name)

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `base.Response`."""
        try:
            async for chunk in self._inner.chunks():
                self._moved_s = self._loop.time()
                yield chunk
            self._moved_s = None
        except ConnectionCut:
            self._lost()
            raise

    async def read(self, limit: int) -> bytes:
        """See `base.Response`."""
        try:
            found = await self._inner.read(limit)
        except ConnectionCut:
            self._lost()
            raise
        self._moved_s = None
        return found

    async def close(self) -> None:
        """See `base.Response`; who gives up an answer that fell silent takes another way next."""
        if self._moved_s is not None and self._loop.time() - self._moved_s >= SILENT_S:
            self._lost()
        self._moved_s = None
        await self._inner.close()
