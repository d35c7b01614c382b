"""Video: who is in it is found by a pool and made unrecognisable, then it is encoded again.

Every person's whole box is made coarse, also for a moment after the detector lost them: a head that
shows in one frame is a head that was shown. Whether anybody is left is measured on the file that
was written, as whoever gets it would read it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.recipes import sight, street
from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.metrics import Figure, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.scorer import EngineScorer, difference
from inferpool.recipes.kit.use import Meter, Progress, Use, about_usd, result
from inferpool.recipes.street_truth import HIDDEN, PEOPLE

LEAST: Final = 0.2  # a box of less is nobody; a doubtful one is hidden too
AROUND: Final = 0.08  # of a box's sides, hidden beyond it
FRAMES_A_REQUEST: Final = 4
AT_ONCE: Final = 2  # requests
SMALL_FRAMES: Final = 160
CHECKED_EVERY: Final = 10
RATE: Final = 10  # frames a second, of this video
SHOWN: Final = 50
CODEC: Final = "libsvtav1"  # BSD, unlike the other good encoders in FFmpeg
QUALITY: Final = {"crf": "38", "preset": "10"}


def play(pool: PoolScorer, small: bool, progress: Progress, out: Path) -> list[dict[str, Any]]:
    """The street video without its people, written to `out`, and looked through again."""
    frames = SMALL_FRAMES if small else None
    target = out / "without-people.mp4"
    meter, work = Meter(), _Hiding()
    before, begun = time.process_time(), time.monotonic()
    count = write(work.hidden(_found(pool, frames, meter, progress)), target)
    seconds, own_cpu_s = time.monotonic() - begun, time.process_time() - before
    with EngineScorer() as engine:
        figures = [_labelled(work.places), _left(engine, target, work.places, frames)]
        apart = _difference(engine, work.outputs)
    thousand = 1000 * _charged(pool, meter) // count
    section = {
        "title": "The file",
        "text": f"`{target.name}`, AV1, {count} frames.",
        "head": ["", ""],
        "rows": [
            ["frames a second, found, hidden and encoded", f"{count / seconds:.1f}"],
            ["as fast as it was filmed, times", f"{count / seconds / RATE:.2f}"],
            ["of a core in this process, a frame", f"{1000 * own_cpu_s / count:.0f} ms"],
            ["boxes hidden", str(sum(map(len, work.places)))],
            ["of them where nobody was found in that frame", str(work.coasted)],
            ["size", f"{target.stat().st_size / 1e6:.2f} MB"],
            ["1,000 frames cost", about_usd(thousand)],
            ["an hour of 25 frames a second costs", about_usd(thousand * 90)],
        ],
    }
    question = "Who is in this video, and is it left without them?"
    sections = [section, _pictures(target)]
    made = result(
        sight.MODEL,
        question,
        count,
        figures,
        apart,
        meter,
        sections,
        LIMITS,
        tolerance=street.AGREE,
    )
    return [made]


# -- found, hidden, written ----------------------------------------------------------------------


def _found(
    pool: PoolScorer, frames: int | None, meter: Meter, progress: Progress
) -> Iterator[tuple[Array, Array]]:
    """Each picture with the pool's output [200, 6], in order; some requests are under way."""
    waiting: deque[tuple[list[Array], Future[tuple[Sample, float]]]] = deque()
    done, pictures = 0, islice(sight.pictures(sight.STREET), frames)

    def ask(rows: Array) -> tuple[Sample, float]:
        begun = time.monotonic()
        answer = pool.infer(sight.MODEL, sight.INPUT, rows)
        return answer, 1000 * (time.monotonic() - begun)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="video") as threads:
        more = True
        while more or waiting:
            if more and len(waiting) < AT_ONCE:
                part = list(islice(pictures, FRAMES_A_REQUEST))
                more = bool(part)
                if part:
                    rows = np.concatenate([sight.framed(picture) for picture in part])
                    waiting.append((part, threads.submit(ask, rows)))
                continue
            part, asked = waiting.popleft()
            answer, ms = asked.result()
            meter.times_ms = [*(meter.times_ms or []), ms]
            done += len(part)
            progress("video", done, frames or done)
            yield from zip(part, answer["boxes"], strict=True)


class _Hiding:
    """Keeps for each frame the `places` that were hidden and the `outputs` they came from."""

    def __init__(self) -> None:
        self.places: list[Array] = []
        self.outputs: list[Array] = []
        self.coasted = 0
        self._people = sight.Follower()

    def hidden(self, found: Iterator[tuple[Array, Array]]) -> Iterator[Array]:
        """The pictures without people."""
        for picture, output in found:
            boxes = sight.boxes(output, sight.scale(picture), LEAST)
            people = boxes[boxes[:, 5] == sight.PERSON]
            self._people.step(people)
            lost = [path.box for path in self._people.alive if path.unseen]
            self.coasted += len(lost)
            places = np.concatenate([people[:, :4], np.array(lost).reshape(-1, 4)])
            self.places.append(grown(places))
            self.outputs.append(output)
            yield sight.blurred(picture, self.places[-1])


