"""ONNX Runtime: every datatype, what is refused, and the batcher."""

from __future__ import annotations

import asyncio
import struct
import threading
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx_writer as onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from inferpool.engines.base import Tensor
from inferpool.engines.batching import Arrays, Batcher
from inferpool.engines.onnx import OnnxEngine
from inferpool.engines.onnx_file import reason_to_refuse
from inferpool.engines.tensor_check import WIDTHS, check_tensor
from inferpool.engines.tensors import from_numpy, to_numpy
from inferpool.protocol.errors import BadRequest, InferpoolError, Unavailable


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


async def answer(model: bytes, tmp_path: Path, tensor: Tensor) -> Tensor:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    engine = OnnxEngine(path, "model")
    await engine.start()
    try:
        (output,) = await engine.infer([tensor], tensor.shape[0])
    finally:
        await engine.close()
    return output


@pytest.mark.parametrize(
    ("kind", "datatype", "data"),
    [
        (onnx.FLOAT, "FP32", struct.pack("<2f", 1.5, -2)),
        (onnx.FLOAT16, "FP16", struct.pack("<2e", 1.5, -2)),
        (onnx.INT64, "INT64", struct.pack("<2q", 2**60, -1)),
        (onnx.BOOL, "BOOL", b"\1\0"),
        (onnx.STRING, "BYTES", packed("grüße".encode(), b"")),
        (onnx.STRING, "BYTES", packed(b"a" * 1000, "中".encode())),
    ],
)
async def test_datatypes_go_through(tmp_path: Path, kind: int, datatype: str, data: bytes) -> None:
    given = Tensor("x", datatype, (2, 1), data)
    assert await answer(onnx.identity(kind), tmp_path, given) == Tensor("y", datatype, (2, 1), data)


async def test_any_true_byte_is_one(tmp_path: Path) -> None:
    given = Tensor("x", "BOOL", (1, 3), b"\0\7\xff")
    assert (await answer(onnx.identity(onnx.BOOL), tmp_path, given)).data == b"\0\1\1"


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((1, 1), b""),
        ((1, 1), b"\5\0\0\0abc"),
        ((1, 1), packed(b"a", b"b")),
        ((1, 2), packed(b"a")),
        ((1, 1), packed(b"a") + b"\0"),
        ((1, 1), packed(b"\xff\xfe")),
        ((2**40, 2**20), b""),
    ],
)
async def test_wrong_bytes_are_refused(tmp_path: Path, shape: tuple[int, int], data: bytes) -> None:
    with pytest.raises(BadRequest, match="'x'") as caught:
        await answer(onnx.identity(onnx.STRING), tmp_path, Tensor("x", "BYTES", shape, data))
    assert caught.value.code == "invalid_tensor"


@given(
    st.sampled_from(sorted(WIDTHS)).flatmap(
        lambda name: st_numpy.arrays(
            to_numpy(Tensor("x", name, (0,), b"")).dtype, st_numpy.array_shapes(max_side=4)
        )
    )
)
def test_numbers_there_and_back(array: np.ndarray) -> None:  # type: ignore[type-arg]
    tensor = from_numpy("x", array)
    back = to_numpy(tensor)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape


@given(st.lists(st.text(max_size=20), min_size=1, max_size=8))
def test_strings_there_and_back(texts: list[str]) -> None:
    tensor = from_numpy("x", np.array(texts, dtype=object))
    assert to_numpy(tensor).tolist() == texts


@given(st.binary(max_size=60), st.integers(0, 4))
def test_any_bytes_are_refused_or_read(data: bytes, count: int) -> None:
    from inferpool.engines.base import TensorSpec

    tensor = Tensor("x", "BYTES", (count,), data)
    try:
        check_tensor(TensorSpec("x", "BYTES", (-1,)), tensor)
        assert from_numpy("x", to_numpy(tensor)) == tensor
    except InferpoolError as error:
        assert error.code == "invalid_tensor"


# -- what is refused before it is loaded ---------------------------------------------------------

