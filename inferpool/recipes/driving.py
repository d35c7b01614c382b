"""Driving: camera, lidar and radar fused into objects with velocities, and when to brake.

The sensors are simulated: no free recording of lidar and radar was found. Everything here runs in
the car: a brake cannot wait for a network, so nothing is asked of a pool. Coordinates are the
car's own, x ahead and y to the left, in metres; velocities are relative to it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.metrics import Figure, f1, figure
from inferpool.recipes.kit.use import Progress, Use

SENSORS: Final = ("camera", "lidar", "radar")
STEP_S: Final = 0.1
FRAMES: Final = 60
DEADLINE_MS: Final = 50.0  # from the sensors' data to the decision
CUT_M: Final = 3.0  # a track farther than this from every object is false
BRAKE_S: Final = 2.5  # of time to collision
LANE_M: Final = 1.5  # half the width that the car needs
FAR_M: Final = 60.0
SECTOR: Final = math.radians(60)  # to each side
RAYS: Final = 481
ACCELERATION: Final = 3.0  # m/s2, of what moves
GATE: Final = 13.8  # 99.9 % of two degrees of freedom
CONFIRM: Final = 3  # frames with a hit before a track counts
FORGET_S: Final = 0.6
SCENES: Final = 48
SMALL_SCENES: Final = 12
SEED: Final = 2  # of what is judged; the settings above were chosen on the scenes of seed 1
DOUBT_S: Final = 0.25  # as FORGET_S, before a track counts
DOUBLE_M: Final = 2.0  # two tracks nearer than this are one
WEATHERS: Final = ("clear", "night", "fog", "rain")


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects over the frames: `states` [frames, objects, 4] of x, y, vx, vy; `radius` each."""

    weather: str
    states: Array
    radius: Array


@dataclass(frozen=True, slots=True)
class Seen:
    """One measurement: a place [2] and its covariance [2, 2]; radar also has a radial speed."""

    place: Array
    spread: Array
    radial: float | None = None


@dataclass(slots=True)
class Track:
    """A Kalman filter of constant velocity: state [4], covariance [4, 4]."""

    state: Array
    spread: Array
    hits: int = 1
    unseen_s: float = 0.0
    name: int = field(default=0)


# -- the world -----------------------------------------------------------------------------------


def scene(number: int, seed: int) -> Scene:
    """A street: a car ahead that may brake, one that comes, one parked, somebody who crosses."""
    random = np.random.default_rng([seed, number])
    ego = random.uniform(8, 16)
    at = np.arange(FRAMES) * STEP_S
    lead = _path(random.uniform(18, 35), random.uniform(-0.4, 0.4), -random.uniform(0, 6), 0, at)
    speed = ego + random.uniform(8, 14)
    comes = _path(random.uniform(40, 70), random.uniform(3, 4.5), -speed, 0, at)
    parked = _path(random.uniform(25, 55), -random.uniform(3, 5), -ego, 0, at)
    side = random.choice([-1.0, 1.0])
    walks = _path(random.uniform(25, 50), 7 * side, -ego, -side * random.uniform(1, 2), at)
    states = np.stack([lead, comes, parked, walks], axis=1)
    return Scene(WEATHERS[number % len(WEATHERS)], states, np.array([1.0, 1.0, 1.0, 0.4]))


def _path(x: float, y: float, vx: float, vy: float, at: Array) -> Array:
    return np.column_stack([x + vx * at, y + vy * at, np.full_like(at, vx), np.full_like(at, vy)])


def in_sight(states: Array) -> Array:
    """Which objects lie before the car, inside the sensors' sector."""
    away, angle = np.hypot(states[:, 0], states[:, 1]), np.arctan2(states[:, 1], states[:, 0])
    found: Array = (away < FAR_M) & (away > 1.5) & (np.abs(angle) < SECTOR)
    return found


# -- sensors -------------------------------------------------------------------------------------


def camera(states: Array, radius: Array, weather: str, random: np.random.Generator) -> list[Seen]:
    """Angles are exact, distances guessed from the size; the dark hides much."""
    misses = {"clear": 0.05, "rain": 0.25, "fog": 0.4, "night": 0.5}[weather]
    seen = []
    for x, y, *_ in states[in_sight(states)]:
        if random.random() > misses:
            away, angle = math.hypot(x, y), math.atan2(y, x)
            seen.append(
                _polar(away * random.normal(1, 0.1), angle + random.normal(0, 0.005),
                       0.1 * away, 0.005)
            )  # fmt: skip
    if random.random() < 0.05:
        away = random.uniform(5, 50)
        seen.append(_polar(away, random.uniform(-0.8, 0.8), 0.1 * away, 0.005))
    return seen


