"""Camera, lidar and radar of a simulated street, fused into objects with velocities.

The sensors are simulated: no free recording of lidar and radar was found. Coordinates are the
car's own, x ahead and y to the left, in metres; velocities are relative to it. What is set here was
chosen on the scenes of `TUNING`; what is reported comes from other scenes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array
from inferpool.recipes.scenes import (
    FRAMES,
    STEP_S,
    Scene,
    Seen,
    camera,
    clusters,
    in_sight,
    lidar_ranges,
    radar,
)

SENSORS: Final = ("lidar", "radar", "camera")  # the surest first: it decides what is which
CUT_M: Final = 3.0  # a track farther than this from every object is false
BRAKE_S: Final = 2.5  # of time to collision
LANE_M: Final = 1.5  # half the width that the car needs
ACCELERATION: Final = 1.0  # m/s2, of what moves
GATE: Final = 13.8  # 99.9 % of two degrees of freedom; a radar has a third
CONFIRM: Final = 3  # frames with a hit before a track counts
FORGET_S: Final = 0.6
TUNING: Final = 1  # the seed of the scenes that everything here was chosen on
DOUBT_S: Final = 0.25  # as FORGET_S, before a track counts
DOUBLE_M: Final = 2.0  # two tracks nearer than this are one
RADIAL_2: Final = 0.1  # (m/s)2, of a radar's speed
NOTHING: Final[Mapping[str, int]] = {}


@dataclass(slots=True)
class Track:
    """A Kalman filter of constant velocity: state [4], covariance [4, 4]."""

    state: Array
    spread: Array
    hits: int = 1
    unseen_s: float = 0.0
    name: int = field(default=0)


# -- the world -----------------------------------------------------------------------------------


# -- sensors -------------------------------------------------------------------------------------


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
            gone = track.unseen_s > 0 and not in_sight(track.state[None])[0]
            if track.unseen_s < patience_s and not gone and not any(near):
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
    """Squared, in deviations; a radar's echo with another speed is not of this object."""
    gap_x, gap_y = (seen.place - track.state[:2]).tolist()
    (xx, xy), (_, yy) = (track.spread[:2, :2] + seen.spread).tolist()
    found: float = (yy * gap_x**2 - 2 * xy * gap_x * gap_y + xx * gap_y**2) / (xx * yy - xy**2)
    if seen.radial is not None:
        row, off = _radial(track, seen.radial)
        found += off**2 / (float(row @ track.spread @ row) + RADIAL_2)
    return found


def _radial(track: Track, speed: float) -> tuple[Array, float]:
    """What of the state a radial speed is [4], and by how much this one is off it."""
    ray = track.state[:2] / np.linalg.norm(track.state[:2])
    row = np.concatenate([np.zeros(2), ray])
    return row, speed - float(row @ track.state)


def _correct(track: Track, seen: Seen) -> None:
    _gain(track, _PLACE, seen.place - track.state[:2], seen.spread)
    if seen.radial is not None:
        row, off = _radial(track, seen.radial)
        _gain(track, row[None], np.array([off]), np.array([[RADIAL_2]]))
    track.hits += track.unseen_s > 0  # once a frame, however many sensors agree
    track.unseen_s = 0.0


def _gain(track: Track, row: Array, gap: Array, noise: Array) -> None:
    gain = np.linalg.solve(row @ track.spread @ row.T + noise, row @ track.spread).T
    track.state = track.state + gain @ gap
    left = np.eye(4) - gain @ row
    track.spread = left @ track.spread @ left.T + gain @ noise @ gain.T  # Joseph's form


def brake(states: Array) -> bool:
    """Whether anything is on the way to where the car will be within `BRAKE_S`: the truth."""
    for x, y, vx, vy in states:
        if x > 0 and vx < -0.5 and (until := x / -vx) < BRAKE_S and abs(y + vy * until) < LANE_M:
            return True
    return False


def danger(tracks: Sequence[Track]) -> float:
    """The chance that `brake` is right, from what the tracks do not know about themselves.

    That an object comes past within `BRAKE_S`, and that it is in the lane then, are taken for
    independent, and so are the objects.
    """
    safe = 1.0
    for track in tracks:
        x, y, vx, vy = track.state
        if x <= 0 or vx >= -0.5:
            continue
        until = x / -vx
        soon = np.array([1.0, 0.0, BRAKE_S, 0.0])
        aside = np.array([0.0, 1.0, 0.0, min(until, BRAKE_S)])
        late = float(soon @ track.state) / math.sqrt(soon @ track.spread @ soon)
        wide = math.sqrt(2 * aside @ track.spread @ aside)
        off = y + vy * min(until, BRAKE_S)
        inside = (math.erf((LANE_M - off) / wide) + math.erf((LANE_M + off) / wide)) / 2
        safe *= 1 - inside * math.erfc(late / math.sqrt(2)) / 2
    return 1 - safe


