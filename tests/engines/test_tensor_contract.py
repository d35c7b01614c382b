"""What every tensor engine must do: the fake one, and ONNX Runtime with the same model."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_writer as onnx
import pytest

from inferpool.engines.base import Tensor, TensorEngine, TensorSpec
from inferpool.engines.fake import FakeTensorEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.protocol.errors import BadRequest, Unavailable

Make = Callable[[], TensorEngine]


@pytest.fixture(params=["fake", "onnx"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "fake":
        return FakeTensorEngine
    path = tmp_path / "sums.onnx"
    path.write_bytes(onnx.row_sums())
    return lambda: OnnxEngine(path, "sums")


def tensor(*rows: tuple[float, float, float, float]) -> Tensor:
    numbers = [number for row in rows for number in row]
    return Tensor("x", "FP32", (len(rows), 4), struct.pack(f"<{len(numbers)}f", *numbers))


def sums(outputs: list[Tensor]) -> list[float]:
    (output,) = outputs
    rows, one = output.shape
    assert (output.name, output.datatype, one) == ("sum", "FP32", 1)
    return list(struct.unpack(f"<{rows}f", output.data))


GOOD = tensor((1, 2, 3, 4))


async def test_declares_itself(make: Make) -> None:
    engine = make()
    await engine.start()
    assert engine.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert engine.outputs == (TensorSpec("sum", "FP32", (-1, 1)),)
    assert len(engine.engine_class.split("/")) == 3
    assert engine.ready()
    await engine.close()


async def test_rows(make: Make) -> None:
    engine = make()
    await engine.start()
    assert sums(await engine.infer([GOOD], 1)) == [10]
    assert sums(await engine.infer([tensor((1, 0, 0, 0), (0.5, 0.25, 0, -1))], 2)) == [1, -0.25]
    await engine.close()


async def test_many_callers_get_their_own_rows(make: Make) -> None:
    engine = make()
    await engine.start()

    async def caller(number: int) -> None:
        rows = [(float(number), float(row), 0.0, 1.0) for row in range(1 + number % 5)]
        expected = [number + row + 1 for row in range(len(rows))]
        assert sums(await engine.infer([tensor(*rows)], len(rows))) == expected

    await asyncio.gather(*(caller(number) for number in range(256)))
    await engine.close()


@pytest.mark.parametrize(
    ("inputs", "rows", "told"),
    [
        ([], 1, "'x' is missing: FP32 \\[-1, 4\\]"),
        ([replace(GOOD, name="y")], 1, "no input 'y'; it takes x"),
        ([GOOD, GOOD], 1, "given twice"),
        ([replace(GOOD, datatype="FP64")], 1, "'x' is FP64, not FP32"),
        ([replace(GOOD, datatype="nonsense")], 1, "'x' is nonsense, not FP32"),
        ([replace(GOOD, shape=(4,))], 1, "'x' has the shape \\[4\\], not FP32 \\[-1, 4\\]"),
        ([replace(GOOD, shape=(1, 5))], 1, "'x' has the shape"),
        ([replace(GOOD, shape=(-1, 4))], 1, "'x' has the shape"),
        ([replace(GOOD, shape=(2, 4))], 2, "16 bytes of data, its shape 32"),
        ([replace(GOOD, data=GOOD.data + b"\0")], 1, "17 bytes of data, its shape 16"),
        ([GOOD], 2, "'x' has 1 rows, the request 2"),
    ],
)
async def test_wrong_tensors_are_named(
    make: Make, inputs: list[Tensor], rows: int, told: str
) -> None:
    engine = make()
    await engine.start()
    with pytest.raises(BadRequest, match=told) as caught:
        await engine.infer(inputs, rows)
    assert caught.value.code == "invalid_tensor"
    assert sums(await engine.infer([GOOD], 1)) == [10]
    await engine.close()


async def test_not_started_and_closed(make: Make) -> None:
    engine = make()
    for _ in range(2):
        assert not engine.ready()
        with pytest.raises(Unavailable) as caught:
            await engine.infer([GOOD], 1)
        assert caught.value.code == "engine_unavailable"
        await engine.start()
        await engine.close()