def lidar_ranges(
    states: Array, radius: Array, weather: str, random: np.random.Generator
) -> tuple[Array, Array]:
    """Angles [rays] and ranges [rays] of one sweep over round objects; infinite without echo."""
    angles = np.linspace(-SECTOR, SECTOR, RAYS)
    along = np.cos(angles)[:, None] * states[:, 0] + np.sin(angles)[:, None] * states[:, 1]
    aside2 = (states[:, 0] ** 2 + states[:, 1] ** 2) - along**2
    half2 = radius**2 - aside2
    hit = np.where((half2 > 0) & (along > 0), along - np.sqrt(np.maximum(half2, 0)), np.inf)
    ranges = hit.min(axis=1) + random.normal(0, 0.03, RAYS)
    most = {"clear": FAR_M, "night": FAR_M, "rain": 40.0, "fog": 22.0}[weather]
    ranges[(ranges > most) | (random.random(RAYS) < 0.05)] = np.inf
    return angles, ranges


def clusters(angles: Array, ranges: Array) -> list[Seen]:
    """Neighbouring echoes less than a metre apart are one object; its centre lies behind them."""
    hits = np.flatnonzero(np.isfinite(ranges))
    if not len(hits):
        return []
    x, y = ranges[hits] * np.cos(angles[hits]), ranges[hits] * np.sin(angles[hits])
    apart = np.hypot(np.diff(x), np.diff(y)) > 1.0
    seen = []
    for part in np.split(np.arange(len(hits)), np.flatnonzero(apart) + 1):
        if len(part) < 2:
            continue
        wide = math.hypot(x[part[-1]] - x[part[0]], y[part[-1]] - y[part[0]]) / 2
        angle = float(angles[hits[part]].mean())
        away = float(ranges[hits[part]].min()) + wide
        seen.append(_polar(away, angle, 0.3, 0.3 / max(away, 1.0)))
    return seen


def radar(states: Array, radius: Array, weather: str, random: np.random.Generator) -> list[Seen]:
    """Distance and radial speed in any weather; angles are coarse, people often missed."""
    seen = []
    for (x, y, vx, vy), size in zip(states, radius, strict=True):
        if in_sight(np.array([[x, y]]))[0] and random.random() > (0.4 if size < 0.5 else 0.1):
            away = math.hypot(x, y)
            speed = (x * vx + y * vy) / away + random.normal(0, 0.15)
            seen.append(
                _polar(away + random.normal(0, 0.3), math.atan2(y, x) + random.normal(0, 0.035),
                       0.3, 0.035, speed)
            )  # fmt: skip
    if random.random() < 0.2:
        seen.append(
            _polar(random.uniform(5, 50), random.uniform(-0.8, 0.8), 0.3, 0.035,
                   random.normal(-10, 5))
        )  # fmt: skip
    return seen


def _polar(
    away: float, angle: float, away_sd: float, angle_sd: float, radial: float | None = None
) -> Seen:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    spread = turn @ np.diag([away_sd**2, (away * angle_sd) ** 2 + 0.01]) @ turn.T
    return Seen(away * turn[:, 0], spread, radial)


# -- tracks --------------------------------------------------------------------------------------


