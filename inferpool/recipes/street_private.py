"""What may leave the car of a street picture, for `inferpool.recipes.street`: no head, no plate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from inferpool.recipes import sight
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.metrics import Figure, figure
from inferpool.recipes.kit.scorer import (
    request_body,
)
from inferpool.recipes.kit.take import leaks

IDENTIFIERS: Final = {
    "vehicle": "WVWZZZ1JZXW000001",
    "place": "51.43861 N, 0.94389 W",
    "drive": "2026-11-24T07:12:09Z",
}


def secrets(boxes: Array) -> Array:
    """Where a face or a plate may be: the upper quarter of a person, the lower half of a vehicle,
    and a little around it."""
    made = boxes[:, :4].copy()
    person = boxes[:, 5] == sight.PERSON
    tall, wide = made[:, 3] - made[:, 1], made[:, 2] - made[:, 0]
    made[person, 3] = made[person, 1] + 0.25 * tall[person]
    made[~person, 1] += 0.5 * tall[~person]
    around = np.stack([-wide, -0.05 * tall, wide, 0 * tall], axis=1) * [0.05, 1, 0.05, 1]
    found: Array = made + around
    return found


def hidden(picture: Array, boxes: Array) -> Array:
    """The picture as it may leave, given what the car's own detector sees in it."""
    return sight.blurred(picture, secrets(boxes[boxes[:, 4] >= sight.DOUBTED]))


def kept(own: Sequence[Array], boxes: Sequence[Array]) -> Figure:
    """How many sure boxes of the whole picture are still there in the picture that left."""
    kept, frame = list[bool](), list[int]()
    for number, (before, after) in enumerate(zip(own, boxes, strict=True)):
        for box in before[before[:, 4] >= sight.SURE]:
            same = after[after[:, 5] == box[5]]
            kept.append(bool(len(same)) and float(sight.overlaps(box, same).max()) >= 0.5)
            frame.append(number)
    said = np.array(kept, dtype=float)
    return figure(
        "boxes still found without heads and plates", _share, np.ones(len(said)), said, 1.0,
        "the whole picture, which stays in the car", groups=np.array(frame),
    )  # fmt: skip


def _share(truth: Array, said: Array) -> float:
    return float((truth == said).mean())


def trace(row: Array) -> dict[str, Any]:
    sent = request_body(sight.INPUT, row)
    return {
        "file": f"{sight.STREET.name}, frame 50",
        "left_out": dict(IDENTIFIERS),
        "sent": f"{sight.INPUT} {list(row.shape)}, {len(sent)} bytes",
        "sent_sha256": hashlib.sha256(sent).hexdigest(),
        "leaks": leaks(sent, IDENTIFIERS),
    }
