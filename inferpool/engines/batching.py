"""A batcher without a timer: what queued during the last run goes together in the next.

A lone caller never waits, a busy model gets full batches, and there is nothing to tune. A model
so small that a hop to a thread would cost more than the run itself runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np

from inferpool.engines.tensors import Array
from inferpool.protocol.errors import InferpoolError, Unavailable

Arrays = list[Array]

MAX_ROWS: Final = 64  # per batch; CPUs gain little beyond
MAX_QUEUED: Final = 1024  # calls; at 64 a batch that is 16 runs of waiting
# A hop to a thread and back costs 60 us and two wake-ups; a run below 300 us delays the loop's
# other callers less than a garbage collection does.
INLINE_S: Final = 300e-6
_LEARN: Final = 0.2  # weight of the newest run in the estimate


@dataclass(slots=True)
class _Item:
    arrays: Arrays
    rows: int
    size: int  # bytes, strings by their length: what a run's time is estimated from
    done: asyncio.Future[Arrays]


class Batcher:
    """Runs `run` for many callers. `joinable`: whether their rows may be concatenated."""

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        *,
        joinable: bool,
        max_rows: int = MAX_ROWS,
        max_queued: int = MAX_QUEUED,
        threads: int = 1,
    ) -> None:
        self._run = run
        self.joinable = joinable
        self._max_rows, self._max_queued = max_rows, max_queued
        self._pool = ThreadPoolExecutor(threads, "inferpool-tensor")
        self._threads = threads
        self._queue: deque[_Item] = deque()
        # Counted apart from the tasks: a worker that found the queue empty is done in this very
        # step, its task only some steps later, and a call in between must start another.
        self._busy = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._seconds_per_byte: float | None = None
        self._closed = False

    async def submit(self, arrays: Arrays, rows: int) -> Arrays:
        """The outputs for these rows. Raises Unavailable: overloaded, engine_failed."""
        if self._closed:
            raise Unavailable("the engine is closed", code="engine_unavailable")
        size = sum(_size(array) for array in arrays)
        if not self._busy and self._inline(size):
            return self._timed(arrays, size)
        if len(self._queue) >= self._max_queued:
            message = f"{self._max_queued} calls wait for this model already"
            raise Unavailable(message, code="overloaded", retry_after_s=1)
        loop = asyncio.get_running_loop()
        item = _Item(arrays, rows, size, loop.create_future())
        self._queue.append(item)
        if self._busy < self._threads:
            self._busy += 1
            worker = loop.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await item.done

    async def close(self) -> None:
        """Fail what waits, let what runs end, leave no thread."""
        self._closed = True
        while self._queue:
            closed = Unavailable("the engine was closed", code="engine_unavailable")
            self._settle(self._queue.popleft(), closed)
        if self._workers:
            await asyncio.wait(tuple(self._workers))
        self._pool.shutdown()  # idle by now: does not block

    def learn(self, arrays: Arrays) -> None:
        """Run once to warm up and to measure; call it from any thread before the first submit."""
        self._timed(arrays, sum(_size(array) for array in arrays))

    # -- the worker ------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while batch := self._take():
                await self._run_batch(batch)
        finally:
            self._busy -= 1

    async def _run_batch(self, batch: list[_Item]) -> None:
        arrays, size = _joined(batch), sum(item.size for item in batch)
        try:
            if self._inline(size):
                outputs = self._timed(arrays, size)
                await asyncio.sleep(0)  # a stream of tiny batches must not starve the loop
            else:
                loop = asyncio.get_running_loop()
                outputs = await loop.run_in_executor(self._pool, self._timed, arrays, size)
            parts = _split(outputs, [item.rows for item in batch])
        except Exception as error:  # the batch's fault must not end the worker: others would wait
            failed = Unavailable(f"the model failed: {error}", code="engine_failed")
            for item in batch:
                self._settle(item, error if isinstance(error, InferpoolError) else failed)
            return
        if parts is None:  # rows out are not rows in: never join again, run these alone
            self.joinable = False
            self._queue.extendleft(reversed(batch))
            return
        for item, part in zip(batch, parts, strict=True):
            if not item.done.done():
                item.done.set_result(part)

    def _take(self) -> list[_Item]:
        """The next batch, from the queue's head, as long as the rows fit; empty: nobody waits."""
        batch: list[_Item] = []
        rows = 0
        while self._queue:
            item = self._queue[0]
            if item.done.done():  # its caller left
                self._queue.popleft()
                continue
            fits = self.joinable and rows + item.rows <= self._max_rows
            if batch and not (fits and _alike(batch[0], item)):
                break
            batch.append(self._queue.popleft())
            rows += item.rows
        return batch

    def _inline(self, size: int) -> bool:
        rate = self._seconds_per_byte
        return rate is not None and rate * size < INLINE_S

    def _timed(self, arrays: Arrays, size: int) -> Arrays:
        """Run and learn: seconds per byte, quick to believe a slow run, slow to forget it.

        Small inputs overstate the rate and large ones then go to the thread: the safe side.
        """
        start_s = perf_counter()
        outputs = self._run(arrays)
        seen = (perf_counter() - start_s) / max(size, 1)
        rate = self._seconds_per_byte
        self._seconds_per_byte = seen if rate is None else rate + _LEARN * (seen - rate)
        return outputs

    @staticmethod
    def _settle(item: _Item, error: InferpoolError) -> None:
        if not item.done.done():
            item.done.set_exception(error)


def _size(array: Array) -> int:
    if array.dtype.kind == "O":
        return 16 * array.size + sum(map(len, array.ravel().tolist()))
    return array.nbytes


def _alike(one: _Item, other: _Item) -> bool:
    return all(a.shape[1:] == b.shape[1:] for a, b in zip(one.arrays, other.arrays, strict=True))


def _joined(batch: list[_Item]) -> Arrays:
    if len(batch) == 1:
        return batch[0].arrays
    return [np.concatenate(column) for column in zip(*(i.arrays for i in batch), strict=True)]


def _split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays] | None:
    """Each caller's rows of every output; None where the outputs do not have those rows."""
    if len(rows) == 1:
        return [outputs]
    total = sum(rows)
    if any(output.ndim == 0 or output.shape[0] != total for output in outputs):
        return None
    parts, at = [], 0
    for count in rows:
        parts.append([output[at : at + count] for output in outputs])
        at += count
    return parts
