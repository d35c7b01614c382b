"""A simulated street and three sensors in it, for `inferpool.recipes.fusion`.

No free recording of lidar and radar was found. Coordinates are the car's own, x ahead and y to the
left, in metres; velocities are relative to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import Array

STEP_S: Final = 0.1
FRAMES: Final = 60
FAR_M: Final = 60.0
SECTOR: Final = math.radians(60)  # to each side
RAYS: Final = 481
LIDAR_M: Final = 0.08  # deviation of a cluster from its object
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
        seen.append(_polar(away, angle, LIDAR_M, LIDAR_M / max(away, 1.0)))
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
    spread = turn @ np.diag([away_sd**2, (away * angle_sd) ** 2 + 0.0025]) @ turn.T
    spread = (spread + spread.T) / 2
    return Seen(away * turn[:, 0], spread, radial)
