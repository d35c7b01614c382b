"""A batcher without a timer: what came in one turn of the loop, or during the last run, goes
together.

A lone caller waits for the end of the turn, which is nothing, a busy model gets full batches, and
there is nothing to tune. A model so small that a hop to a thread would cost more than the run
itself runs on the loop.
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
# One run that something else on the machine cut into says little; a few in a row are believed.
_UP, _DOWN = 1.25, 0.5  # what one run may change of the estimate for its size
_SIZES: Final = 48  # powers of two of bytes


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
        inline_s: float = INLINE_S,
    ) -> None:
        self._run = run
        self.joinable = joinable
        self._max_rows, self._max_queued = max_rows, max_queued
        self._pool = ThreadPoolExecutor(threads, "inferpool-tensor")
        self._threads = threads
        self._inline_s = inline_s
        self._queue: deque[_Item] = deque()
        # Counted apart from the tasks: a worker that found the queue empty is done in this very
        # step, its task only some steps later, and a call in between must start another.
        self._busy = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._seconds: list[float | None] = [None] * _SIZES  # of a run, by the bits of its size
        self._closed = False

    async def submit(self, arrays: Arrays, rows: int) -> Arrays:
        """The outputs for these rows. Raises Unavailable: overloaded, engine_failed."""
        if self._closed:
            raise Unavailable("the engine is closed", code="engine_unavailable")
        if len(self._queue) >= self._max_queued:
            message = f"{self._max_queued} calls wait for this model already"
            raise Unavailable(message, code="overloaded", retry_after_s=1)
        loop = asyncio.get_running_loop()
        size = sum(_size(array) for array in arrays)
        item = _Item(arrays, rows, size, loop.create_future())
        self._queue.append(item)
        if self._busy < self._threads:
            self._busy += 1
            loop.call_soon(self._start)
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

    def _start(self) -> None:
        """Run what came in this turn of the loop; a worker where the model is not that small."""
        loop = asyncio.get_running_loop()
        batch = self._take()
        if not batch:
            self._busy -= 1
        elif self._inline(batch):
            self._finish(batch, self._attempt(batch))
            loop.call_soon(self._start)  # not at once: tiny batches must not starve the loop
        else:
            worker = loop.create_task(self._work(batch))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self, batch: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch and not self._inline(batch):
                found = await loop.run_in_executor(self._pool, self._attempt, batch)
                self._finish(batch, found)
                batch = self._take()
        finally:
            self._queue.extendleft(reversed(batch))
            loop.call_soon(self._start)

    def _attempt(self, batch: list[_Item]) -> Arrays | Exception:
        """Run on the loop or in a thread; what fails must not end who runs: others wait."""
        try:
            return self._timed(_joined(batch), sum(item.size for item in batch))
        except InferpoolError as error:
            return error
        except Exception as error:
            return Unavailable(f"the model failed: {error}", code="engine_failed")

    def _finish(self, batch: list[_Item], found: Arrays | Exception) -> None:
        if isinstance(found, Exception):
            for item in batch:
                self._settle(item, found)
            return
        parts = _split(found, [item.rows for item in batch])
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

    def _inline(self, batch: list[_Item]) -> bool:
        expected_s = self._expected(sum(item.size for item in batch))
        return expected_s is not None and expected_s < self._inline_s

    def _expected(self, size: int) -> float | None:
        """Seconds of a run of so many bytes: as measured for that size, else no less than it can
        take: as long as a larger one, else in proportion to a smaller one."""
        bits = min(size.bit_length(), _SIZES - 1)
        for known in self._seconds[bits:]:
            if known is not None:
                return known
        for smaller in range(bits - 1, -1, -1):
            known = self._seconds[smaller]
            if known is not None:
                return known * 2.0 ** (bits - smaller)
        return None

    def _timed(self, arrays: Arrays, size: int) -> Arrays:
        """Run and learn."""
        start_s = perf_counter()
        outputs = self._run(arrays)
        seen_s = perf_counter() - start_s
        bits = min(size.bit_length(), _SIZES - 1)
        before = self._seconds[bits]
        if before is not None:
            seen_s = min(max(seen_s, _DOWN * before), _UP * before)
        self._seconds[bits] = seen_s
        return outputs

    @staticmethod
    def _settle(item: _Item, error: Exception) -> None:
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
