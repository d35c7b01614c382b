"""A car's camera pictures, read again through a pool: boxes, tracks, and what they can be held to.

Heads of people and the lower half of vehicles, where plates are, are made coarse before a picture
leaves; the detector that finds them runs in the car. Whether the pool still finds everybody is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.recipes import sight
from inferpool.recipes.kit import audit, calibration, deciding
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.drift import Monitor, reference
from inferpool.recipes.kit.live import Served, rehearse, stream_of
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.scorer import (
    Answer,
    EngineScorer,
    difference,
    latencies_ms,
    percentiles,
)
from inferpool.recipes.kit.use import Progress
from inferpool.recipes.street_private import IDENTIFIERS, hidden, kept, trace
from inferpool.recipes.street_truth import DOUBT, PEOPLE, judged
from inferpool.recipes.street_weather import WATCHED, WEATHERS, spoilt, watched

FRAME_S: Final = 0.1  # of this video; an answer that comes later is of no use to the next frame
AT_ONCE: Final = 2  # frames asked for before the first is answered
SMALL_FRAMES: Final = 60
KEPT_EVERY: Final = 40
SMALL_EVERY: Final = 3  # of those, in each weather
SHOWN: Final = 50  # the frame that the report shows; one of `PEOPLE`
DECISIONS: Final = 8
AGREE: Final = 2e-6  # pool against the engine in this process, relative
CALLS: Final = 100
SMALL_CALLS: Final = 20
NEVER_SURE: Final = 0.6  # a track whose best box has less goes to a person, once


@dataclass(frozen=True, slots=True)
class Detector:
    """What is asked, as `kit.live` wants it."""

    model: str = sight.MODEL
    input: str = sight.INPUT


@dataclass(slots=True)
class Read:
    """One look at the video. `own`: the boxes that the car's detector finds, `rows` what leaves;
    `kept` some pictures by their number, `usual` and `foggy` what the monitor looks at."""

    own: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    kept: dict[int, Array] = field(default_factory=dict)
    usual: list[Array] = field(default_factory=list)
    foggy: list[Array] = field(default_factory=list)


def look(engine: EngineScorer, frames: int | None) -> Read:
    """Read the video once; the first `frames` are prepared to leave."""
    found = Read()
    for number, picture in enumerate(sight.pictures(sight.STREET)):
        found.usual.append(watched(picture))
        if number % 4 == 1:
            found.foggy.append(watched(spoilt(picture, "fog")))
        if number in PEOPLE or number % KEPT_EVERY == 0:
            found.kept[number] = picture
        if frames is None or number < frames:
            boxes = seen(engine, picture)
            found.own.append(boxes)
            found.rows.append(sight.framed(hidden(picture, boxes)))
    return found


def read_again(pool: PoolScorer, small: bool, progress: Progress, out: Path) -> dict[str, Any]:
    """The video through the pool, and everything that a reader would ask about it."""
    with EngineScorer() as engine:
        read = look(engine, SMALL_FRAMES if small else None)
        rows = np.concatenate(read.rows)
        served, seconds = _through(pool, engine, rows, progress)
        boxes = [sight.boxes(item.outputs["boxes"][0], SHRUNK, sight.DOUBTED) for item in served]
        figures, bins, band = judged(lambda picture: seen(engine, picture), read.kept)
        some = np.linspace(0, len(rows) - 1, 20).astype(int)
        apart = max(
            difference(served[i].outputs, engine.infer(sight.MODEL, sight.INPUT, rows[i : i + 1]))
            for i in some
        )
        decisions, told = _decided(pool, engine, rows, out)
        calls = SMALL_CALLS if small else CALLS
        facts = {
            "model": sight.MODEL,
            "question": "Who and what is in the picture?",
            "scored_by": "pool",
            "n": len(rows),
            "figures": [
                asdict(item) | {"reached": item.reached}
                for item in (*figures, kept(read.own, boxes))
            ],
            "difference_to_engine": apart,
            "agrees": apart <= AGREE,
            "calibration": [asdict(item) for item in bins],
            "expected_calibration_error": calibration.expected_error(bins),
            "band": asdict(band),
            "sections": [
                _followed(boxes, served, seconds),
                _pictures(read.kept[SHOWN], read.own[SHOWN], boxes[SHOWN]),
                _weathers(engine, read, SMALL_EVERY if small else 1),
            ],
            "decisions": [asdict(item) for item in decisions],
            "waiting": {
                "deadline_ms": 1000 * FRAME_S,
                "n": len(served),
                "late": sum(item.local for item in served),
                "slowest_ms": max(item.ms for item in served),
            },
            "cost": deciding.cost(told),
            "latency": {
                way.name: percentiles(
                    latencies_ms(way, sight.MODEL, sight.INPUT, rows[:calls], calls)
                )
                for way in (pool, engine)
            },
            "drift": _drift(read),
            "trace": trace(rows[SHOWN : SHOWN + 1]),
            "limits": LIMITS,
        }
        if not small:
            facts["failover"] = rehearse(Detector(), rows, engine)
    return facts


SHRUNK: Final = sight.SIDE / 768  # of this video


def seen(engine: EngineScorer, picture: Array) -> Array:
    """The boxes that the detector in this process finds, also very doubtful ones."""
    found = engine.infer(sight.MODEL, sight.INPUT, sight.framed(picture))["boxes"][0]
    return sight.boxes(found, SHRUNK, 0.05)


def _through(
    pool: PoolScorer, engine: EngineScorer, rows: Array, progress: Progress
) -> tuple[list[Served], float]:
    """Every frame's answer and the seconds of all; what comes late is decided here."""
    served, begun = list[Served](), time.monotonic()
    with stream_of(Detector(), pool, engine, FRAME_S, AT_ONCE) as stream:
        for item in stream.serve(rows):
            served.append(item)
            progress("street", len(served), len(rows))
    return served, time.monotonic() - begun


