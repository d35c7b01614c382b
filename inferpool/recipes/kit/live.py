"""A stream of cases under a deadline: the pool decides, and this process where the pool is late.

No case is lost: what the pool does not answer in time, or refuses, the same model answers here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import numpy as np

from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.pool import PoolScorer, own_pool
from inferpool.recipes.kit.scorer import Scorer, difference

WORKERS: Final = 4
_LATE: Final = 8  # answers that are waited for beside those, to be thrown away
_REHEARSED: Final = 90  # requests; the gateway's book shows its last 100 attempts
_PATIENCE_S: Final = 20.0

Ask = Callable[[Array], Sample]


class Asked(Protocol):
    """A case, or anything else that names a model and its one input."""

    @property
    def model(self) -> str: ...
    @property
    def input(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Served:
    """One answer: `local` where the engine of this process gave it, `ms` after it was asked for."""

    outputs: Sample
    local: bool
    ms: float


class Stream:
    """Asks for `workers` cases at a time and hands the answers on in the cases' order.

    `ask` runs in threads, of which some wait for late answers; `local` runs in the caller's.
    """

    def __init__(self, ask: Ask, local: Ask, deadline_s: float, workers: int = WORKERS) -> None:
        self._ask, self._local, self._deadline_s = ask, local, deadline_s
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers + _LATE, thread_name_prefix="stream")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the answers that came too late; they are thrown away."""
        self._threads.shutdown()

    def serve(self, rows: Array) -> Iterator[Served]:
        """An answer for each row [n, ...], in order, at most the deadline and one local run late.

        A case's time begins when it is asked, so a full stream does not hide its own waiting.
        """
        waiting: deque[tuple[Array, Future[Sample], float]] = deque()
        for index in range(len(rows)):
            if len(waiting) == self._workers:
                yield self._finish(*waiting.popleft())
            row = rows[index : index + 1]
            waiting.append((row, self._threads.submit(self._ask, row), time.monotonic()))
        while waiting:
            yield self._finish(*waiting.popleft())

    def _finish(self, row: Array, asked: Future[Sample], begun: float) -> Served:
        local = False
        try:
            outputs = asked.result(max(0.0, begun + self._deadline_s - time.monotonic()))
        except (Late, Exception):  # whatever went wrong out there, this case is decided here
            asked.cancel()
            outputs, local = self._local(row), True
        return Served(outputs, local, 1000 * (time.monotonic() - begun))


def stream_of(
    case: Asked, scorer: Scorer, engine: Scorer, deadline_s: float, workers: int = WORKERS
) -> Stream:
    """Cases asked of a scorer, and of the engine in this process where that one is late."""
    return Stream(
        lambda row: scorer.infer(case.model, case.input, row),
        lambda row: engine.infer(case.model, case.input, row),
        deadline_s,
        workers,
    )


def rehearse(case: Asked, rows: Array, engine: Scorer) -> dict[str, Any]:
    """Kill one of two nodes (real processes) in the middle of a stream, and count what is lost.

    Every answer is compared with the engine's; the gateway's book says what was paid.
    """
    return outlived(
        case.model,
        rows[np.linspace(0, len(rows) - 1, _REHEARSED).astype(int)],
        lambda pool: lambda row: pool.infer(case.model, case.input, row),
        lambda row: engine.infer(case.model, case.input, row),
    )


def outlived(
    model: str,
    rows: Array,
    ask_by: Callable[[PoolScorer], Ask],
    local: Ask,
    patience_s: float = _PATIENCE_S,
) -> dict[str, Any]:
    """As `rehearse`, for what is asked in another way. `local` says what each answer has to be."""
    served: list[Served] = []
    # The node that will be killed is wanted first, so that it is in the middle of something.
    with own_pool([model], nodes=2) as pool, pool.client(patience_s, pool.node) as first:
        with Stream(ask_by(first), local, patience_s) as stream:
            for answer in stream.serve(rows):
                served.append(answer)
                if len(served) == len(rows) // 3:
                    killed = pool.kill_node()
        book = first.book()
    apart = [
        difference(answer.outputs, local(row[None]))
        for row, answer in zip(rows, served, strict=True)
    ]
    paid = [item for item in book if item["proof"]]
    return {
        "sent": len(rows),
        "answered": len(served),
        "by_pool": sum(not answer.local for answer in served),
        "killed": killed,
        "killed_after": len(rows) // 3,
        "by_killed": sum(item["node"] == killed for item in paid),
        "failed_attempts": len(book) - len(paid),
        "receipts": len(paid),
        "charged_for_failed_pico_usd": sum(
            item["charge_pico_usd"] for item in book if not item["proof"]
        ),
        "slowest_ms": round(max(answer.ms for answer in served), 1),
        "difference_to_engine": max(apart),
    }
