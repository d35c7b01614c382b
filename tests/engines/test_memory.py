"""Memory comes with a model and goes with it, in this process and in a child: it is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_writer as onnx
import pytest

from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.node.load import LoadMeter

WEIGHTS = 64 << 20  # of each model, at least
LEFT = 24 << 20  # what a runtime's own buffers may keep
pytestmark = pytest.mark.timeout(90)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def deep(path: Path) -> Path:
    """A model whose weights are 64 times one MiB: as many pieces as a real one's."""
    width = 512
    layers = WEIGHTS // (4 * width * width)
    piece = [0.5] * (width * width)
    graph = onnx.graph(
        [onnx.node("MatMul", [f"h{at}", f"w{at}"], [f"h{at + 1}"]) for at in range(layers)],
        [onnx.value("h0", onnx.FLOAT, ["N", width])],
        [onnx.value(f"h{layers}", onnx.FLOAT, ["N", width])],
        [onnx.floats(f"w{at}", [width, width], piece) for at in range(layers)],
    )
    path.write_bytes(onnx.model(graph))
    return path


@pytest.fixture(params=["onnx", "llamacpp"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    if request.param == "onnx":
        path = deep(tmp_path / "deep.onnx")
        return lambda: OnnxEngine(path, "deep")
    gguf: Path = request.getfixturevalue("gguf")
    return lambda: LlamaCppEngine(gguf, "small", "Q4_1", slots=2, context=512, threads=1)


async def test_memory_comes_and_goes_with_the_model(make: Callable[[], Any]) -> None:
    meter, engine = LoadMeter(), make()
    await engine.start()  # the runtime's own code stays where it runs in this process
    await engine.close()
    before = meter.own_memory()
    for _ in range(2):
        await engine.start()
        assert engine.ready()
        assert meter.own_memory() - before >= WEIGHTS
        pid = getattr(engine, "pid", None)
        await engine.close()
        assert not engine.ready()
        assert meter.own_memory() - before <= LEFT
        assert pid is None or gone(pid), "its child died with it"


async def test_closing_twice_and_before_the_start_is_nothing(make: Callable[[], Any]) -> None:
    engine = make()
    await engine.close()
    await engine.start()
    await asyncio.gather(engine.close(), engine.close())
    assert not engine.ready()
