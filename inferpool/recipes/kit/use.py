"""A use that is no table: speech and language, asked through the pool with OpenAI's own client.

Its `play` returns results in the form that `kit.running` gives for a case, so that command line
and report show both alike.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from inferpool.config import NodeConfig
from inferpool.daemon.engines import make_engine
from inferpool.models import catalogue
from inferpool.models.store import Store
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.units import format_usd
from inferpool.recipes.kit.audit import Replay
from inferpool.recipes.kit.case import Case
from inferpool.recipes.kit.case import Progress as Progress
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.metrics import Figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.scorer import BATCH

T = TypeVar("T")
COST: Final = "inferpool-cost-pico-usd"
_DIGITS: Final = 3  # of an amount that people read


@dataclass(frozen=True, slots=True)
class Use:
    """A recipe of its own shape. `play(pool, small, progress)` runs it and returns its results;
    one that `audits` is also given the folder of what it writes."""

    name: str
    title: str
    summary: str
    data: str  # data sets and their licences
    models: tuple[str, ...]
    play: Callable[..., list[dict[str, Any]]]
    needs: str = ""  # a module that comes with an extra
    extra: str = ""
    cases: tuple[Case, ...] = ()  # none: it trains nothing
    whole: bool = False
    audits: bool = False
    replay: Callable[[Mapping[str, Any]], Replay] | None = None  # of a record that is no tensor's

    def run(
        self, pool: PoolScorer | None, small: bool, progress: Progress, out: Path
    ) -> list[dict[str, Any]]:
        """Play it; its records go to `out`."""
        if self.audits:
            return self.play(pool, small, progress, out)
        return self.play(pool, small, progress)

    @property
    def missing(self) -> str:
        """What to install before it can run, or ''."""
        if not self.needs or importlib.util.find_spec(self.needs):
            return ""
        return f'it needs {self.needs}: pip install "inferpool[{self.extra}]"'

    def facts(self) -> dict[str, Any]:
        """For lists."""
        return {
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "data": self.data,
            "models": list(self.models),
        }


def about_usd(pico_usd: int) -> str:
    """An amount for people, with so many digits as they read: 31766129032 -> '$0.0317'."""
    step = 10 ** max(0, len(str(pico_usd)) - _DIGITS)
    return format_usd(pico_usd // step * step)


@dataclass(slots=True)
class Meter:
    """What the calls of one run cost, and how long they took."""

    charged_pico_usd: int = 0
    times_ms: list[float] | None = None

    def call(self, ask: Callable[[], Any]) -> Any:
        """One call of a client `with_raw_response`: its parsed answer. Raises Unavailable."""
        from openai import APIError

        begun = time.monotonic()
        try:
            raw = ask()
        except APIError as error:
            raise Unavailable(f"The pool gave no answer: {error.message}") from None
        spent_ms = 1000 * (time.monotonic() - begun)
        self.times_ms = [*(self.times_ms or []), spent_ms]
        answer = raw.parse()
        extra = getattr(answer, "model_extra", None) or {}
        told = extra.get("inferpool") or {}
        self.charged_pico_usd += int(raw.headers.get(COST) or told.get("cost_pico_usd") or 0)
        return answer

    @property
    def calls(self) -> int:
        """How many."""
        return len(self.times_ms or [])

    def rows(self) -> list[list[str]]:
        """For a report's table."""
        times = self.times_ms or [0.0]
        p50, p99 = np.percentile(times, [50, 99])
        thousand = 1000 * self.charged_pico_usd // max(1, self.calls)
        return [
            ["calls", str(self.calls)],
            ["p50", f"{p50:.0f} ms"],
            ["p99", f"{p99:.0f} ms"],
            ["1,000 calls cost", about_usd(thousand)],
        ]


def result(
    model: str,
    question: str,
    count: int,
    figures: Sequence[Figure],
    difference: float,
    meter: Meter,
    sections: Sequence[dict[str, Any]] = (),
    limits: Sequence[str] = (),
    *,
    tolerance: float = 0.0,
) -> dict[str, Any]:
    """A result as reports and the command line read it.

    `difference` to the engine in this process: the share of answers that are not equal, or the
    greatest difference of a number, which `tolerance` allows.
    """
    service = {
        "title": "Latency and cost",
        "text": "Each call through the pool, paid and receipted.",
        "head": ["", ""],
        "rows": meter.rows(),
    }
    return {
        "model": model,
        "question": question,
        "scored_by": "pool",
        "n": count,
        "figures": [asdict(item) | {"reached": item.reached} for item in figures],
        "difference_to_engine": difference,
        "agrees": difference <= tolerance,
        "sections": [*sections, service],
        "limits": list(limits),
    }


@dataclass(slots=True)
class Embedder:
    """Vectors of texts from the pool."""

    api: Any
    model: str
    meter: Meter
    progress: Progress

    def embed(self, texts: Sequence[str]) -> Array:
        """One vector a text, in paid requests of `BATCH` texts."""
        ask = self.api.embeddings.with_raw_response.create
        rows: list[list[float]] = []
        for some in _batches(texts):
            wanted = partial(ask, model=self.model, input=some, encoding_format="float")
            answer = self.meter.call(wanted)
            rows += [item.embedding for item in answer.data]
            self.progress(self.model, len(rows), len(texts))
        return np.array(rows, dtype=np.float32)


def embedded_here(model: str, texts: Sequence[str]) -> Array:
    """The same vectors by the engine in this process."""

    async def embed(engine: Any) -> Array:
        made = [vector for some in _batches(texts) for vector in (await engine.embed(some)).vectors]
        return np.array([np.frombuffer(vector, dtype="<f4") for vector in made])

    return in_process(model, embed)


def _batches(texts: Sequence[str]) -> list[list[str]]:
    return [list(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]


def in_process(model: str, work: Callable[[Any], Coroutine[Any, Any, T] | Awaitable[T]]) -> T:
    """Run `work` with the same engine in this process; it is closed afterwards."""

    async def run() -> T:
        engine = make_engine(catalogue.load(model), Store(), NodeConfig())
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())
