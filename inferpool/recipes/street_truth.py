"""What a person saw in eight frames of the street video, and the detector held to it.

"Found" means: a sure box lies around the middle of the body. The rule beside it says that somebody
is wherever the picture changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from inferpool.recipes import sight
from inferpool.recipes.kit import calibration
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.metrics import Figure, figure

Place = tuple[int, int]
# Where people stand in eight frames of the video, as one person saw them: the middle of each body.
# Who is more than half hidden is in `HIDDEN` and counts for nothing.
PEOPLE: Final = {
    50: ((694, 313), (385, 219), (524, 260), (569, 260), (445, 210)),
    150: ((605, 271), (402, 236), (451, 235), (647, 137), (668, 138), (719, 142), (80, 109)),
    250: ((617, 303), (561, 226), (399, 276), (50, 208), (206, 188), (645, 154), (668, 156)),
    350: ((491, 232), (684, 266), (712, 265), (399, 275), (393, 205)),
    450: ((577, 288), (500, 220), (322, 248)),
    550: ((197, 440), (261, 442), (138, 198), (613, 204), (655, 356)),
    650: ((357, 441), (655, 237), (483, 268), (151, 184), (334, 194), (231, 190)),
    750: ((254, 257), (655, 268), (520, 211), (674, 146), (193, 244), (384, 218), (412, 255),
          (752, 75)),
}  # fmt: skip
HIDDEN: Final = {50: ((420, 225),), 150: ((465, 215),), 350: ((702, 285),), 550: ((425, 187),)}
CELL: Final = (64, 32)  # of the baseline: a place where the picture changes is somebody
CHANGED: Final = 25.0
# A box of such a score goes to a person. Of the eight frames' other boxes one in twenty is wrong;
# the figures choose it anew without the frame that they judge.
DOUBT: Final = (0.28, 0.52)
DOUBT_ERROR: Final = 0.05


def judged(
    look: Callable[[Array], Array], pictures: Mapping[int, Array]
) -> tuple[list[Figure], list[calibration.Bin], calibration.Band]:
    """Figures, the boxes' scores against what is there, and what a person's look at the doubtful
    ones of `DOUBT` leaves. `look`: boxes of a picture, also very doubtful ones; `pictures` by
    number, those of `PEOPLE` and enough others to know the street."""
    usual = np.median(np.stack([item.mean(axis=2) for item in pictures.values()]), axis=0)
    boxes, people = _Tally(), _Tally()
    for number, seen in PEOPLE.items():
        found = look(pictures[number])
        found = found[found[:, 5] == sight.PERSON]
        found = found[np.argsort(-found[:, 4], kind="stable")]
        hits, scores = claimed(found, seen, HIDDEN.get(number, ()))
        for box, hit in zip(found, hits, strict=True):
            if hit is not None:
                boxes.add(number, float(box[4]), hit)
        lit = changed(pictures[number].mean(axis=2), usual)
        cells = [(y // CELL[0], x // CELL[1]) for x, y in seen]
        for score, cell in zip(scores, cells, strict=True):
            people.add(number, score, bool(lit[cell]))
        boxes.rule += [tuple(cell) in cells for cell in np.argwhere(lit).tolist()]
    right, certain = np.array(boxes.right, dtype=float), np.array(boxes.score)
    clear = certain >= sight.SURE
    met = (np.array(people.score) >= sight.SURE).astype(float)
    figures = [
        figure(
            "people found, of those a person saw", _share, np.ones(len(met)), met,
            float(np.mean(people.right)), "where the picture changes",
            groups=np.array(people.frame),
        ),
        figure(
            "boxes that are people", _share, np.ones(int(clear.sum())), right[clear],
            float(np.mean(boxes.rule)), "where the picture changes",
            groups=np.array(boxes.frame)[clear],
        ),
        _decided(right, certain, np.array(boxes.frame)),
    ]  # fmt: skip
    band = calibration.band(right, certain, *DOUBT, sight.SURE)
    return figures, calibration.bins(right, certain, 6), band


def _decided(right: Array, certain: Array, frame: Array) -> Figure:
    """How often the detector is right where nobody is asked: somebody above the band, nobody below.

    Each frame by a band that was chosen on the other frames.
    """
    said = certain >= sight.SURE
    asked = np.zeros(len(right), dtype=bool)
    for number in np.unique(frame):
        here = frame == number
        band = calibration.choose_band(right[~here], certain[~here], DOUBT_ERROR, sight.SURE)
        asked[here] = calibration.in_band(certain[here], *band)
    hit = (said == (right == 1)).astype(float)
    name = f"boxes decided rightly, {asked.mean():.0%} left to a person"
    kept = hit[~asked]
    return figure(name, _share, np.ones(len(kept)), kept, float(hit.mean()), "nobody asked",
                  groups=frame[~asked])  # fmt: skip


class _Tally:
    """Boxes or people: the frame, the score, and whether it (or the rule) is right."""

    def __init__(self) -> None:
        self.frame: list[int] = []
        self.score: list[float] = []
        self.right: list[bool] = []
        self.rule: list[bool] = []

    def add(self, frame: int, score: float, right: bool) -> None:
        self.frame.append(frame)
        self.score.append(score)
        self.right.append(right)


def claimed(
    boxes: Array, people: Sequence[Place], hidden: Sequence[Place]
) -> tuple[list[bool | None], list[float]]:
    """For each box, the best first, whether it is the first around the middle of somebody (None:
    of somebody hidden); for each person the score of their box, 0 without one."""
    hits, scores, taken = list[bool | None](), [0.0] * len(people), set[int]()
    for left, top, right, bottom, score, _ in boxes:
        inside = [
            (abs(x - (left + right) / 2) + abs(y - (top + bottom) / 2), i)
            for i, (x, y) in enumerate((*people, *hidden))
            if left <= x <= right and top <= y <= bottom and i not in taken
        ]
        if not inside:
            hits.append(False)
            continue
        place = min(inside)[1]
        taken.add(place)
        hits.append(True if place < len(people) else None)
        if place < len(people):
            scores[place] = float(score)
    return hits, scores


def changed(grey: Array, usual: Array) -> Array:
    """The cells [rows, columns] whose mean change from the usual picture is large."""
    tall, wide = CELL
    rows, columns = grey.shape[0] // tall, grey.shape[1] // wide
    apart = np.abs(grey - usual)[: rows * tall, : columns * wide]
    found: Array = apart.reshape(rows, tall, columns, wide).mean(axis=(1, 3)) > CHANGED
    return found


def _share(truth: Array, said: Array) -> float:
    return float((truth == said).mean())