class Tracker:
    """Late fusion: each sensor's measurements update the same tracks, one sensor after another."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._made = 0

    def step(self, sweeps: Sequence[Sequence[Seen]]) -> list[Track]:
        """One frame: predict, then every sensor; returns the confirmed tracks."""
        for track in self.tracks:
            _predict(track)
        for sweep in sweeps:
            self._update(sweep)
        self._forget()
        return [t for t in self.tracks if t.hits >= CONFIRM]

    def _forget(self) -> None:
        """Drop what was not seen for long, sooner while unconfirmed, and doubles of another."""
        kept: list[Track] = []
        for track in sorted(self.tracks, key=lambda item: -item.hits):
            patience_s = FORGET_S if track.hits >= CONFIRM else DOUBT_S
            near = (np.hypot(*(track.state - item.state)[:2]) < DOUBLE_M for item in kept)
            if track.unseen_s < patience_s and track.state[0] > -5 and not any(near):
                kept.append(track)
        self.tracks = kept

    def _update(self, sweep: Sequence[Seen]) -> None:
        pairs = sorted(
            (_distance2(track, seen), i, j)
            for i, track in enumerate(self.tracks)
            for j, seen in enumerate(sweep)
        )
        tracks, used = set[int](), set[int]()
        for distance2, i, j in pairs:
            if distance2 < GATE and i not in tracks and j not in used:
                tracks.add(i)
                used.add(j)
                _correct(self.tracks[i], sweep[j])
        for j, seen in enumerate(sweep):
            if j not in used:
                self._made += 1
                speed = 0.0 if seen.radial is None else seen.radial
                velocity = speed * seen.place / np.linalg.norm(seen.place)
                spread = np.zeros((4, 4))
                spread[:2, :2], spread[2:, 2:] = seen.spread, np.eye(2) * 100.0
                state = np.concatenate([seen.place, velocity])
                self.tracks.append(Track(state, spread, name=self._made))


_MOVE: Final = np.eye(4) + STEP_S * np.eye(4, k=2)
_PUSH: Final = np.vstack([np.eye(2) * STEP_S**2 / 2, np.eye(2) * STEP_S])
_PLACE: Final = np.eye(2, 4)


def _predict(track: Track) -> None:
    track.state = _MOVE @ track.state
    track.spread = _MOVE @ track.spread @ _MOVE.T + _PUSH @ _PUSH.T * ACCELERATION**2
    track.unseen_s += STEP_S


def _distance2(track: Track, seen: Seen) -> float:
    gap = seen.place - track.state[:2]
    return float(gap @ np.linalg.solve(track.spread[:2, :2] + seen.spread, gap))


def _correct(track: Track, seen: Seen) -> None:
    _gain(track, _PLACE, seen.place - track.state[:2], seen.spread)
    if seen.radial is not None:
        ray = track.state[:2] / np.linalg.norm(track.state[:2])
        row = np.concatenate([np.zeros(2), ray])[None]
        _gain(track, row, np.array([seen.radial]) - row @ track.state, np.array([[0.05]]))
    track.hits += track.unseen_s > 0  # once a frame, however many sensors agree
    track.unseen_s = 0.0


def _gain(track: Track, row: Array, gap: Array, noise: Array) -> None:
    gain = np.linalg.solve(row @ track.spread @ row.T + noise, row @ track.spread).T
    track.state = track.state + gain @ gap
    left = np.eye(4) - gain @ row
    track.spread = left @ track.spread @ left.T + gain @ noise @ gain.T  # Joseph's form


def brake(states: Array) -> bool:
    """Whether anything is on the way to where the car will be within `BRAKE_S`."""
    for x, y, vx, vy in states:
        if x > 0 and vx < -0.5 and (until := x / -vx) < BRAKE_S and abs(y + vy * until) < LANE_M:
            return True
    return False


# -- judged --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drive:
    """One scene by some sensors. `miss_m`: per frame, mean distance of objects and tracks, cut at
    `CUT_M`; `braked` and `should` per frame; `ms` per frame, for the fusion alone."""

    miss_m: Array
    speed_error: Array
    braked: Array
    should: Array
    ms: Array
    paths: tuple[tuple[int, float, float], ...]


def drive(world: Scene, sensors: Sequence[str], seed: int) -> Drive:
    """Drive through a scene. Each sensor's noise is the same whoever else is there."""
    chance = {name: np.random.default_rng([seed, i]) for i, name in enumerate(SENSORS)}
    tracker, rows, speeds, paths = Tracker(), [], [], []
    for states in world.states:
        raw = {name: _sense(name, states, world, chance[name]) for name in sensors}
        begun = time.perf_counter()
        sweeps = [clusters(*raw[n]) if n == "lidar" else raw[n] for n in sensors]
        tracks = tracker.step(sweeps)
        said = np.array([track.state for track in tracks]).reshape(-1, 4)
        stop = brake(said)
        ms = 1000 * (time.perf_counter() - begun)
        visible = states[in_sight(states)]
        miss, speed = match(visible, said)
        rows.append((miss, stop, brake(visible), ms))
        speeds += speed
        paths += [(t.name, float(t.state[0]), float(t.state[1])) for t in tracks]
    miss_, stop_, should_, ms_ = (np.array(column) for column in zip(*rows, strict=True))
    return Drive(miss_, np.array(speeds), stop_, should_, ms_, tuple(paths))


def _sense(name: str, states: Array, world: Scene, random: np.random.Generator) -> Any:
    make = {"camera": camera, "lidar": lidar_ranges, "radar": radar}[name]
    return make(states, world.radius, world.weather, random)


def match(truth: Array, said: Array) -> tuple[float, list[float]]:
    """Mean cut distance over the larger number of both (nearest pairs first), and the matched
    pairs' errors of velocity in m/s. Nothing there and nothing said is 0."""
    most = max(len(truth), len(said))
    if not most:
        return 0.0, []
    apart = np.hypot(*(truth[:, None, :2] - said[None, :, :2]).transpose(2, 0, 1))
    total, speeds = CUT_M * most, list[float]()
    while apart.size and apart.min() < CUT_M:
        i, j = np.unravel_index(int(apart.argmin()), apart.shape)
        total -= CUT_M - float(apart[i, j])
        speeds.append(float(np.hypot(*(truth[i, 2:] - said[j, 2:]))))
        apart[i, :] = apart[:, j] = np.inf
    return total / most, speeds


# -- the recipe ----------------------------------------------------------------------------------


