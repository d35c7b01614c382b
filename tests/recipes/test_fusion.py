"""Clusters, tracks, the brake, and how sure a track is of it."""

from __future__ import annotations

import numpy as np
import pytest

from inferpool.recipes import fusion, scenes
from inferpool.recipes.fusion import Track, Tracker
from inferpool.recipes.scenes import Scene, Seen


def test_a_lidar_sees_two_objects_where_there_are_two() -> None:
    states = np.array([[12.0, 3.0, 0, 0], [20.0, -4.0, 0, 0]])
    random = np.random.default_rng(1)
    sweep = scenes.lidar_ranges(states, np.array([1.0, 0.6]), "clear", random)
    found = sorted(scenes.clusters(*sweep), key=lambda seen: float(seen.place[0]))
    assert len(found) == 2
    for seen, truth in zip(found, states, strict=True):
        assert np.hypot(*(seen.place - truth[:2])) < 0.5


def test_what_stands_behind_is_hidden() -> None:
    states = np.array([[10.0, 0.0, 0, 0], [20.0, 0.0, 0, 0]])
    sweep = scenes.lidar_ranges(states, np.ones(2), "clear", np.random.default_rng(1))
    assert len(scenes.clusters(*sweep)) == 1


def test_a_track_learns_a_speed_that_nobody_measured() -> None:
    tracker = Tracker()
    for frame in range(30):
        place = np.array([40.0 - 5 * frame * scenes.STEP_S, 2.0])
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
    assert fusion.brake(np.array([state], dtype=float)) is stops


def coming(spread: float) -> Track:
    return Track(np.array([20.0, 0.0, -10.0, 0.0]), np.eye(4) * spread)


def test_danger_is_what_brake_says_where_nothing_is_unsure() -> None:
    assert fusion.danger([coming(1e-6)]) == pytest.approx(1)
    aside = Track(np.array([20.0, 4.0, -10.0, 0.0]), np.eye(4) * 1e-6)
    late = Track(np.array([30.0, 0.0, -10.0, 0.0]), np.eye(4) * 1e-6)
    assert fusion.danger([aside, late]) == pytest.approx(0, abs=1e-9)
    assert fusion.danger([]) == 0


def test_danger_is_a_chance_where_a_track_is_unsure() -> None:
    edge = Track(np.array([20.0, fusion.LANE_M, -10.0, 0.0]), np.diag([1e-6, 0.01, 1e-6, 1e-6]))
    assert fusion.danger([edge]) == pytest.approx(0.5, abs=0.01)
    assert 0.1 < fusion.danger([coming(1.0)]) < fusion.danger([coming(0.1)])
    assert fusion.danger([edge, edge]) == pytest.approx(0.75, abs=0.01)


def test_an_echo_with_another_speed_is_another_object() -> None:
    tracker = Tracker()
    for frame in range(10):
        place = np.array([40.0 - frame * scenes.STEP_S * 5, 0.0])
        tracks = tracker.step([[Seen(place, np.eye(2) * 0.01)]])
    (track,) = tracks
    before = track.state.copy()
    ghost = Seen(track.state[:2] - [0.5, 0.0], np.eye(2) * 0.1, radial=12.0)
    tracker.step([[ghost]])
    assert np.abs(track.state[2:] - before[2:]).max() < 0.01
    assert len(tracker.tracks) == 1  # too near to be an object of its own


def test_what_has_left_the_sensors_field_is_no_track() -> None:
    tracker = Tracker()
    for frame in range(10):
        place = np.array([5.0 - 0.36 * frame, 0.0])
        tracks = tracker.step([[Seen(place, np.eye(2) * 0.01)]])
    assert len(tracks) == 1
    assert tracker.step([[]]) == []


def test_match_counts_what_is_missed_and_what_is_invented() -> None:
    one, far = np.array([[10.0, 0, 0, 0]]), np.array([[10.0, 30, 0, 0]])
    nothing = np.empty((0, 4))
    assert fusion.match(one, one) == (0, {0: 0})
    assert fusion.match(one, nothing) == fusion.match(nothing, one) == (fusion.CUT_M, {})
    assert fusion.match(one, np.vstack([one, far])) == (fusion.CUT_M / 2, {0: 0})
    assert fusion.match(np.vstack([far, one]), one) == (fusion.CUT_M / 2, {1: 0})
    assert fusion.match(nothing, nothing) == (0, {})


def test_an_empty_street_brakes_nobody() -> None:
    world = Scene("rain", np.full((scenes.FRAMES, 1, 4), [500.0, 0, 0, 0]), np.ones(1))
    assert not (fusion.drive(world, ("lidar",), 1).chance > 0.5).any()


def test_a_broken_sensor_is_silent_from_its_frame_on() -> None:
    world = scenes.scene(0, 1)
    found = fusion.drive(world, fusion.SENSORS, 1, {"radar": 10})
    radar = fusion.SENSORS.index("radar")
    assert found.seen[:10, radar].any()
    assert not found.seen[10:, radar].any()
    assert found.seen[10:].any()
