"""Who is hidden, and for how long; with a video decoder also the file that is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inferpool.recipes import sight, video
from inferpool.recipes.kit.data import Array

PICTURE = np.random.default_rng(1).integers(0, 256, (96, 208, 3)).astype(np.uint8)


def output(*rows: list[float]) -> Array:
    found = np.zeros((200, 6), dtype=np.float32)
    for number, row in enumerate(rows):
        found[number] = row
    found[:, :4] *= sight.scale(PICTURE)
    return found


def test_who_is_lost_for_a_moment_stays_hidden_and_then_is_nobody() -> None:
    work = video._Hiding()
    person = [20, 10, 50, 80, 0.9, sight.PERSON]
    outputs = [output(person)] * 5 + [output()] * (sight.FORGET + 2)
    made = list(work.hidden((PICTURE, item) for item in outputs))
    changed = [bool((item[10:80, 20:50] != PICTURE[10:80, 20:50]).any()) for item in made]
    assert changed[:6] == [True] * 6
    assert changed[-1] is False
    assert work.coasted == sum(map(len, work.places)) - 5 > 0


def test_a_doubtful_person_is_hidden_and_a_car_is_not() -> None:
    work = video._Hiding()
    rows = output([20, 10, 50, 80, video.LEAST + 0.01, 0], [100, 10, 180, 80, 0.9, 2])
    (made,) = work.hidden(iter([(PICTURE, rows)]))
    assert (made[10:80, 20:50] != PICTURE[10:80, 20:50]).any()
    assert (made[:, 100:] == PICTURE[:, 100:]).all()


def test_a_place_is_hidden_with_a_little_around_it() -> None:
    (place,) = video.grown(np.array([[100.0, 100.0, 200.0, 300.0]]))
    assert place.tolist() == [92, 84, 208, 316]
    assert len(video.around(place[None], 95, 310)) == 1
    assert len(video.around(place[None], 91, 310)) == 0


def test_a_written_video_shows_what_was_written_in_order(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="make test-whisper")
    pictures = [np.full((96, 208, 3), 60, dtype=np.uint8) for _ in range(6)]
    for number, picture in enumerate(pictures):
        picture[32:64, 32 * number : 32 * number + 32] = 220
    target = tmp_path / "a" / "video.mp4"
    assert video.write(iter(pictures), target) == len(pictures)
    again = [item[32:64].mean(axis=(0, 2)) for item in sight.pictures(target)]
    assert [int(item[:192].reshape(6, 32).mean(axis=1).argmax()) for item in again] == list(
        range(6)
    )


def test_the_street_is_as_long_as_its_labels_ask() -> None:
    pytest.importorskip("av", reason="make test-whisper")
    assert sum(1 for _ in sight.pictures(sight.STREET)) == 795
