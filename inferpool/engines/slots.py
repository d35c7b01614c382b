"""A bounded number of calls at once, first come, first served; each knows its place."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferpool.engines.base import Phase, Progress


class Slots:
    """`count` places; who waits is numbered from 1, and the number is in its `Progress`.

    The queue has no bound of its own: the node's admission holds it below its offer's.
    """

    def __init__(self, count: int) -> None:
        assert count >= 1
        self.free = count
        self._queue: OrderedDict[asyncio.Future[None], Progress] = OrderedDict()

    @asynccontextmanager
    async def hold(self, progress: Progress) -> AsyncIterator[None]:
        """Hold a slot; `progress` is `queued` with the place in the queue until there is one."""
        progress.phase, progress.count = Phase.QUEUED, 0
        if self.free and not self._queue:
            self.free -= 1
        else:
            await self._wait(progress)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, progress: Progress) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[turn] = progress
        progress.count = len(self._queue)
        try:
            await turn
        except BaseException:
            if turn.cancelled() or not turn.done():
                self._queue.pop(turn, None)
                self._renumber()
            else:  # it was this call's turn in the very round in which it was cancelled
                self._release()
            raise

    def _release(self) -> None:
        """Hand the slot to the next in the queue, without it ever being free in between."""
        while self._queue:
            turn, progress = self._queue.popitem(last=False)
            if not turn.done():
                progress.count = 0
                turn.set_result(None)
                self._renumber()
                return
        self.free += 1

    def _renumber(self) -> None:
        for place, progress in enumerate(self._queue.values(), 1):
            progress.count = place
