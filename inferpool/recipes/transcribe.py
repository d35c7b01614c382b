"""Speech to text: files, and a microphone-like stream with partial results.

What is said badly is handed to a person: a segment whose own log-probability is low, or that may
be no speech at all, is marked. The word error rate counts substitutions, insertions and deletions
against the words of the reference; case and punctuation do not count.
"""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import MODELS, Array, fetched, packaged
from inferpool.recipes.kit.metrics import Figure, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.use import Meter, Progress, Use, in_process, result

MODEL: Final = "whisper-base"
RATE: Final = 16_000
BAR: Final = 0.05
STEP_S: Final = 2.0  # of speech between two partial results
WINDOW_S: Final = 12.0  # of speech that is heard again at most
SETTLED_S: Final = 2.0  # a segment that ends before this much of the end will not change
DOUBT_LOGPROB: Final = -0.7  # of a segment's tokens on average: below it a person listens
DOUBT_NO_SPEECH: Final = 0.6
NOISES_DB: Final = (20, 5, -5)
SEED: Final = 20260101
CLIPS: Final = {
    "sense-0870": "And Mister John Dashwood had then leisure to consider how much there might be"
    " prudently in his power to do for them.",
    "sense-0880": "He was not an ill disposed young man.",
    "sense-0890": "Unless to be rather cold hearted and rather selfish is to be ill disposed.",
    "sense-0920": "Had he married a more amiable woman, he might have been made still more"
    " respectable than he was.",
    "sense-0930": "He might even have been made amiable himself.",
}
LONG: Final = packaged(
    "pypi",
    "moonshine-voice",
    "0.1.5",
    "moonshine_voice/assets/two_cities.wav",
    4_260_326,
    "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
)
_SPOKEN: Final = {"mr": "mister", "mrs": "missis", "dr": "doctor", "st": "saint"}


def words(text: str) -> list[str]:
    """The words of a text as they are spoken: no case, no punctuation, no abbreviations."""
    found = re.findall(r"[a-z0-9']+", text.lower().replace("-", " "))
    return [_SPOKEN.get(word, word) for word in found]


def errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of words to change, add or take away (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1]


def rate(said: Array, wrong: Array) -> float:
    """The word error rate of several clips: their errors over their words."""
    return float(wrong.sum() / said.sum())


# -- sound ---------------------------------------------------------------------------------------


