"""Forests as ONNX: branches exact, and an answer that no number of threads changes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from inferpool.engines.onnx import OnnxEngine
from inferpool.engines.tensors import from_numpy, to_numpy
from inferpool.recipes.kit import data
from inferpool.recipes.kit.case import X
from inferpool.recipes.kit.forest import float32_below


@pytest.mark.parametrize("model", ["land-cover", "steel-faults", "cloud-mask"])
def test_an_answer_is_the_same_by_any_number_of_threads(model: str) -> None:
    rows = data.heldout(model)[X][:8]
    path = data.MODELS / "data" / f"{model}.onnx"

    async def by(threads: int) -> list[bytes]:
        engine = OnnxEngine(path, model, threads=threads)
        await engine.start()
        try:
            said = [await engine.infer([from_numpy(X, row[None])], 1) for row in rows]
        finally:
            await engine.close()
        return [to_numpy(tensor).tobytes() for (tensor,) in said]

    assert asyncio.run(by(1)) == asyncio.run(by(2))


@pytest.mark.parametrize("cell", ["0.1", "0.3", "1.0000000180025095e-35", "0.00045000000000000004"])
def test_a_threshold_sends_every_float32_where_the_exact_number_would(cell: str) -> None:
    cut = float32_below(cell)
    below, above = (np.nextafter(cut, np.float32(to)) for to in (-np.inf, np.inf))
    for value in (below, cut, above):
        assert (value <= cut) == (float(value) <= float(cell))
