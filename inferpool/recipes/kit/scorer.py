"""Two ways to the same model: bought from a pool with a standard client, or run in this process."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np

from inferpool.engines.onnx import OnnxEngine
from inferpool.engines.tensors import from_numpy, to_numpy
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.recipes.kit.data import Array, Sample

BATCH: Final = 64  # rows in one request; the manifests' limit
_THREADS: Final = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outputs, and who gave them; `receipt` in wire form when it was paid for."""

    outputs: Sample
    manifest: str
    engine_class: str
    node: str
    receipt: dict[str, Any] | None = None
    chain_id: int | None = None  # that the receipt's signature is about


class Scorer(Protocol):
    """Where scores come from. Any thread may ask."""

    name: str

    def infer(self, model: str, name: str, rows: Array) -> Sample:
        """Outputs of one request of at most `BATCH` rows."""
        ...

    def told(
        self, model: str, name: str, rows: Sequence[Array], answers: Sequence[Sample]
    ) -> list[Answer]:
        """Who gave these answers, each to one of the last requests."""
        ...


class EngineScorer:
    """The bare engine in this process: what the pool's answers are compared with."""

    name = "engine in process"

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or Store()
        self._runner = asyncio.Runner()
        self._one = threading.Lock()  # at a time: the loop is one
        self._engines: dict[str, OnnxEngine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for engine in self._engines.values():
            self._runner.run(engine.close())
        self._runner.close()

    def infer(self, model: str, name: str, rows: Array) -> Sample:
        """Run it."""
        with self._one:
            engine = self._engine(model)
            answer = self._runner.run(engine.infer([from_numpy(name, rows)], len(rows)))
        return {tensor.name: to_numpy(tensor) for tensor in answer}

    def told(
        self, model: str, name: str, rows: Sequence[Array], answers: Sequence[Sample]
    ) -> list[Answer]:
        """The same engine gave all of them."""
        del name, rows
        kind = self._engine(model).engine_class
        manifest = catalogue.load(model).id
        return [Answer(outputs, manifest, kind, "this process") for outputs in answers]

    def add(self, model: str, path: Path) -> None:
        """Load a file that is in no catalogue yet."""
        engine = OnnxEngine(path, model, threads=_THREADS)
        self._runner.run(engine.start())
        self._engines[model] = engine

    def _engine(self, model: str) -> OnnxEngine:
        if model not in self._engines:
            paths = pull_model(self._store, catalogue.load(model))
            self.add(model, next(iter(paths.values())))
        return self._engines[model]


def request_body(name: str, rows: Array) -> bytes:
    """The very bytes that `PoolScorer.infer` sends: all that leaves this process about a case."""
    import tritonclient.http as triton

    made, _ = triton.InferenceServerClient.generate_request_body([triton_input(name, rows)])
    return bytes(made)


def request_hash(name: str, rows: Array) -> bytes:
    """SHA-256 of it: what a receipt says the request was."""
    return hashlib.sha256(request_body(name, rows)).digest()


def triton_input(name: str, rows: Array) -> Any:
    """The rows as the input of a tritonclient request."""
    import tritonclient.http as triton

    if rows.dtype == object:
        tensor = triton.InferInput(name, list(rows.shape), "BYTES")
        encoded = [[str(text).encode() for text in row] for row in rows.tolist()]
        tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_).reshape(rows.shape))
    else:
        kind = "UINT8" if rows.dtype == np.uint8 else "FP32"
        tensor = triton.InferInput(name, list(rows.shape), kind)
        exact = np.uint8 if kind == "UINT8" else np.float32
        tensor.set_data_from_numpy(np.ascontiguousarray(rows, dtype=exact))
    return tensor


def infer_all(
    scorer: Scorer, model: str, name: str, rows: Array, on_rows: Any = lambda done: None
) -> Sample:
    """Outputs of any number of rows, in requests of `BATCH` rows."""
    parts: list[Sample] = []
    for start in range(0, len(rows), BATCH):
        parts.append(scorer.infer(model, name, rows[start : start + BATCH]))
        on_rows(min(start + BATCH, len(rows)))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def difference(one: Sample, other: Sample) -> float:
    """The greatest difference of two answers, relative to the outputs' size where that is above 1.

    Infinite where one has other outputs, or a number where the other has none.
    """
    if one.keys() != other.keys():
        return float("inf")
    worst = 0.0
    for key, left in one.items():
        right = other[key]
        if left.shape != right.shape or not np.array_equal(np.isnan(left), np.isnan(right)):
            return float("inf")
        span = max(1.0, float(np.abs(np.nan_to_num(right)).max(initial=0.0)))
        gap = np.abs(np.nan_to_num(left).astype(float) - np.nan_to_num(right).astype(float))
        worst = max(worst, float(gap.max(initial=0.0)) / span)
    return worst


def percentiles(times_ms: Array | Sequence[float]) -> dict[str, float]:
    """How many, the median and the 99th percentile, in milliseconds."""
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {"n": len(times_ms), "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def latencies_ms(scorer: Scorer, model: str, name: str, rows: Array, calls: int) -> Array:
    """Milliseconds of so many requests of one row, one after the other."""
    found = []
    for number in range(calls):
        row = rows[number % len(rows)][None]
        begun = time.perf_counter()
        scorer.infer(model, name, row)
        found.append(1000 * (time.perf_counter() - begun))
    return np.array(found)