IN, OUT = onnx.value("x", onnx.FLOAT, ["N"]), onnx.value("y", onnx.FLOAT, ["N"])
FOREIGN = onnx.node("Steal", ["x"], ["y"], domain="evil.ops")
BRANCH = onnx.graph([FOREIGN], [], [OUT])
EXTERNAL = onnx.external("w", "../../etc/passwd")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (b"", "empty"),
        (b"not a model", "not an ONNX model"),
        (onnx.row_sums()[:-9], "not an ONNX model"),
        (onnx.number(1, 8), "not an ONNX model"),
        (onnx.model(onnx.graph([FOREIGN], [IN], [OUT])), "custom operators: evil.ops"),
        (onnx.model(onnx.graph([], [IN], [IN]), ["", "evil.ops"]), "custom operators: evil.ops"),
        (
            onnx.model(
                onnx.graph(
                    [
                        onnx.node(
                            "If",
                            ["c"],
                            ["y"],
                            attributes=onnx.graph_attribute("then_branch", BRANCH),
                        )
                    ],
                    [IN],
                    [OUT],
                )
            ),
            "custom operators: evil.ops",
        ),
        (onnx.model(onnx.graph([], [IN], [IN], [EXTERNAL])), "other files"),
    ],
    ids=range(8),
)
async def test_refused(tmp_path: Path, model: bytes, told: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    engine = OnnxEngine(path, "model")
    with pytest.raises(Unavailable, match=told) as caught:
        await engine.start()
    assert caught.value.code == "engine_unavailable"
    assert not engine.ready()
    await engine.close()


def test_functions_within_the_model_are_data(tmp_path: Path) -> None:
    function = onnx.message(25, onnx.message(1, "Twice") + onnx.message(10, "my.functions"))
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.model(onnx.graph([], [IN], [IN]), ["", "my.functions"], function))
    assert reason_to_refuse(path) is None


@given(st.binary(min_size=1, max_size=200))
def test_any_file_is_read_to_an_answer(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    assert reason_to_refuse(path) is not None


async def test_valid_protobuf_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.model(onnx.graph([onnx.node("NoSuchOp", ["x"], ["y"])], [IN], [OUT])))
    engine = OnnxEngine(path, "model")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        await engine.start()
    missing = OnnxEngine(tmp_path / "none.onnx", "none")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        await missing.start()


async def test_the_spam_model() -> None:
    path = Path(str(files("inferpool.models"))) / "data" / "spam.onnx"
    assert reason_to_refuse(path) is None
    engine = OnnxEngine(path, "spam")
    await engine.start()
    (spec,) = engine.inputs
    assert spec.datatype == "BYTES"
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    mails = [b"free money winner click now", b"the meeting moved to three, agenda attached"]
    alone = [
        await engine.infer([Tensor(spec.name, "BYTES", shape, packed(mail))], 1) for mail in mails
    ]
    together = await asyncio.gather(
        *(
            engine.infer([Tensor(spec.name, "BYTES", shape, packed(mails[number % 2]))], 1)
            for number in range(64)
        )
    )
    await engine.close()
    assert [len(outputs) for outputs in alone] == [len(engine.outputs)] * 2
    for number, outputs in enumerate(together):
        for got, expected in zip(outputs, alone[number % 2], strict=True):
            assert (got.name, got.datatype, got.shape) == (
                expected.name,
                expected.datatype,
                expected.shape,
            )
            if got.datatype == "FP32":
                np.testing.assert_allclose(to_numpy(got), to_numpy(expected), rtol=2e-6)
            else:
                assert got == expected


# -- the batcher ---------------------------------------------------------------------------------