def grown(places: Array) -> Array:
    """The boxes [n, 4] with a little around them."""
    sides = np.tile(places[:, 2:] - places[:, :2], 2) * AROUND
    found: Array = places + sides * [-1, -1, 1, 1]
    return found


def write(pictures: Iterator[Array], target: Path) -> int:
    """Encode the pictures; returns how many."""
    os.environ.setdefault("SVT_LOG", "1")  # its encoder tells of errors only
    import av

    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with av.open(str(target), "w") as file:
        stream: Any = None
        for picture in pictures:
            if stream is None:
                stream = file.add_stream(CODEC, rate=RATE, options=QUALITY)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            count += 1
        if stream is not None:
            file.mux(stream.encode())
    return count


# -- judged --------------------------------------------------------------------------------------


def _labelled(places: Sequence[Array]) -> Figure:
    """Of the people whom a person saw in some frames, who is hidden from head to middle."""
    hid, frame, rule = list[bool](), list[int](), list[bool]()
    for number, people in PEOPLE.items():
        if number < len(places):
            for x, y in (*people, *HIDDEN.get(number, ())):
                hid.append(bool(len(around(places[number], x, y))))
                frame.append(number)
                rule.append(y < 288)  # the upper half of the picture
    said = np.array(hid, dtype=float)
    return figure(
        "people hidden, of those a person saw", _share, np.ones(len(said)), said,
        float(np.mean(rule)), "the picture's upper half hidden", groups=np.array(frame),
    )  # fmt: skip


def around(places: Array, x: float, y: float) -> Array:
    """The places that this point lies in."""
    found: Array = places[
        (places[:, 0] <= x) & (x <= places[:, 2]) & (places[:, 1] <= y) & (y <= places[:, 3])
    ]
    return found


def _left(
    engine: EngineScorer, target: Path, places: Sequence[Array], frames: int | None
) -> Figure:
    """Of the sure boxes of people before, how many the same detector no longer finds after."""
    gone, frame = list[bool](), list[int]()
    pairs = zip(
        islice(sight.pictures(sight.STREET, CHECKED_EVERY), None),
        sight.pictures(target, CHECKED_EVERY),
        strict=False,
    )
    for number, (before, after) in enumerate(pairs):
        left = _people(engine, after)
        for box in _people(engine, before):
            same = sight.overlaps(box, left) if len(left) else np.zeros(1)
            gone.append(float(same.max()) < 0.5)
            frame.append(number)
    said = np.array(gone, dtype=float)
    return figure(
        "boxes of people gone from the file", _share, np.ones(len(said)), said, 0.0,
        "encoded again, nobody hidden", bar=0.95, groups=np.array(frame),
    )  # fmt: skip


def _people(engine: EngineScorer, picture: Array) -> Array:
    found = street.seen(engine, picture)
    people: Array = found[(found[:, 4] >= sight.SURE) & (found[:, 5] == sight.PERSON)]
    return people


def _share(truth: Array, said: Array) -> float:
    return float((truth == said).mean())


def _difference(engine: EngineScorer, outputs: Sequence[Array]) -> float:
    """The greatest difference of some of the pool's answers to the engine in this process."""
    apart = 0.0
    for number, picture in enumerate(islice(sight.pictures(sight.STREET), len(outputs))):
        if number % CHECKED_EVERY == 0:
            own = engine.infer(sight.MODEL, sight.INPUT, sight.framed(picture))
            apart = max(apart, difference({"boxes": outputs[number][None]}, own))
    return apart


def _charged(pool: PoolScorer, meter: Meter) -> int:
    """What all requests cost, in pico-USD, from the receipts that the book still shows."""
    paid = [item for item in pool.book() if item["model"] == sight.MODEL and item["proof"]]
    shown = paid[: meter.calls]
    charged = sum(int(item["proof"]["receipt"]["chargePico"]) for item in shown)
    meter.charged_pico_usd = charged * meter.calls // max(1, len(shown))
    return meter.charged_pico_usd


def _pictures(target: Path) -> dict[str, Any]:
    shown = [next(islice(sight.pictures(path), SHOWN, None)) for path in (sight.STREET, target)]
    return {
        "title": "Before and after",
        "text": f"Frame {SHOWN} of the video, and of the file that was written.",
        "pictures": [
            ("before", sight.png(shown[0])),
            ("after", sight.png(shown[1])),
        ],
    }


LIMITS: Final = (
    "The pool sees the people: it is asked to find them. What strangers may not see goes to nodes"
    " of your own.",
    "Whom the detector never finds stays as they are: the far, the half hidden, who lies down. One"
    " street by day says little about others.",
    "A box made coarse hides a face, not a gait, a coat, a place or a time; sound is not looked at,"
    " and this video has none.",
    "Who is gone is asked of the same detector that found them; the other figure is a person's.",
)
RECIPE: Final = Use(
    "video",
    "Video without its people",
    "People found through the pool, made unrecognisable, the video encoded again.",
    "vtest.avi of OpenCV's samples (Apache-2.0), encoded again. YOLOX-Nano (Apache-2.0).",
    (sight.MODEL,),
    play,
    needs="av",
    extra="video",
    audits=True,
)
