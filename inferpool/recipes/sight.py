"""What a camera sees: pictures of a video, boxes around people and vehicles, and their tracks.

Pictures are arrays [height, width, 3] of bytes, blue first; a box is left, top, right, bottom in
pixels of the picture, its score, and its class of COCO.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import MODELS, Array

MODEL: Final = "yolox-nano"
INPUT: Final = "frame"
STREET: Final = MODELS / "data" / "street" / "vtest.mp4"
SIDE: Final = 416
GREY: Final = 114  # around a picture that is no square
NAMES: Final = {0: "person", 1: "bicycle", 2: "car", 3: "motorcycle", 5: "bus", 7: "truck"}
PERSON: Final = 0
SURE: Final = 0.4  # a box that may begin a track
DOUBTED: Final = 0.15  # one that may only continue one
OVERLAP: Final = 0.5  # boxes of one class that share more are one thing
SAME: Final = 0.25  # share that a track's next box has with where it is expected
CONFIRM: Final = 3
FORGET: Final = 10  # frames without a box


def pictures(path: Path, every: int = 1) -> Iterator[Array]:
    """The pictures of a video, or every so manieth."""
    import av

    with av.open(str(path)) as file:
        for number, frame in enumerate(file.decode(video=0)):
            if number % every == 0:
                yield frame.to_ndarray(format="bgr24")


def framed(picture: Array) -> Array:
    """The model's input [1, 3, 416, 416]: the picture made smaller, in the upper left corner."""
    height, width = picture.shape[:2]
    small = resized(picture, round(width * scale(picture)), round(height * scale(picture)))
    found = np.full((SIDE, SIDE, 3), GREY, dtype=np.uint8)
    found[: small.shape[0], : small.shape[1]] = small
    return np.ascontiguousarray(found.transpose(2, 0, 1))[None]


def scale(picture: Array) -> float:
    """How much smaller the model sees a picture."""
    return SIDE / float(max(picture.shape[:2]))


def resized(picture: Array, width: int, height: int) -> Array:
    """The picture in another size."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
    found: Array = frame.reformat(width, height).to_ndarray(format="bgr24")
    return found


def boxes(output: Array, shrunk: float, least: float = SURE) -> Array:
    """Boxes [n, 6] of one output [200, 6] in the pixels of the picture, each thing once."""
    found = output[(output[:, 4] >= least) & np.isin(output[:, 5], list(NAMES))]
    kept: list[Array] = []
    for box in found[np.argsort(-found[:, 4], kind="stable")]:
        same = [other for other in kept if other[5] == box[5]]
        if not same or overlaps(box, np.array(same)).max() <= OVERLAP:
            kept.append(box)
    made = np.array(kept, dtype=np.float64).reshape(-1, 6)
    made[:, :4] /= shrunk
    return made


def overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of one box with others [n, 4 or more]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    sizes = np.prod(others[:, 2:4] - others[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    shared: Array = both / np.maximum(sizes - both, 1e-9)
    return shared


@dataclass(slots=True)
class Way:
    """One thing over time. `step` [4]: how its box moved from frame to frame, smoothed."""

    name: int
    box: Array
    step: Array
    best: float = 0.0  # score
    hits: int = 1
    unseen: int = 0
    centres: list[tuple[float, float]] = field(default_factory=list)


class Follower:
    """Tracks of one class in one video: sure boxes first, then doubtful ones for what is known."""

    def __init__(self) -> None:
        self.alive: list[Way] = []
        self.ended: list[Way] = []
        self._made = 0

    def step(self, found: Array) -> list[Way]:
        """One frame's boxes [n, 6], doubtful ones too; the confirmed tracks that were seen."""
        for path in self.alive:
            path.box, path.unseen = path.box + path.step, path.unseen + 1
        sure = found[:, 4] >= SURE
        left = self._continue(found[sure], list(self.alive))
        self._continue(found[~sure], [path for path in self.alive if path.unseen])
        for box in left:
            self._made += 1
            self.alive.append(Way(self._made, box[:4], np.zeros(4), float(box[4])))
        gone = [p for p in self.alive if p.unseen >= (FORGET if p.hits >= CONFIRM else 2)]
        self.ended += [path for path in gone if path.hits >= CONFIRM]
        self.alive = [path for path in self.alive if all(path is not item for item in gone)]
        return [path for path in self.alive if path.hits >= CONFIRM and not path.unseen]

    def confirmed(self) -> list[Way]:
        """Every track that was seen often enough, also those that ended."""
        return [*self.ended, *(path for path in self.alive if path.hits >= CONFIRM)]

    def _continue(self, found: Array, paths: list[Way]) -> list[Array]:
        """Give each path its best box; the boxes that are left."""
        pairs = sorted(
            (-float(share), i, j)
            for i, path in enumerate(paths)
            for j, share in enumerate(overlaps(path.box, found) if len(found) else ())
            if share > SAME
        )
        taken, used = set[int](), set[int]()
        for _, i, j in pairs:
            if i not in taken and j not in used:
                taken.add(i)
                used.add(j)
                _move(paths[i], found[j])
        return [box for j, box in enumerate(found) if j not in used]


def _move(path: Way, box: Array) -> None:
    before, score, box = path.box - path.step, float(box[4]), box[:4]
    path.step = 0.7 * path.step + 0.3 * (box - before) / max(1, path.unseen)
    path.box, path.unseen, path.hits = box, 0, path.hits + 1
    path.best = max(path.best, score)
    path.centres.append((float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2))


def blurred(picture: Array, places: Array, cells: int = 4) -> Array:
    """The picture with boxes [n, 4 or more] made into so many coarse cells each way."""
    made = picture.copy()
    for left, top, right, bottom in places[:, :4].round().astype(int).tolist():
        part = made[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        rows = np.array_split(np.arange(part.shape[0]), cells)
        columns = np.array_split(np.arange(part.shape[1]), cells)
        for row in rows:
            for column in columns:
                if len(row) and len(column):
                    cell = part[row[0] : row[-1] + 1, column[0] : column[-1] + 1]
                    cell[:] = cell.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    return made


def drawn(picture: Array, places: Array) -> Array:
    """The picture with a frame around each box."""
    made, (height, width) = picture.copy(), picture.shape[:2]
    for left, top, right, bottom in places[:, :4].round().astype(int).tolist():
        x0, x1 = np.clip([left, right], 0, width - 1)
        y0, y1 = np.clip([top, bottom], 0, height - 1)
        made[y0 : y1 + 1, [x0, x1]] = made[[y0, y1], x0 : x1 + 1] = (0, 0, 255)
    return made


def png(picture: Array) -> str:
    """The picture as PNG in base64, for a report."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="image2pipe") as file:
        stream: Any = file.add_stream("png")
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
        for packet in [*stream.encode(frame.reformat(format="rgb24")), *stream.encode()]:
            file.mux(packet)
    return base64.b64encode(target.getvalue()).decode()