class Gate:
    """A model that doubles, held until it is released; it notes the rows of each run."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, arrays: Arrays) -> Arrays:
        self.runs.append(len(arrays[0]))
        self.entered.release()
        assert self.open.wait(10)
        return [arrays[0] * 2]


def rows(count: int, width: int = 2) -> Arrays:
    return [np.full((count, width), count, dtype=np.float32)]


async def submit(batcher: Batcher, count: int, width: int = 2) -> None:
    (output,) = await batcher.submit(rows(count, width), count)
    assert output.shape == (count, width)
    assert (output == 2 * count).all()


async def test_what_queued_during_a_run_goes_together() -> None:
    gate = Gate()
    batcher = Batcher(gate, joinable=True, max_rows=6)
    tasks = [asyncio.create_task(submit(batcher, 1))]
    await asyncio.to_thread(gate.entered.acquire)
    tasks += [asyncio.create_task(submit(batcher, count)) for count in (1, 2, 3, 4, 9)]
    tasks += [asyncio.create_task(submit(batcher, 1, 3)), asyncio.create_task(submit(batcher, 1))]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(*tasks)
    # a lone caller at once; then at most 6 rows, a larger call alone, other widths apart
    assert gate.runs == [1, 6, 4, 9, 1, 1]
    await batcher.close()


async def test_who_left_is_not_run() -> None:
    gate = Gate()
    batcher = Batcher(gate, joinable=True)
    first = asyncio.create_task(submit(batcher, 1))
    await asyncio.to_thread(gate.entered.acquire)
    second = asyncio.create_task(submit(batcher, 5))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    third = asyncio.create_task(submit(batcher, 2))
    await asyncio.sleep(0)
    gate.open.set()
    await third
    assert gate.runs == [1, 2]
    await batcher.close()


async def test_rows_out_that_are_not_rows_in() -> None:
    runs: list[int] = []
    gate = threading.Event()

    def total(arrays: Arrays) -> Arrays:
        runs.append(len(arrays[0]))
        assert gate.wait(10)
        return [arrays[0].sum(axis=0)]

    batcher = Batcher(total, joinable=True)
    tasks = [asyncio.create_task(batcher.submit(rows(1, 3), 1)) for _ in range(4)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks)
    assert all(result[0].tolist() == [1, 1, 1] for result in results)
    assert not batcher.joinable
    assert runs[-1] == 1
    await batcher.close()


async def test_a_failing_batch_fails_its_callers_only() -> None:
    gate = threading.Event()

    def run(arrays: Arrays) -> Arrays:
        assert gate.wait(10)
        if (arrays[0] < 0).any():
            raise Unavailable("negative", code="engine_failed")
        return arrays

    batcher = Batcher(run, joinable=False)
    calls = [batcher.submit([np.array([float(n)])], 1) for n in (1, -1, 2)]
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    gate.set()
    good, bad, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, Unavailable)
    assert isinstance(good, list)
    assert isinstance(last, list)
    await batcher.close()


async def test_the_queue_is_bounded_and_close_fails_it() -> None:
    gate = Gate()
    batcher = Batcher(gate, joinable=True, max_queued=2)
    running = asyncio.create_task(submit(batcher, 1))
    await asyncio.to_thread(gate.entered.acquire)
    waiting = [asyncio.create_task(submit(batcher, 1)) for _ in range(3)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = [task for task in waiting if task.done()]
    error = refused.exception()
    assert isinstance(error, Unavailable)
    assert (error.code, error.retry_after_s) == ("overloaded", 1)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    gate.open.set()
    await closing
    await running  # what ran was let to its end
    results = await asyncio.gather(*waiting, return_exceptions=True)
    codes = [result.code for result in results if isinstance(result, Unavailable)]
    assert sorted(codes) == ["engine_unavailable", "engine_unavailable", "overloaded"]
    with pytest.raises(Unavailable):
        await submit(batcher, 1)
    assert not any(t.name.startswith("inferpool-tensor") for t in threading.enumerate())


async def test_one_after_the_other_through_the_thread() -> None:
    """The next call comes in the step in which the worker found its queue empty."""
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate, joinable=True, inline_s=0.0)
    for _ in range(50):
        await submit(batcher, 1)
    await batcher.close()


async def test_a_bug_in_a_run_fails_its_callers_and_no_more() -> None:
    def run(arrays: Arrays) -> Arrays:
        raise ZeroDivisionError

    batcher = Batcher(run, joinable=True)
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await batcher.submit(rows(1), 1)
        assert caught.value.code == "engine_failed"
    await batcher.close()


async def test_a_tiny_model_runs_on_the_loop() -> None:
    threads: set[int] = set()

    def tiny(arrays: Arrays) -> Arrays:
        threads.add(threading.get_ident())
        return arrays

    batcher = Batcher(tiny, joinable=True)
    for _ in range(5):
        batcher.learn(rows(1))
    await asyncio.gather(*(batcher.submit(rows(1), 1) for _ in range(100)))
    assert threads == {threading.get_ident()}
    await batcher.close()
