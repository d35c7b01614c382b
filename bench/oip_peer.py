"""Our engine for Open Inference Protocol URLs against MLServer: every answer bit for bit.

usage: python -m bench.oip_peer PYTHON    (one in whose environment mlserver and onnxruntime are)
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench import onnx_models
from bench.serving import body_of, peer
from inferpool.engines.base import Tensor
from inferpool.engines.oip import OipEngine
from inferpool.engines.onnx import OnnxEngine

ROWS, CALLS = 3, 32


async def compare(url: str, model: Path) -> str:
    """Calls one by one and all at once; the engine's class where all were right."""
    there, here = OipEngine(url, "m", "f32"), OnnxEngine(model, "m")
    drawn = np.random.default_rng(1).normal(0, 1, (CALLS, ROWS, onnx_models.FIELDS)).astype("<f4")
    calls = [[Tensor("x", "FP32", rows.shape, rows.tobytes())] for rows in drawn]
    await there.start()
    await here.start()
    try:
        wanted = [await here.infer(call, ROWS) for call in calls]
        assert [await there.infer(call, ROWS) for call in calls] == wanted
        assert await asyncio.gather(*(there.infer(call, ROWS) for call in calls)) == wanted
    finally:
        await there.close()
        await here.close()
    return there.engine_class


def main() -> None:
    """Start the peer, compare, say so."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        model = onnx_models.write(Path(folder))["small"]
        first = body_of(np.zeros(onnx_models.FIELDS))
        with peer("mlserver", sys.argv[1], model, 0, first) as server:
            told = asyncio.run(compare(server.url, model))
    sys.stdout.write(f"{told}: {2 * CALLS} calls of {ROWS} rows, every bit as ONNX Runtime here\n")


if __name__ == "__main__":
    main()
