"""Tracks, clusters, the brake; and that all sensors together see more than each alone."""

from __future__ import annotations

import numpy as np
import pytest

from inferpool.recipes import driving
from inferpool.recipes.driving import Scene, Seen, Tracker


def test_a_lidar_sees_two_objects_where_there_are_two() -> None:
    states = np.array([[12.0, 3.0, 0, 0], [20.0, -4.0, 0, 0]])
    random = np.random.default_rng(1)
    sweep = driving.lidar_ranges(states, np.array([1.0, 0.6]), "clear", random)
    found = sorted(driving.clusters(*sweep), key=lambda seen: float(seen.place[0]))
    assert len(found) == 2
    for seen, truth in zip(found, states, strict=True):
        assert np.hypot(*(seen.place - truth[:2])) < 0.5


def test_what_stands_behind_is_hidden() -> None:
    states = np.array([[10.0, 0.0, 0, 0], [20.0, 0.0, 0, 0]])
    sweep = driving.lidar_ranges(states, np.ones(2), "clear", np.random.default_rng(1))
    assert len(driving.clusters(*sweep)) == 1


def test_a_track_learns_a_speed_that_nobody_measured() -> None:
    tracker = Tracker()
    for frame in range(30):
        place = np.array([40.0 - 5 * frame * driving.STEP_S, 2.0])
        tracks = tracker.step([[Seen(place, np.eye(2) * 0.01)]])
    (track,) = tracks
    assert track.state == pytest.approx([25.5, 2, -5, 0], abs=0.2)


def test_one_glimpse_is_no_object_and_what_is_gone_is_forgotten() -> None:
    tracker = Tracker()
    glimpse = Seen(np.array([20.0, 0.0]), np.eye(2) * 0.01)
    assert tracker.step([[glimpse], [glimpse], [glimpse]]) == []
    for _ in range(10):
        assert tracker.step([[]]) == []
    assert tracker.tracks == []


@pytest.mark.parametrize(
    ("state", "stops"),
    [
        ([20, 0, -10, 0], True),
        ([30, 0, -10, 0], False),  # three seconds away
        ([20, 4, -10, 0], False),  # beside the lane
        ([20, 4, -10, -2], True),  # walks into it
        ([20, 0, 1, 0], False),  # drives away
        ([-5, 0, -10, 0], False),  # is behind
    ],
)
def test_brake(state: list[float], stops: bool) -> None:
    assert driving.brake(np.array([state], dtype=float)) is stops


def test_match_counts_what_is_missed_and_what_is_invented() -> None:
    one, far = np.array([[10.0, 0, 0, 0]]), np.array([[10.0, 30, 0, 0]])
    nothing = np.empty((0, 4))
    assert driving.match(one, one) == (0, [0])
    assert driving.match(one, nothing) == driving.match(nothing, one) == (driving.CUT_M, [])
    assert driving.match(one, np.vstack([one, far])) == (driving.CUT_M / 2, [0])
    assert driving.match(nothing, nothing) == (0, [])


def test_an_empty_street_brakes_nobody() -> None:
    world = Scene("rain", np.full((driving.FRAMES, 1, 4), [500.0, 0, 0, 0]), np.ones(1))
    assert not driving.drive(world, ("lidar",), 1).braked.any()


def test_small_run_fusion_beats_each_sensor_and_repeats() -> None:
    (found,) = driving.play(None, True, lambda label, done, total: None)
    assert found["agrees"]
    table = next(item for item in found["sections"] if "velocity" in item.get("head", ()))
    miss = {row[0]: float(row[1]) for row in table["rows"]}
    assert all(miss["fused"] < miss[name] for name in driving.SENSORS)
    assert found["figures"][0]["reached"]