# -- decisions -----------------------------------------------------------------------------------


def _decided(
    pool: PoolScorer, engine: EngineScorer, rows: Array, out: Path
) -> tuple[list[deciding.Decision], list[Answer]]:
    """Some frames asked once more, each written to a file and made again from it."""
    chosen = [rows[i : i + 1] for i in np.linspace(0, len(rows) - 1, DECISIONS).astype(int)]
    answers, times = [], []
    for row in chosen:
        begun = time.monotonic()
        answers.append(pool.infer(sight.MODEL, sight.INPUT, row))
        times.append((time.time_ns() // 1_000_000, 1000 * (time.monotonic() - begun)))
    told = pool.told(sight.MODEL, sight.INPUT, chosen, answers)
    decisions = []
    for row, answer, (time_ms, ms) in zip(chosen, told, times, strict=True):
        found = sight.boxes(answer.outputs["boxes"][0], SHRUNK, DOUBT[0])
        best, words = float(found[:, 4].max(initial=0.0)), verdict(found)
        record = audit.record(
            "driving", sight.MODEL, sight.INPUT, row, answer, best, words, [], time_ms,
            tuple(IDENTIFIERS),
        )  # fmt: skip
        path = audit.write(record, out / sight.MODEL)
        again = audit.replay(record, engine)
        why = ", ".join(f"{sight.NAMES[int(box[5])]} {box[4]:.2f}" for box in found[:3])
        decisions.append(
            deciding.Decision(
                sight.MODEL, best, words, why, answer.node, deciding.charge(answer), again.same,
                again.bitwise, path.name, tuple(IDENTIFIERS), again.signed, again.about_this,
                False, round(ms, 1),
            )
        )  # fmt: skip
    return decisions, told


def verdict(boxes: Array) -> str:
    """What is said of a frame: how many of what, and how many boxes are doubtful."""
    sure = boxes[boxes[:, 4] >= DOUBT[1]]
    names = [sight.NAMES[int(number)] for number in sure[:, 5]]
    counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nobody"
    return counts if len(sure) == len(boxes) else f"{counts}; {len(boxes) - len(sure)} doubtful"


# -- sections ------------------------------------------------------------------------------------


def _followed(boxes: Sequence[Array], served: Sequence[Served], seconds: float) -> dict[str, Any]:
    people, others = sight.Follower(), sight.Follower()
    for found in boxes:
        person = found[:, 5] == sight.PERSON
        people.step(found[person])
        others.step(found[~person])
    counts = np.array([(found[:, 4] >= sight.SURE).sum() for found in boxes])
    tracks = people.confirmed()
    unsure = sum(path.best < NEVER_SURE for path in tracks)
    lengths = sorted(path.hits for path in tracks)
    longest = sorted(tracks, key=lambda path: -path.hits)[:4]
    return {
        "title": "Frames, boxes and tracks",
        "text": "Middles of the four longest tracks of people over the picture.",
        "head": ["", ""],
        "rows": [
            ["frames", str(len(boxes))],
            ["frames a second, through the pool", f"{len(boxes) / seconds:.1f}"],
            ["boxes in a frame, mean", f"{counts.mean():.2f}"],
            ["tracks of people", str(len(tracks))],
            [f"of them never above a score of {NEVER_SURE:g}, for a person", str(unsure)],
            ["frames of such a track, median", f"{np.median(lengths):.0f}" if lengths else "-"],
            ["tracks of vehicles", str(len(others.confirmed()))],
            [f"answers later than {1000 * FRAME_S:g} ms", str(sum(item.local for item in served))],
        ],
        "lines": {f"track {path.name}": [(x, -y) for x, y in path.centres] for path in longest},
        "axes": ("pixels to the right", "pixels up"),
    }


def _pictures(picture: Array, own: Array, boxes: Array) -> dict[str, Any]:
    found = sight.drawn(hidden(picture, own), boxes[boxes[:, 4] >= sight.SURE])
    return {
        "title": "What the camera saw, and what left",
        "text": "The second picture is made smaller and sent; boxes are the pool's.",
        "pictures": [("in the car", sight.png(picture)), ("sent", sight.png(found))],
    }


def _monitor(read: Read) -> Monitor:
    return Monitor(WATCHED, *reference(np.stack(read.usual[0::2])))


def _weathers(engine: EngineScorer, read: Read, every: int) -> dict[str, Any]:
    """What fog, night and a covered lens do to the detector, and that the monitor sees it."""
    some, monitor = list(read.kept.values())[::every], _monitor(read)
    rows = [["as it is", _count(engine, some), "-", "-"]]
    for weather in WEATHERS:
        made = [spoilt(picture, weather) for picture in some]
        worst = monitor.check(np.stack(list(map(watched, made))))[0]
        psi = f"{worst.field} {worst.psi:.1f}"
        rows.append([weather, _count(engine, made), psi, "yes" if worst.alarm else "NO"])
    return {
        "title": "Fog, night, a covered lens",
        "text": f"{len(some)} frames made so; boxes in a frame, and the monitor's greatest PSI.",
        "head": ["weather", "boxes in a frame", "PSI", "alarm"],
        "rows": rows,
    }


def _count(engine: EngineScorer, pictures: Sequence[Array]) -> str:
    sure = [int((seen(engine, picture)[:, 4] >= sight.SURE).sum()) for picture in pictures]
    return f"{np.mean(sure):.2f}"


def _drift(read: Read) -> dict[str, Any]:
    monitor, held = _monitor(read), np.stack(read.usual[1::2])
    now, fog = monitor.check(held), monitor.check(np.stack(read.foggy))[0]
    return {
        "n": len(held),
        "worst": [asdict(item) for item in now],
        "alarms": sum(item.alarm for item in now),
        "rehearsal": {"shifted": fog.field, "how": "in fog", "psi": fog.psi, "alarm": fog.alarm},
    }


LIMITS: Final = (
    "One fixed camera over one street by day, eight frames looked at by one person: the figures say"
    " little about other streets, night or a camera that drives.",
    "The monitor's known frames are every second one of the same video.",
    "Heads and plates are made coarse where the car's own detector found somebody: who it misses"
    " leaves as they are, though a head here is six pixels wide in what is sent. Clothes and gait"
    " still tell people apart for who knows them.",
    "A small detector of 416 pixels: who is far away, or half hidden, is missed. The sign at the"
    " left is taken for a person in every frame.",
    "COCO's classes and weights as their authors published them; nothing was trained for this"
    " street.",
)
