"""Boxes, tracks and coarse places; the detector on one real frame, without a video decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inferpool.recipes import sight, street, street_private, street_truth
from inferpool.recipes.kit import audit
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.scorer import EngineScorer


def box(left: float, score: float = 0.9, kind: int = 0) -> list[float]:
    return [left, 10, left + 20, 60, score, kind]


def output(*rows: list[float]) -> Array:
    found = np.zeros((200, 6), dtype=np.float32)
    found[: len(rows)] = rows
    return found


def frame() -> Array:
    """Frame 50 of the street video as the model gets it."""
    made = np.full((1, 3, sight.SIDE, sight.SIDE), sight.GREY, dtype=np.uint8)
    with np.load(Path(__file__).with_name("street.npz")) as packed:
        made[:, :, :312] = packed["frame"]
    return made


def test_one_thing_has_one_box_and_another_kind_its_own() -> None:
    found = sight.boxes(output(box(10), box(12, 0.8), box(100), box(11, 0.7, 2), box(50, 0.1)), 0.5)
    assert found[:, 0].tolist() == [20, 200, 22]
    assert found[:, 5].tolist() == [0, 0, 2]
    assert found[:, 4].min() > sight.SURE


def test_what_is_no_person_and_no_vehicle_is_left_out() -> None:
    assert len(sight.boxes(output(box(10, 0.9, 62)), 1.0)) == 0


def test_two_who_cross_keep_their_tracks_and_a_doubtful_box_continues_one() -> None:
    follower = sight.Follower()
    for step in range(20):
        score = 0.2 if step == 7 else 0.9  # too little to begin a track
        rows = [box(5.0 * step, score), [100 - 5.0 * step, 60, 120 - 5.0 * step, 110, 0.8, 0]]
        seen = follower.step(np.array(rows))
    assert len(seen) == len(follower.confirmed()) == 2
    assert {path.hits for path in seen} == {20}
    right = [path.centres[-1][0] > path.centres[0][0] for path in seen]
    assert sorted(right) == [False, True]


def test_a_glimpse_is_no_track_and_what_is_gone_ends() -> None:
    follower = sight.Follower()
    follower.step(np.array([box(10)]))
    for _ in range(2 * sight.FORGET):
        assert follower.step(np.empty((0, 6))) == []
    assert follower.alive == follower.confirmed() == []
    for _ in range(4):
        follower.step(np.array([box(10)]))
    for _ in range(sight.FORGET):
        follower.step(np.empty((0, 6)))
    assert follower.alive == []
    assert len(follower.confirmed()) == 1


def test_a_coarse_place_tells_nothing_finer_and_the_rest_is_as_it_was() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    made = sight.blurred(picture, np.array([[10.0, 5.0, 30.0, 25.0]]), cells=4)
    part = made[5:25, 10:30]
    assert len(np.unique(part.reshape(-1, 3), axis=0)) <= 16
    outside = np.ones((40, 60), dtype=bool)
    outside[5:25, 10:30] = False
    assert (made[outside] == picture[outside]).all()
    sight.blurred(picture, np.array([[-9.0, -9.0, 3.0, 3.0], [50.0, 30.0, 99.0, 99.0]]))


def test_heads_and_plates_are_where_they_are() -> None:
    person, car = [100, 100, 140, 200, 0.9, 0], [200, 100, 300, 160, 0.9, 2]
    head, plate = street_private.secrets(np.array([person, car], dtype=float))
    assert head[3] == 125
    assert head[0] < 100 < 140 < head[2]
    assert plate[1] < 130 + 1
    assert plate[3] == 160


def test_one_person_has_one_box_and_who_is_hidden_counts_for_nothing() -> None:
    rows = np.array([[0, 0, 20, 40, 0.9, 0], [2, 0, 22, 40, 0.8, 0], [50, 0, 60, 20, 0.7, 0],
                     [90, 0, 99, 20, 0.6, 0]], dtype=float)  # fmt: skip
    hits, scores = street_truth.claimed(rows, [(10, 20), (200, 20)], [(55, 10)])
    assert hits == [True, False, None, False]
    assert scores == [0.9, 0.0]


def test_a_cell_is_lit_where_the_picture_changes() -> None:
    usual, grey = np.zeros((128, 64)), np.zeros((128, 64))
    grey[70:120, 34:60] = 200
    assert street_truth.changed(grey, usual).tolist() == [[False, False], [False, True]]


@pytest.fixture(scope="module")
def seen(engine: EngineScorer) -> Array:
    return engine.infer(sight.MODEL, sight.INPUT, frame())["boxes"][0]


def test_the_detector_finds_whom_a_person_saw(seen: Array) -> None:
    found = sight.boxes(seen, street.SHRUNK)
    people = found[found[:, 5] == sight.PERSON]
    _, scores = street_truth.claimed(people, street_truth.PEOPLE[50], ())
    assert min(scores) > sight.SURE
    assert {sight.NAMES[int(kind)] for kind in found[:, 5]} >= {"person", "car"}


def test_pictures_in_one_request_are_answered_each_as_alone(
    seen: Array, engine: EngineScorer
) -> None:
    two = np.concatenate([np.full_like(frame(), 90), frame()])
    both = engine.infer(sight.MODEL, sight.INPUT, two)["boxes"]
    assert both.shape == (2, 200, 6)
    assert np.abs(both[1] - seen).max() < 1e-3
    assert both[0, :, 4].max() < sight.SURE


def test_a_frame_is_decided_again_from_its_record(engine: EngineScorer) -> None:
    row = frame()
    answer = engine.infer(sight.MODEL, sight.INPUT, row)
    (told,) = engine.told(sight.MODEL, sight.INPUT, [row], [answer])
    words = street.verdict(sight.boxes(answer["boxes"][0], street.SHRUNK, street_truth.DOUBT[0]))
    assert "5 person" in words
    record = audit.record("driving", sight.MODEL, sight.INPUT, row, told, 0.9, words, [], 1)
    assert audit.replay(record, engine).bitwise


def test_a_doubtful_box_is_told_apart() -> None:
    assert street.verdict(np.empty((0, 6))) == "nobody"
    sure, doubtful = box(10), box(100, 0.3)
    assert street.verdict(np.array([sure, sure])) == "2 person"
    assert street.verdict(np.array([sure, doubtful])) == "1 person; 1 doubtful"


def test_doubtful_boxes_are_asked_about_and_the_others_are_right_more_often() -> None:
    random = np.random.default_rng(4)
    frame = np.repeat(np.arange(8), 30)
    certain = random.uniform(0.05, 0.95, len(frame))
    right = (certain + random.normal(0, 0.1, len(frame)) > 0.4).astype(float)
    found = street_truth._decided(right, certain, frame)
    assert found.value > found.baseline
    assert found.low <= found.value <= found.high
    assert found.n == 8
    assert "left to a person" in found.name
    assert not found.name.startswith("boxes decided rightly, 0%")