def samples_of(wav: bytes) -> Array:
    """The samples of a mono WAV of 16 bits and 16 kHz."""
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def wav_of(samples: Array) -> bytes:
    """The other way round."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return target.getvalue()


def noisy(samples: Array, decibels: float) -> Array:
    """White noise on top, so many decibels below the speech; the same noise every time."""
    loud = float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
    noise = np.random.default_rng(SEED).normal(0, loud / 10 ** (decibels / 20), len(samples))
    return np.clip(samples + noise, -32_768, 32_767)


def clips() -> dict[str, bytes]:
    """The committed clips by name."""
    return {name: (MODELS / "data" / "speech" / f"{name}.wav").read_bytes() for name in CLIPS}


# -- the pool ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """What the pool wrote down of one clip. `doubts`: its segments that go to a person."""

    text: str
    segments: tuple[Any, ...]

    @property
    def doubts(self) -> int:
        """Segments that the model itself is unsure of."""
        return sum(
            item.avg_logprob < DOUBT_LOGPROB or item.no_speech_prob > DOUBT_NO_SPEECH
            for item in self.segments
        )


class Ear:
    """The pool's transcription by OpenAI's client."""

    def __init__(self, pool: PoolScorer, meter: Meter) -> None:
        self._api = pool.openai().audio.transcriptions.with_raw_response
        self.meter = meter

    def hear(self, wav: bytes) -> Heard:
        """One paid request."""
        answer = self.meter.call(
            lambda: self._api.create(
                model=MODEL,
                file=("speech.wav", wav),
                language="en",
                response_format="verbose_json",
            )
        )
        return Heard(answer.text, tuple(answer.segments or ()))

    def stream(self, samples: Array, partial: Any) -> str:
        """Listen as to a microphone: every `STEP_S` what was not settled yet is heard again."""
        settled, begin = "", 0
        for end in [*range(int(STEP_S * RATE), len(samples), int(STEP_S * RATE)), len(samples)]:
            heard = self.hear(wav_of(samples[begin:end]))
            if end == len(samples):
                return f"{settled} {heard.text}".strip()
            partial(f"{settled} {heard.text}".strip())
            until_s = (end - begin) / RATE - SETTLED_S
            sure = [item for item in heard.segments[:-1] if item.end <= until_s]
            if not sure and (end - begin) / RATE > WINDOW_S:
                sure = list(heard.segments)
            if sure:
                settled = f"{settled} {''.join(item.text for item in sure).strip()}".strip()
                begin += int(sure[-1].end * RATE)
        return settled


def play(pool: PoolScorer, small: bool, progress: Progress) -> list[dict[str, Any]]:
    """Clips, the same clips in noise, and the stream; the long clip where it is not `small`."""
    meter, found = Meter(), clips()
    ear = Ear(pool, meter)
    heard = {}
    for done, (name, wav) in enumerate(found.items(), 1):
        heard[name] = ear.hear(wav)
        progress(MODEL, done, len(found))
    difference = _difference(found, heard)
    figures = [_figure("word error rate, files", heard, bar=BAR)]
    sections = [_noise(ear, found, heard, NOISES_DB[-1:] if small else NOISES_DB)]
    streaming = Meter()
    figures.append(_streamed(Ear(pool, streaming), found, progress))
    sections.append(
        {
            "title": "As from a microphone",
            "text": f"Every {STEP_S:g} s of speech what is not settled is heard again: the time"
            " of each partial result.",
            "head": ["", ""],
            "rows": streaming.rows(),
        }
    )
    if not small:
        sections.append(_long(Ear(pool, Meter())))
    limits = (
        "Read English by one speaker, without noise of its own; 70 words say little about accents,"
        " names, or a telephone line.",
        "A node hears what is said: send nothing to strangers that they may not know.",
        f"Doubt is the model's own: below {DOUBT_LOGPROB} log-probability a token, or probably no"
        " speech. It is not calibrated.",
    )
    question = "What is said?"
    return [result(MODEL, question, len(found), figures, difference, meter, sections, limits)]


def _figure(name: str, heard: dict[str, Heard], bar: float | None = None) -> Figure:
    said = np.array([len(words(CLIPS[clip])) for clip in heard], dtype=float)
    wrong = np.array(
        [errors(words(CLIPS[clip]), words(item.text)) for clip, item in heard.items()], dtype=float
    )
    plain = np.array(
        [errors(CLIPS[clip].split(), item.text.split()) for clip, item in heard.items()],
        dtype=float,
    )
    return figure(
        name, rate, said, wrong, plain, "as written, letter by letter", bar=bar,
        more_is_better=False,
    )  # fmt: skip


def _difference(found: dict[str, bytes], heard: dict[str, Heard]) -> float:
    """The share of clips that the engine in this process writes down differently."""

    async def hear(engine: Any) -> list[str]:
        lengths = {name: -(-1000 * len(samples_of(wav)) // RATE) for name, wav in found.items()}
        said = [await engine.transcribe(wav, "en", lengths[name]) for name, wav in found.items()]
        return [item.text for item in said]

    own = in_process(MODEL, hear)
    return float(np.mean([a != heard[name].text for name, a in zip(found, own, strict=True)]))


def _noise(
    ear: Ear, found: dict[str, bytes], clean: dict[str, Heard], levels: Sequence[int]
) -> dict[str, Any]:
    rows = [["none", *_row(clean)]]
    for decibels in levels:
        heard = {
            name: ear.hear(wav_of(noisy(samples_of(wav), decibels))) for name, wav in found.items()
        }
        rows.append([f"{decibels} dB below the speech", *_row(heard)])
    return {
        "title": "In noise, and what goes to a person",
        "text": "White noise on the same clips. A segment that the model is unsure of is marked for"
        " a person; the same share is the monitor of a line that got worse.",
        "head": ["noise", "word error rate", "segments", "to a person"],
        "rows": rows,
    }


def _row(heard: dict[str, Heard]) -> list[str]:
    wrong = _figure("", heard).value
    segments = sum(len(item.segments) for item in heard.values())
    doubts = sum(item.doubts for item in heard.values())
    return [f"{wrong:.1%}", str(segments), str(doubts)]


def _streamed(ear: Ear, found: dict[str, bytes], progress: Progress) -> Figure:
    whole = np.concatenate([samples_of(wav) for wav in found.values()])
    total = int(len(whole) / RATE / STEP_S)
    shown: list[str] = []

    def partial(text: str) -> None:
        shown.append(text)
        progress(f"{MODEL}, stream", len(shown), total)

    text = ear.stream(whole, partial)
    reference = [word for line in CLIPS.values() for word in words(line)]
    wrong = np.array([float(errors(reference, words(text)))])
    first = float(errors(reference, words(shown[len(shown) // 2] if shown else "")))
    return figure(
        "word error rate, stream", rate, np.array([float(len(reference))]), wrong,
        first / len(reference), "its partial result half way", more_is_better=False,
    )  # fmt: skip


def _long(ear: Ear) -> dict[str, Any]:
    wav = fetched(LONG).read_bytes()
    with wave.open(io.BytesIO(wav)) as file:
        seconds = file.getnframes() / file.getframerate()
    heard = ear.hear(wav)
    took_s = sum(ear.meter.times_ms or []) / 1000
    return {
        "title": "A long clip",
        "text": f"{seconds:.0f} s of A Tale of Two Cities took {took_s:.1f} s,"
        f" {seconds / took_s:.1f} times as fast as it was spoken: {heard.text[:160]}…",
    }


RECIPE: Final = Use(
    "transcribe",
    "Speech to text",
    "Files and a microphone-like stream, written down; what is unclear goes to a person.",
    "Five clips of Sense and Sensibility, read for LibriVox (public domain), as they come with"
    " PocketSphinx (BSD); A Tale of Two Cities from the PyPI package moonshine-voice 0.1.5.",
    (MODEL,),
    play,
    needs="faster_whisper",
    extra="whisper",
)
