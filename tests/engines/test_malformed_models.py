"""Models made to harm their reader: truncated, lying about sizes, cyclic, foreign.

Whatever happens to the child that reads one, this process stays, the engine says Unavailable in
bounded time, no process is left, and a good model loads afterwards.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from onnx_writer import (
    FLOAT,
    external,
    floats,
    graph,
    graph_attribute,
    message,
    model,
    node,
    number,
    row_sums,
    value,
    varint,
)

from inferpool.engines.base import Tensor
from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.protocol.errors import Unavailable

CASE_S = 2.0  # on an idle machine 0.3 s, most of it the child's imports
SLACK_S = 8.0  # where other tests want the same cores; what hangs would need for ever
HUGE = 2**63 - 1
pytestmark = pytest.mark.timeout(60)


def children() -> set[str]:
    """Process ids of this process's children, whichever of its threads made them."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


# -- GGUF ----------------------------------------------------------------------------------------

U8, U32, F32, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10


def text(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: bytes, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def tensor(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf(
    entries: list[bytes],
    tensors: list[bytes],
    *,
    version: int = 3,
    entry_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    counts = struct.pack(
        "<Qq" if (entry_count or 0) < 0 else "<QQ",
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    head = b"GGUF" + struct.pack("<I", version) + counts + b"".join(entries + tensors)
    return head + bytes(-len(head) % 32) + bytes(4096)


def llama(**changes: bytes) -> list[bytes]:
    """The hyperparameters of a tiny llama; each can be replaced."""
    fields = {
        "general.architecture": entry(b"general.architecture", STRING, text(b"llama")),
        **{
            f"llama.{key}": entry(b"llama." + key.encode(), U32, struct.pack("<I", number))
            for key, number in {
                "context_length": 64,
                "embedding_length": 32,
                "block_count": 1,
                "feed_forward_length": 64,
                "attention.head_count": 2,
            }.items()
        },
        "rms": entry(b"llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        "model": entry(b"tokenizer.ggml.model", STRING, text(b"gpt2")),
    }
    return list((fields | changes).values())


def u32(key: str, number: int) -> bytes:
    return entry(key.encode(), U32, struct.pack("<I", number))


def array(key: bytes, kind: int, count: int, data: bytes = b"") -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", kind, count) + data)


ONE = tensor(b"token_embd.weight", [32, 16])
WHOLE = gguf(llama(), [ONE])
LIES = {
    "huge tensor count": gguf(llama(), [ONE], tensor_count=2**62),
    "huge entry count": gguf(llama(), [ONE], entry_count=2**62),
    "negative counts": gguf(llama(), [ONE], entry_count=-1),
    "huge key length": b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, HUGE) + bytes(64),
    "huge string": gguf([entry(b"general.architecture", STRING, text(b"x", HUGE))], [ONE]),
    "huge array": gguf([*llama(), array(b"tokenizer.ggml.tokens", U8, HUGE)], [ONE]),
    "huge array of strings": gguf([*llama(), array(b"tokenizer.ggml.tokens", STRING, 2**40)], []),
    "array in array": gguf([*llama(), array(b"x", ARRAY, 1, struct.pack("<IQ", ARRAY, 9))], []),
    "unknown type": gguf([entry(b"general.architecture", 99, b"")], []),
    "architecture as number": gguf(
        llama(**{"general.architecture": u32("general.architecture", 1)}), [ONE]
    ),
    "unknown architecture": gguf([entry(b"general.architecture", STRING, text(b"../x"))], [ONE]),
    "dimensions that overflow": gguf(llama(), [tensor(b"token_embd.weight", [2**32, 2**32])]),
    "negative dimension": gguf(llama(), [tensor(b"token_embd.weight", [2**64 - 1, 2])]),
    "too many dimensions": gguf(llama(), [tensor(b"token_embd.weight", [1] * 64)]),
    "unknown tensor type": gguf(llama(), [tensor(b"token_embd.weight", [32, 16], kind=9999)]),
    "offset beyond the end": gguf(llama(), [tensor(b"token_embd.weight", [32, 16], 0, 2**60)]),
    "the same tensor twice": gguf(llama(), [ONE, ONE]),
    "no tensors": gguf(llama(), []),
    "zero alignment": gguf([*llama(), u32("general.alignment", 0)], [ONE]),
    "odd alignment": gguf([*llama(), u32("general.alignment", 3)], [ONE]),
    "a million layers": gguf(
        llama(**{"llama.block_count": u32("llama.block_count", 10**6)}), [ONE]
    ),
    "no heads": gguf(
        llama(**{"llama.attention.head_count": u32("llama.attention.head_count", 0)}), [ONE]
    ),
    "version 0": gguf(llama(), [ONE], version=0),
    "other byte order": gguf(llama(), [ONE], version=3 << 24),
    "keys that are no text": gguf([*llama(), entry(b"\xff\0\xfe", U8, b"\0")], [ONE]),
}


def flipped(data: bytes, seed: int, within: int) -> bytes:
    """Four bits of the header flipped."""
    draw, made = random.Random(seed), bytearray(data)
    for _ in range(4):
        made[draw.randrange(4, within)] ^= 1 << draw.randrange(8)
    return bytes(made)


HEAD = len(WHOLE) - 4096
GGUF = {
    **{f"cut at {at}": WHOLE[:at] for at in (0, 3, 8, 23, 40, HEAD // 2, HEAD - 40)},
    **LIES,
    **{f"bits flipped {seed}": flipped(WHOLE, seed, HEAD) for seed in range(8)},
}


async def refused(engine: LlamaCppEngine | OnnxEngine) -> str:
    """Start it; it must say Unavailable, in time, with nothing left behind."""
    before, begun_s = children(), time.monotonic()
    async with asyncio.timeout(CASE_S + SLACK_S):
        with pytest.raises(Unavailable) as caught:
            await engine.start()
    assert caught.value.code == "engine_unavailable"
    assert not engine.ready()
    await engine.close()
    assert children() == before, "a child is left"
    assert time.monotonic() - begun_s < CASE_S + SLACK_S
    return caught.value.message


@pytest.mark.parametrize("name", GGUF)
async def test_malformed_gguf_ends_in_a_refusal(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[name])
    await refused(LlamaCppEngine(path, "bad", "f32", slots=1, context=64, threads=1))


async def test_a_good_model_loads_beside_a_bad_one(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(LIES["huge array of strings"])
    good = LlamaCppEngine(gguf, "good", "Q4_1", slots=1, context=128, threads=1)
    bad = LlamaCppEngine(path, "bad", "f32", slots=1, context=64, threads=1)
    await asyncio.gather(good.start(), refused(bad))
    assert good.ready()
    await good.close()


# -- ONNX ----------------------------------------------------------------------------------------

X, Y = value("x", FLOAT, ["N", 4]), value("y", FLOAT, ["N", 4])
GOOD = row_sums()


def made_of(*nodes: bytes, initializers: tuple[bytes, ...] = (), **more: object) -> bytes:
    return model(graph(list(nodes), [X], [Y], list(initializers)), **more)  # type: ignore[arg-type]


def nested(depth: int) -> bytes:
    inner = graph([node("Identity", ["x"], ["y"])], [], [Y])
    for _ in range(depth):
        inner = graph(
            [node("If", ["c"], ["y"], attributes=graph_attribute("then_branch", inner))], [], [Y]
        )
    return model(inner)


def int64s(name: str, *numbers: int) -> bytes:
    raw = struct.pack(f"<{len(numbers)}q", *numbers)
    return number(1, len(numbers)) + number(2, 7) + message(8, name) + message(9, raw)


def function(name: str, calls: str) -> bytes:
    """A local function that calls another one."""
    body = message(7, node(calls, ["a"], ["b"], domain="local"))
    return message(
        25,
        message(1, name)
        + message(4, "a")
        + message(5, "b")
        + body
        + message(9, message(1, "local") + number(2, 1))
        + message(10, "local"),
    )


ENDLESS = graph(
    [node("Identity", ["go"], ["again"]), node("Identity", ["v"], ["w"])],
    [value("i", 7, []), value("go", 9, []), value("v", FLOAT, ["N", 4])],
    [value("again", 9, []), value("w", FLOAT, ["N", 4])],
)
BOOL_TRUE = number(2, 9) + message(8, "true") + message(9, b"\x01")

ONNX = {
    **{f"cut at {at}": GOOD[:at] for at in (0, 1, 5, 20, len(GOOD) // 2, len(GOOD) - 1)},
    "not protobuf": b"\xff" * 256,
    "length beyond the end": message(7, b"")[:1] + varint(2**40) + bytes(16),
    "custom operators": made_of(node("Steal", ["x"], ["y"], domain="evil"), domains=("", "evil")),
    "operators undeclared": made_of(node("Steal", ["x"], ["y"], domain="evil")),
    "data in another file": made_of(
        node("Add", ["x", "w"], ["y"]), initializers=(external("w", "../../etc/passwd"),)
    ),
    "a shape larger than its data": made_of(
        node("Add", ["x", "w"], ["y"]), initializers=(floats("w", [2**40], [1.0]),)
    ),
    "a shape that overflows": made_of(
        node("Add", ["x", "w"], ["y"]), initializers=(floats("w", [2**33, 2**33], [1.0]),)
    ),
    "a negative shape": made_of(
        node("Add", ["x", "w"], ["y"]), initializers=(floats("w", [2**64 - 1], [1.0]),)
    ),
    "a petabyte of zeros": made_of(
        node("ConstantOfShape", ["s"], ["z"]),
        node("ReduceSum", ["z"], ["r"]),
        node("Add", ["x", "r"], ["y"]),
        initializers=(int64s("s", 2**48),),
    ),
    "a cycle": made_of(node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])),
    "a node that feeds itself": made_of(node("Add", ["x", "y"], ["y"])),
    "nothing makes the output": made_of(node("Neg", ["x"], ["z"])),
    "no operator of that name": made_of(node("NoSuchOp", ["x"], ["y"])),
    "graphs within graphs": nested(200),
    "a function that calls itself": made_of(
        node("F", ["x"], ["y"], domain="local"),
        domains=("", "local"),
        functions=function("F", "F"),
    ),
    "functions in a circle": made_of(
        node("F", ["x"], ["y"], domain="local"),
        domains=("", "local"),
        functions=function("F", "G") + function("G", "F"),
    ),
    "an unknown element type": model(
        graph([node("Identity", ["x"], ["y"])], [value("x", 99, [1])], [value("y", 99, [1])])
    ),
    "a loop without an end": made_of(
        node("Loop", ["", "true", "x"], ["y"], attributes=graph_attribute("body", ENDLESS)),
        initializers=(BOOL_TRUE,),
    ),
}


@pytest.mark.parametrize("name", ONNX)
async def test_malformed_onnx_ends_in_a_refusal(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(ONNX[name])
    await refused(OnnxEngine(path, "bad", trial_timeout_s=CASE_S))


@pytest.mark.parametrize("seed", range(12))
async def test_bits_flipped_in_onnx_are_refused_or_harmless(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(flipped(GOOD, seed, len(GOOD)))
    engine = OnnxEngine(path, "flipped", trial_timeout_s=CASE_S)
    with suppress(Unavailable):
        await engine.start()
    await engine.close()
    assert not children()


async def test_a_good_onnx_loads_after_a_bad_one(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.onnx", tmp_path / "good.onnx"
    bad.write_bytes(ONNX["a function that calls itself"])
    good.write_bytes(GOOD)
    await refused(OnnxEngine(bad, "bad", trial_timeout_s=CASE_S))
    engine = OnnxEngine(good, "good")
    await engine.start()
    row = Tensor("x", "FP32", (1, 4), struct.pack("<4f", 1, 2, 3, 4))
    (answer,) = await engine.infer([row], 1)
    assert struct.unpack("<f", answer.data) == (10.0,)
    await engine.close()