# -- judged --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drive:
    """One scene by some sensors. `miss_m`: per frame, mean distance of objects and tracks, cut at
    `CUT_M`; `chance`, of a danger; `should`, whether there is one; `ms`, for the fusion alone.
    `speed_error`: (frame, object) -> m/s of what was found. `paths`: (track, x, y) of every frame.
    `seen` [frames, 3]: how many objects each sensor reports. `sweeps`: all that was measured, as
    `seen_again` reads it."""

    miss_m: Array
    chance: Array
    should: Array
    ms: Array
    speed_error: dict[tuple[int, int], float]
    paths: tuple[tuple[int, float, float], ...]
    seen: Array
    sweeps: list[list[list[list[float]]]]


def drive(
    world: Scene, sensors: Sequence[str], seed: int, broken: Mapping[str, int] = NOTHING
) -> Drive:
    """Drive through a scene. Each sensor's noise is the same whoever else is there; one that is
    `broken` says nothing from that frame on."""
    chance = {name: np.random.default_rng([seed, i]) for i, name in enumerate(SENSORS)}
    tracker, speeds = Tracker(), dict[tuple[int, int], float]()
    rows, paths, kept = [], [], []
    for frame, states in enumerate(world.states):
        raw = {name: _sense(name, states, world, chance[name]) for name in sensors}
        for name in sensors:
            if frame >= broken.get(name, FRAMES):
                raw[name] = _nothing(name)
        begun = time.perf_counter()
        sweeps = [clusters(*raw[n]) if n == "lidar" else raw[n] for n in sensors]
        tracks = tracker.step(sweeps)
        risk = danger(tracks)
        ms = 1000 * (time.perf_counter() - begun)
        said = np.array([track.state for track in tracks]).reshape(-1, 4)
        where = np.flatnonzero(in_sight(states))
        miss, speed = match(states[where], said)
        rows.append((miss, risk, brake(states[where]), ms, list(map(len, sweeps))))
        kept.append([[_numbers(item) for item in sweep] for sweep in sweeps])
        speeds |= {(frame, int(where[i])): error for i, error in speed.items()}
        paths += [(t.name, float(t.state[0]), float(t.state[1])) for t in tracks]
    miss_, risk_, should_, ms_, seen_ = (np.array(column) for column in zip(*rows, strict=True))
    counts = seen_.astype(np.float32)
    return Drive(miss_, risk_, should_, ms_, speeds, tuple(paths), counts, kept)


def seen_again(numbers: Sequence[float]) -> Seen:
    """A measurement from a record."""
    x, y, xx, xy, yy, *radial = numbers
    return Seen(np.array([x, y]), np.array([[xx, xy], [xy, yy]]), radial[0] if radial else None)


def _numbers(seen: Seen) -> list[float]:
    (xx, xy), (_, yy) = seen.spread.tolist()
    radial = [] if seen.radial is None else [float(seen.radial)]
    return [*seen.place.tolist(), xx, xy, yy, *radial]


def _nothing(name: str) -> Any:
    return (np.empty(0), np.empty(0)) if name == "lidar" else []


def _sense(name: str, states: Array, world: Scene, random: np.random.Generator) -> Any:
    make = {"camera": camera, "lidar": lidar_ranges, "radar": radar}[name]
    return make(states, world.radius, world.weather, random)


def match(truth: Array, said: Array) -> tuple[float, dict[int, float]]:
    """Mean cut distance over the larger number of both (nearest pairs first), and the matched
    objects' errors of velocity in m/s. Nothing there and nothing said is 0."""
    most = max(len(truth), len(said))
    if not most:
        return 0.0, {}
    apart = np.hypot(*(truth[:, None, :2] - said[None, :, :2]).transpose(2, 0, 1))
    total, speeds = CUT_M * most, dict[int, float]()
    while apart.size and apart.min() < CUT_M:
        i, j = np.unravel_index(int(apart.argmin()), apart.shape)
        total -= CUT_M - float(apart[i, j])
        speeds[int(i)] = float(np.hypot(*(truth[i, 2:] - said[j, 2:])))
        apart[i, :] = apart[:, j] = np.inf
    return total / most, speeds
