"""How fast a loaded engine really is here, in a few seconds: the numbers behind a proposed price.

Text: the prompt's pace from one long prompt, the output's from as many calls at once as there are
slots. Tensors: rows of one batch again and again; texts to embed and images the same. Audio: one
window of thirty seconds, without a word in it, whose pace is halved for the words.
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from inferpool.engines.base import Progress, Sampling, Tensor, TextCall
from inferpool.market.forecast import per_hour
from inferpool.models.manifest import Manifest
from inferpool.protocol.errors import Unavailable

MEASURED: Final = frozenset({"chat", "completion", "tensor", "embedding", "image", "transcription"})
_OUTPUT: Final = 16
_PROMPT: Final = "The quick brown fox jumps over the lazy dog. " * 12
_TENSOR_S: Final = 0.3
_WINDOW_S: Final = 30  # what Whisper hears at once
_RATE: Final = 16_000
_WORDS: Final = 2  # to write down a window of speech takes about as long again as to hear it
_ROWS: Final = 32
_WIDTHS: Final = {"BOOL": 1, "FP16": 2, "FP32": 4, "FP64": 8} | {
    f"{sign}INT{8 * size}": size for sign in ("", "U") for size in (1, 2, 4, 8)
}
_TEXT: Final = (40).to_bytes(4, "little") + b"words of a text, about as long as a line"


@dataclass(frozen=True, slots=True)
class Speed:
    """Units an hour at full work: only in for tensors, texts and audio, only out for images.

    `first_ms`: to the first unit.
    """

    in_per_hour: int
    out_per_hour: int
    first_ms: float
    took_ms: float

    def per_second(self) -> tuple[float, float]:
        """In and out, for people."""
        return self.in_per_hour / 3600, self.out_per_hour / 3600


async def measure_engine(manifest: Manifest, engine: Any) -> Speed:
    """Measure a started engine. Raises Unavailable where it fails."""
    assert manifest.task in MEASURED, "the caller asks for what can be measured"
    if manifest.task == "tensor":
        return await _tensors(manifest, engine)
    if manifest.task == "embedding":
        return await _embeddings(engine)
    if manifest.task == "image":
        return await _images(engine)
    if manifest.task == "transcription":
        return await _audio(engine)
    return await _text(engine)


async def _text(engine: Any) -> Speed:
    begun = time.perf_counter()
    await _call(engine, "Hello", 1, 0)  # what is slow only once: pages, graphs
    units, first_ms, _ = await _call(engine, _PROMPT, 1, 1)
    started = time.perf_counter()
    calls = [_call(engine, f"Count, {number}", _OUTPUT, number) for number in range(engine.slots)]
    done = await asyncio.gather(*calls)
    spent_ms = 1000 * (time.perf_counter() - started)
    produced = max(1, sum(count for _, _, count in done))
    return Speed(
        per_hour(max(1, units), first_ms),
        per_hour(produced, spent_ms),
        first_ms,
        1000 * (time.perf_counter() - begun),
    )


async def _call(engine: Any, text: str, most: int, seed: int) -> tuple[int, float, int]:
    """Prompt units, ms to the first token, tokens."""
    messages: tuple[dict[str, object], ...] = ({"role": "user", "content": text},)
    call = TextCall(messages, None, most, Sampling(seed=seed))
    progress, begun = Progress(), time.perf_counter()
    units, first_ms, produced = 0, 0.0, 0
    async with aclosing(engine.generate(call, progress)) as chunks:
        async for chunk in chunks:
            first_ms = first_ms or 1000 * (time.perf_counter() - begun)
            produced += len(chunk.ids)
            units = chunk.prompt_units or progress.prompt_units or units
    return units, first_ms, produced


async def _tensors(manifest: Manifest, engine: Any) -> Speed:
    rows = min(_ROWS, manifest.limits.max_rows or _ROWS)
    inputs = [_rows(spec.name, spec.datatype, spec.shape, rows) for spec in engine.inputs]
    begun = time.perf_counter()
    await engine.infer(inputs, rows)
    first_ms = 1000 * (time.perf_counter() - begun)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < _TENSOR_S:
        await engine.infer(inputs, rows)
        done += rows
    spent_ms = 1000 * (time.perf_counter() - started)
    return Speed(per_hour(done, spent_ms), 0, first_ms, 1000 * (time.perf_counter() - begun))


async def _embeddings(engine: Any) -> Speed:
    texts = [_PROMPT[:120]] * 4

    async def once() -> int:
        units: int = (await engine.embed(texts)).prompt_units
        return units

    per_unit, first_ms, took_ms = await _again(once)
    return Speed(per_unit, 0, first_ms, took_ms)


async def _images(engine: Any) -> Speed:
    """One picture is one step of the one-step models that are served; its unit goes out."""

    async def once() -> int:
        return len(await engine.draw("terrain", 1, 1))

    per_unit, first_ms, took_ms = await _again(once)
    return Speed(0, per_unit, first_ms, took_ms)


async def _audio(engine: Any) -> Speed:
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + 2 * _RATE * _WINDOW_S, b"WAVE", b"fmt ", 16, 1, 1, _RATE, 2 * _RATE, 2, 16),
        *(b"data", 2 * _RATE * _WINDOW_S),
    )
    tone = struct.pack("<32h", *(round(8000 * math.sin(math.pi * at / 16)) for at in range(32)))
    clip = head + tone * (_RATE * _WINDOW_S // 32)

    async def once() -> int:
        await engine.transcribe(clip, "en", 1000 * _WINDOW_S)
        return _WINDOW_S

    per_unit, first_ms, took_ms = await _again(once)
    return Speed(max(1, per_unit // _WORDS), 0, first_ms, took_ms)


async def _again(once: Callable[[], Awaitable[int]]) -> tuple[int, float, float]:
    """Units an hour, ms to the first answer, ms in all; at least one run after the first."""
    begun = time.perf_counter()
    await once()
    first_ms = 1000 * (time.perf_counter() - begun)
    started, done = time.perf_counter(), await once()
    while time.perf_counter() - started < _TENSOR_S:
        done += await once()
    spent_ms = 1000 * (time.perf_counter() - started)
    return per_hour(done, spent_ms), first_ms, 1000 * (time.perf_counter() - begun)


def _rows(name: str, datatype: str, shape: tuple[int, ...], rows: int) -> Tensor:
    full = (rows, *(1 if size < 0 else size for size in shape[1:]))
    count = prod(full)
    if datatype == "BYTES":
        return Tensor(name, datatype, full, _TEXT * count)
    if datatype not in _WIDTHS:
        raise Unavailable(f"{datatype} inputs are not measured", code="engine_unavailable")
    return Tensor(name, datatype, full, bytes(count * _WIDTHS[datatype]))
