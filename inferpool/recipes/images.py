"""Pictures from seeds: terrain by a one-step diffusion model, the same picture for the same seed.

What a field needs of generated pictures is that they can be made again: a level of a game, a test
case of a planner. The prompt says how difficult the terrain is; whether the model obeys is
measured on the heights.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.metrics import accuracy, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.use import Meter, Progress, Use, in_process, result

MODEL: Final = "terrain-128"
DIFFICULTIES: Final = (1, 20, 40, 60, 80, 100)
SMALL: Final = (1, 100)
SEEDS: Final = (1, 2, 3)


def pixels(png: bytes) -> Array:
    """Heights of a grey PNG of 8 bits whose rows are not filtered, as the engine writes them."""
    at, chunks = 8, dict[bytes, bytes]()
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        chunks[kind] = png[at + 8 : at + 8 + size]
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8)
    return rows.reshape(height, width + 1)[:, 1:]


def roughness(heights: Array) -> float:
    """Mean step between neighbours, of 255: what a vehicle would feel."""
    field = heights.astype(float)
    return float(np.abs(np.diff(field, axis=0)).mean() + np.abs(np.diff(field, axis=1)).mean())


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, with mean ranks for ties; NaN where one does not vary."""
    ranks = [_ranks(values) for values in (a, b)]
    if min(ranks[0].std(), ranks[1].std()) == 0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return means


def play(pool: PoolScorer, small: bool, progress: Progress) -> list[dict[str, Any]]:
    """Every difficulty with every seed, twice; the second time has to give the same bytes."""
    meter, api = Meter(), pool.openai().images.with_raw_response
    wanted = [(level, seed) for level in (SMALL if small else DIFFICULTIES) for seed in SEEDS]

    def draw(level: int, seed: int) -> bytes:
        answer = meter.call(
            lambda: api.generate(
                model=MODEL,
                prompt=_prompt(level),
                response_format="b64_json",
                extra_body={"seed": seed},
            )
        )
        return base64.b64decode(answer.data[0].b64_json)

    first = []
    for done, (level, seed) in enumerate(wanted, 1):
        first.append(draw(level, seed))
        progress(MODEL, done, len(wanted))
    again = [draw(level, seed) for level, seed in wanted]
    same = np.array([a == b for a, b in zip(first, again, strict=True)], dtype=float)
    others = np.array([a == b for a, b in zip(first, first[1:] + first[:1], strict=True)])
    levels = np.array([level for level, _ in wanted], dtype=float)
    rough = np.array([roughness(pixels(png)) for png in first])
    ones = np.ones(len(wanted))
    figures = [
        figure(
            "same seed, same bytes", accuracy, ones, same, others.astype(float), "another seed",
            bar=1.0,
        ),
        figure(
            "difficulty asked and roughness drawn, rank correlation", rank_correlation, levels,
            rough, 0.0, "no relation",
        ),
    ]  # fmt: skip
    pictures = {
        "title": "Drawn",
        "text": "One picture of each difficulty, by the first seed.",
        "pictures": [
            (f"difficulty {level}", base64.b64encode(png).decode())
            for (level, seed), png in zip(wanted, first, strict=True)
            if seed == SEEDS[0]
        ],
    }
    limits = (
        "Heights of 128 x 128 points without a scale; the model was made for games, not for maps.",
        "The same bytes are promised within one precision class only: other processors round"
        " differently.",
    )
    question = "Which picture does this seed give?"
    apart = _difference(wanted, first)
    return [result(MODEL, question, len(wanted), figures, apart, meter, [pictures], limits)]


def _prompt(level: int) -> str:
    return f"terrain, difficulty {level}"


def _difference(wanted: list[tuple[int, int]], drawn: list[bytes]) -> float:
    """The share of pictures that the engine in this process draws otherwise."""

    async def draw(engine: Any) -> list[bytes]:
        return [(await engine.draw(_prompt(level), 1, seed))[0] for level, seed in wanted]

    own = in_process(MODEL, draw)
    return float(np.mean([a != b for a, b in zip(own, drawn, strict=True)]))


RECIPE: Final = Use(
    "images",
    "Seeded pictures",
    "Terrain for games and planners, made again bit for bit from its seed.",
    "None is read; the model is that of the PyPI package adaptive-terrain-diffusion 0.4.2 (MIT).",
    (MODEL,),
    play,
)
