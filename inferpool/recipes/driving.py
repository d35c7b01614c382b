"""Driving: what is around the car, and whether it must brake; and what its camera saw, read again.

The loop in the car is local: a brake cannot wait for a network, so the fused sensors ask nothing of
a pool. The camera's pictures go through the pool afterwards, as a fleet's are read again by other
machines (`inferpool.recipes.street`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from inferpool.recipes import fusion, sight, street
from inferpool.recipes.brake import BAND, BRAKE_AT, record_of, replay
from inferpool.recipes.fusion import SENSORS, Drive, drive
from inferpool.recipes.kit import calibration
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.drift import Monitor, reference
from inferpool.recipes.kit.metrics import Figure, f1, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.use import Progress, Use
from inferpool.recipes.scenes import FRAMES, STEP_S, WEATHERS, Scene, scene

DEADLINE_MS: Final = 50.0  # from the sensors' data to the decision
SCENES: Final = 96
SMALL_SCENES: Final = 12
TUNED: Final = 48  # scenes of `fusion.TUNING` that the next two were chosen on, by `tuned`
SEED: Final = 7  # of what is judged; nothing was chosen on its scenes
BAND_ERROR: Final = 0.01
WAYS: Final[Mapping[str, Sequence[str]]] = {s: (s,) for s in SENSORS} | {"fused": SENSORS}
LOST: Final = FRAMES // 3  # the frame from which a broken sensor is silent, in the rehearsal


def play(
    pool: PoolScorer | None, small: bool, progress: Progress, out: Path
) -> list[dict[str, Any]]:
    """The scenes by each sensor alone and by all, then the street video through the pool."""
    out = out / "decisions"
    found = [car(small, progress, out)]
    if pool is not None and find_spec("av"):
        found.append(street.read_again(pool, small, progress, out))
    else:
        missing = 'No street video was read: it needs av; pip install "inferpool[video]".'
        found[0]["limits"].append(missing)
    return found


def car(small: bool, progress: Progress, out: Path) -> dict[str, Any]:
    """What the car decides by itself, on scenes that nothing was chosen on."""
    worlds = [scene(number, SEED) for number in range(SMALL_SCENES if small else SCENES)]
    drives: dict[str, list[Drive]] = {name: [] for name in WAYS}
    for done, world in enumerate(worlds, 1):
        for name, sensors in WAYS.items():
            drives[name].append(drive(world, sensors, 1000 * SEED + done - 1))
        progress("driving", done, len(worlds))
    should = np.concatenate([item.should for item in drives["fused"]]).astype(int)
    chance = np.concatenate([item.chance for item in drives["fused"]])
    bins = calibration.bins(should, chance)
    band = calibration.band(should, chance, *BAND, BRAKE_AT["fused"])
    records = [record_of(number, item, out) for number, item in enumerate(drives["fused"])]
    again = [replay(orjson.loads(path.read_bytes())) for path in records]
    apart = max(item.difference for item in again)
    return {
        "model": "in the car",
        "question": "What is where, how fast, and must the car brake?",
        "scored_by": "this process: the loop is local, no brake waits for a network",
        "compared_with": f"Each scene's first braking, made again from its record ({len(again)})",
        "n": len(worlds),
        "figures": [asdict(item) | {"reached": item.reached} for item in figures(drives)],
        "difference_to_engine": apart,
        "agrees": all(item.same for item in again),
        "calibration": [asdict(item) for item in bins],
        "expected_calibration_error": calibration.expected_error(bins),
        "band": asdict(band),
        "sections": [*_sections(drives), _health(drives["fused"], worlds)],
        "limits": [
            "Sensors and streets are simulated: round objects, white noise, straight paths at"
            " constant speed, which flatters a filter that expects little acceleration. No"
            " recording of lidar and radar with a free licence was found.",
            "In these scenes the camera is a simulated detector; pictures are looked at below.",
            "The deadline is counted from the sensors' data to the decision, without their own"
            " time, on a computer that also does other things.",
            "Velocities are compared on what both found: fused sensors also follow what a lidar"
            " cannot see yet, and know its velocity less well.",
            "Once it has helped to find everybody, places are slightly better here without the"
            " lidar: its clusters are off by more than they are taken for.",
            "What the car does in the band is the driver's: it warns and takes the foot off.",
        ],
    }


def tuned() -> tuple[dict[str, float], tuple[float, float]]:
    """`BRAKE_AT` and `BAND` once more, from the scenes of `fusion.TUNING`."""
    worlds = [scene(number, fusion.TUNING) for number in range(TUNED)]
    at = {}
    for name, sensors in WAYS.items():
        found = [drive(w, sensors, 1000 * fusion.TUNING + i) for i, w in enumerate(worlds)]
        should = np.concatenate([item.should for item in found]).astype(int)
        chance = np.concatenate([item.chance for item in found])
        steps = np.linspace(0.05, 0.95, 91)
        at[name] = round(float(steps[np.argmax([f1(should, chance >= t) for t in steps])]), 2)
    low, high = calibration.choose_band(should, chance, BAND_ERROR, at["fused"])
    return at, (round(float(low), 2), round(float(high), 2))


# -- one file for each decision ------------------------------------------------------------------


# -- judged --------------------------------------------------------------------------------------


def figures(drives: Mapping[str, Sequence[Drive]]) -> list[Figure]:
    """Fused against the best single sensor of each measure."""
    miss = {name: np.array([i.miss_m.mean() for i in found]) for name, found in drives.items()}
    best = min(SENSORS, key=lambda name: miss[name].mean())
    should = np.concatenate([item.should for item in drives["fused"]]).astype(int)
    said = {
        name: (np.concatenate([i.chance for i in found]) >= BRAKE_AT[name]).astype(int)
        for name, found in drives.items()
    }
    surest = max(SENSORS, key=lambda name: f1(should, said[name]))
    groups = np.repeat(np.arange(len(miss["fused"])), FRAMES)
    pairs = {name: paired(drives["fused"], drives[name]) for name in SENSORS}
    quick = min(SENSORS, key=lambda name: pairs[name][1].mean())
    return [
        figure(
            "objects missed by, m (3 m at most)", _mean, miss[best], miss["fused"], miss[best],
            f"best alone: {best}", bar=float(miss[best].mean()), more_is_better=False,
        ),
        figure(
            "brake decision, F1 over frames", f1, should, said["fused"],
            f1(should, said[surest]), f"best alone: {surest}",
            bar=f1(should, said[surest]), groups=groups,
        ),
        figure(
            "velocity of what both found, off by m/s", _mean, pairs[quick][1], pairs[quick][0],
            pairs[quick][1], f"best alone: {quick}", bar=float(pairs[quick][1].mean()),
            more_is_better=False, groups=pairs[quick][2],
        ),
    ]  # fmt: skip


def paired(ours: Sequence[Drive], others: Sequence[Drive]) -> tuple[Array, Array, Array]:
    """Both errors of velocity of every object in every frame that both found, and its scene."""
    found = [
        (mine.speed_error[key], other.speed_error[key], number)
        for number, (mine, other) in enumerate(zip(ours, others, strict=True))
        for key in sorted(mine.speed_error.keys() & other.speed_error.keys())
    ]
    columns = np.array(found)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def _mean(truth: Array, said: Array) -> float:
    """Of the values themselves; they are distances to the truth already."""
    return float(said.mean())


def _health(healthy: Sequence[Drive], worlds: Sequence[Scene]) -> dict[str, Any]:
    """Whether a sensor that falls silent is noticed, and what the others make of it."""
    known = [scene(number, fusion.TUNING) for number in range(len(worlds))]
    before = [drive(world, SENSORS, 1000 * fusion.TUNING + i) for i, world in enumerate(known)]
    monitor = Monitor(SENSORS, *reference(np.concatenate([item.seen for item in before])))
    rows = [["none", *_alarms(monitor, healthy), *_worth(healthy)]]
    for name in SENSORS:
        found = [
            drive(world, SENSORS, 1000 * SEED + i, {name: LOST}) for i, world in enumerate(worlds)
        ]
        rows.append([name, *_alarms(monitor, found), *_worth(found)])
    return {
        "title": "A sensor is lost",
        "text": "Objects that each sensor reports in a frame, watched by PSI against the scenes of"
        f" tuning (alarm from 0.2). In the rehearsal a sensor is silent after {LOST * STEP_S:g} s"
        " and the others drive on.",
        "head": ["lost", *(f"PSI, {name}" for name in SENSORS), "alarm", "missed", "brake F1"],
        "rows": rows,
    }


def _alarms(monitor: Monitor, found: Sequence[Drive]) -> list[str]:
    checked = {item.field: item for item in monitor.check(np.concatenate([d.seen for d in found]))}
    raised = [name for name in SENSORS if checked[name].alarm]
    return [*(f"{checked[name].psi:.2f}" for name in SENSORS), ", ".join(raised) or "none"]


def _worth(found: Sequence[Drive]) -> list[str]:
    should = np.concatenate([item.should for item in found]).astype(int)
    said = np.concatenate([item.chance for item in found]) >= BRAKE_AT["fused"]
    miss = float(np.mean([item.miss_m.mean() for item in found]))
    return [f"{miss:.2f} m", f"{f1(should, said.astype(int)):.3f}"]


def _sections(drives: Mapping[str, Sequence[Drive]]) -> list[dict[str, Any]]:
    rows, times = [], []
    for name, found in drives.items():
        miss = np.array([item.miss_m.mean() for item in found])
        ours, theirs, _ = paired(drives["fused"], found)
        weathers = [f"{miss[i :: len(WEATHERS)].mean():.2f}" for i in range(len(WEATHERS))]
        speeds = [f"{theirs.mean():.2f}", f"{ours.mean():.2f}", str(len(ours))]
        rows.append([name, f"{miss.mean():.2f}", *weathers, _worth_of(name, found), *speeds])
        ms = np.concatenate([item.ms for item in found])
        p50, p99 = np.percentile(ms, [50, 99])
        late = str(int((ms > DEADLINE_MS).sum()))
        times.append([name, str(len(ms)), f"{p50:.2f} ms", f"{p99:.2f} ms", late])
    fog, at = WEATHERS.index("fog"), (np.arange(FRAMES) * STEP_S).tolist()
    misses = {
        name: list(
            zip(at, np.mean([i.miss_m for i in found[fog :: len(WEATHERS)]], 0), strict=True)
        )
        for name, found in drives.items()
    }
    paths: dict[int, list[tuple[float, float]]] = {}
    for name_, x, y in drives["fused"][0].paths:
        paths.setdefault(name_, []).append((x, y))
    longest = sorted(paths, key=lambda key: -len(paths[key]))[:4]
    return [
        {
            "title": "Each sensor alone, and all",
            "text": "Metres missed, in all and by weather; F1 of braking, each at the threshold"
            " chosen for it; velocities in m/s of what both it and the fused sensors found.",
            "head": ["sensors", "all", *WEATHERS, "brake F1", "velocity", "fused", "n"],
            "rows": rows,
        },
        {
            "title": "In fog",
            "text": "Metres missed over the time of a scene, mean of all scenes in fog.",
            "lines": misses,
            "axes": ("s", "m"),
        },
        {
            "title": "From above",
            "text": "The four longest fused tracks of the first scene; the car is at 0, 0.",
            "lines": {f"track {key}": paths[key] for key in longest},
            "axes": ("m ahead", "m to the left"),
        },
        {
            "title": "The deadline",
            "text": f"Frames whose decision came later than {DEADLINE_MS:g} ms.",
            "head": ["sensors", "frames", "p50", "p99", "late"],
            "rows": times,
        },
    ]


def _worth_of(name: str, found: Sequence[Drive]) -> str:
    should = np.concatenate([item.should for item in found]).astype(int)
    said = np.concatenate([item.chance for item in found]) >= BRAKE_AT[name]
    return f"{f1(should, said.astype(int)):.3f}"


RECIPE: Final = Use(
    "driving",
    "Driving: fused sensors, the brake, and the camera read again",
    "Camera, lidar and radar fused into objects and a brake; a real street video by a detector.",
    "Simulated scenes of a street in clear weather, night, fog and rain. Pedestrians in a street:"
    " vtest.avi of OpenCV's samples (Apache-2.0), encoded again. YOLOX-Nano (Apache-2.0).",
    (sight.MODEL,),
    play,
    whole=True,
    audits=True,
    replay=replay,
)