def play(pool: Any, small: bool, progress: Progress) -> list[dict[str, Any]]:
    """All scenes by each sensor alone and by all. `pool` is not asked: the loop is the car's."""
    worlds = [scene(number, SEED) for number in range(SMALL_SCENES if small else SCENES)]
    ways = {name: (name,) for name in SENSORS} | {"fused": SENSORS}
    drives: dict[str, list[Drive]] = {name: [] for name in ways}
    for done, world in enumerate(worlds, 1):
        for name, sensors in ways.items():
            drives[name].append(drive(world, sensors, 1000 * SEED + done - 1))
        progress("driving", done, len(worlds))
    again = drive(worlds[0], SENSORS, 1000 * SEED)
    apart = float(np.abs(again.miss_m - drives["fused"][0].miss_m).max())
    figures = _figures(drives)
    return [
        {
            "model": "in the car",
            "question": "What is where, how fast, and must the car brake?",
            "scored_by": "this process: the loop is local, no brake waits for a network",
            "n": len(worlds),
            "figures": [asdict(item) | {"reached": item.reached} for item in figures],
            "difference_to_engine": apart,  # of one scene, driven again from its seed
            "agrees": apart == 0.0,
            "sections": _sections(drives),
            "limits": [
                "Sensors and streets are simulated: round objects, white noise, straight paths. No"
                " recording of lidar and radar with a free licence was found, and no street video"
                " is read here.",
                "The camera is a simulated detector; no picture is looked at.",
                "The deadline is counted from the sensors' data to the decision, without their own"
                " time, on a computer that also does other things.",
                "All sensors together place objects better than each alone, but not everything: a"
                " lidar alone has better velocities where it sees, and on the scenes judged here"
                " also the better brake decision. Misses and false alarms are not told apart.",
            ],
        }
    ]


def _figures(drives: dict[str, list[Drive]]) -> list[Figure]:
    miss = {
        name: np.array([item.miss_m.mean() for item in found]) for name, found in drives.items()
    }
    best = min(SENSORS, key=lambda name: miss[name].mean())
    should = np.concatenate([item.should for item in drives["fused"]]).astype(int)
    said = {name: np.concatenate([i.braked for i in found]) for name, found in drives.items()}
    brakes = {name: f1(should, braked.astype(int)) for name, braked in said.items()}
    surest = max(SENSORS, key=lambda name: brakes[name])
    groups = np.repeat(np.arange(len(miss["fused"])), FRAMES)
    return [
        figure(
            "objects missed by, m (3 m at most)", _mean, miss[best], miss["fused"], miss[best],
            f"best alone: {best}", bar=float(miss[best].mean()), more_is_better=False,
        ),
        figure(
            "brake decision, F1 over frames", f1, should, said["fused"].astype(int),
            brakes[surest], f"best alone: {surest}", groups=groups,
        ),
    ]  # fmt: skip


def _mean(truth: Array, said: Array) -> float:
    """Of the values themselves; they are distances to the truth already."""
    return float(said.mean())


def _sections(drives: dict[str, list[Drive]]) -> list[dict[str, Any]]:
    rows, times = [], []
    for name, found in drives.items():
        miss = np.array([item.miss_m.mean() for item in found])
        speed = np.concatenate([item.speed_error for item in found])
        weathers = [f"{miss[i :: len(WEATHERS)].mean():.2f}" for i in range(len(WEATHERS))]
        rows.append([name, f"{miss.mean():.2f}", *weathers, f"{speed.mean():.2f}"])
        ms = np.concatenate([item.ms for item in found])
        p50, p99 = np.percentile(ms, [50, 99])
        late = str(int((ms > DEADLINE_MS).sum()))
        times.append([name, str(len(ms)), f"{p50:.2f} ms", f"{p99:.2f} ms", late])
    fog = WEATHERS.index("fog")
    at = np.arange(FRAMES) * STEP_S
    misses = {
        name: list(zip(at.tolist(), np.mean([i.miss_m for i in found[fog :: len(WEATHERS)]], 0),
                       strict=True))
        for name, found in drives.items()
    }  # fmt: skip
    paths: dict[int, list[tuple[float, float]]] = {}
    for name_, x, y in drives["fused"][0].paths:
        paths.setdefault(name_, []).append((x, y))
    longest = sorted(paths, key=lambda key: -len(paths[key]))[:4]
    return [
        {
            "title": "Each sensor alone, and all",
            "text": "Metres missed, in all and by weather; the mean error of velocities of what was"
            " found, in m/s.",
            "head": ["sensors", "all", *WEATHERS, "velocity"],
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


RECIPE: Final = Use(
    "driving",
    "Driving: fused sensors and the brake",
    "Camera, lidar and radar, simulated, fused into objects with velocities; brakes in time.",
    "Simulated scenes of a street in clear weather, night, fog and rain; no recording is read.",
    (),
    play,
)
