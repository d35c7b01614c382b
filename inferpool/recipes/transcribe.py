"""Speech to text: files, and a microphone-like stream with partial results.

What is said badly is handed to a person: a segment whose own log-probability is low, or that may
be no speech at all, is marked. The word error rate counts substitutions, insertions and deletions
against the words of the reference; case and punctuation do not count.
"""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.protocol.units import format_usd
from inferpool.recipes import speech_desk
from inferpool.recipes.ear import STEP_S, Ear
from inferpool.recipes.kit import calibration
from inferpool.recipes.kit.audit import Replay
from inferpool.recipes.kit.data import Array, Sample, fetched, packaged
from inferpool.recipes.kit.live import outlived
from inferpool.recipes.kit.metrics import Figure, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.scorer import percentiles
from inferpool.recipes.kit.take import leaks
from inferpool.recipes.kit.use import Meter, Progress, Use, result
from inferpool.recipes.speech import (
    CLIPS,
    RATE,
    WHO,
    clips,
    errors,
    noisy,
    rate,
    samples_of,
    tagged,
    wav_of,
    words,
)
from inferpool.recipes.speech_desk import Heard

MODEL: Final = speech_desk.MODEL
BAR: Final = 0.05
NOISES_DB: Final = (20, 10, 5, 0, -5)
SMALL_NOISES_DB: Final = (0,)
SMALL: Final = 2  # clips, where it is `small`
MONITORED_DB: Final = 5  # of the line that the monitor's alarm is rehearsed on
REHEARSED: Final = 24  # clips while a node dies
PATIENCE_S: Final = 300.0  # the client's
LONG: Final = packaged(
    "pypi",
    "moonshine-voice",
    "0.1.5",
    "moonshine_voice/assets/two_cities.wav",
    4_260_326,
    "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
)


# -- sound ---------------------------------------------------------------------------------------


# -- the pool ------------------------------------------------------------------------------------


def play(pool: PoolScorer, small: bool, progress: Progress, out: Path) -> list[dict[str, Any]]:
    """Clips, the same clips in noise, and the stream; where it is not `small` also the long clip,
    and a node that dies."""
    meter, found = Meter(), clips()
    ear = Ear(pool, meter)
    some = dict(list(found.items())[:SMALL])
    levels = (None, *(SMALL_NOISES_DB if small else NOISES_DB))
    heard: dict[int | None, dict[str, Heard]] = {}
    for decibels in levels:
        chosen = some if small else found
        heard[decibels] = {name: ear.hear(_at(wav, decibels)) for name, wav in chosen.items()}
        progress(MODEL, len(heard), len(levels))
    every = [item for part in heard.values() for item in part.values()]
    records = speech_desk.kept(pool, every, out / "decisions")
    again = speech_desk.replays([decision for decision, _ in records])
    difference = float(np.mean([not item.same for item, _ in again]))
    figures = [_figure("word error rate, files", heard[None], bar=BAR)]
    sections = [_noise(heard)]
    streaming = Meter()
    streamed = some if small else found
    figures.append(_streamed(Ear(pool, streaming), streamed, progress))
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
    question = "What is said?"
    made = result(MODEL, question, len(every), figures, difference, meter, sections, LIMITS)
    made |= _trusted(heard)
    made["sections"] = sections  # without the service's: it is told below, for single clips
    made |= _service(every, records, again)
    made["trace"] = _trace(heard[None]["sense-0880"])
    if not small:
        made["failover"] = _outlived(found, heard[None])
    return [made]


def _at(wav: bytes, decibels: int | None) -> bytes:
    """The clip in so much noise."""
    return wav if decibels is None else wav_of(noisy(samples_of(wav), decibels))


def _trusted(heard: Mapping[int | None, Mapping[str, Heard]]) -> dict[str, Any]:
    """Calibration of the chance that a word is right, over all clips in all noise; who listens."""
    truth, said = list[bool](), list[float]()
    for part in heard.values():
        for clip, item in part.items():
            spoken = [
                (word, speech_desk.chance(s)) for s in item.segments for word in words(s.text)
            ]
            truth += speech_desk.right(words(CLIPS[clip]), [word for word, _ in spoken])
            said += [chance for _, chance in spoken]
    right, chance = np.array(truth, dtype=float), np.array(said)
    bins = calibration.bins(right, chance, 8)
    return {
        "calibration": [asdict(item) for item in bins],
        "expected_calibration_error": calibration.expected_error(bins),
        # What is written down is taken for right, so a threshold of 0.
        "band": asdict(calibration.band(right, chance, 0.0, speech_desk.DOUBT, 0.0)),
    }


def _service(
    every: Sequence[Heard],
    records: Sequence[tuple[dict[str, Any], Path]],
    again: Sequence[tuple[Replay, float]],
) -> dict[str, Any]:
    decisions = [
        speech_desk.shown(decision, path, replayed, heard.ms)
        for heard, (decision, path), (replayed, _) in zip(every, records, again, strict=True)
    ]
    charged = sum(item["charge_pico_usd"] for item in decisions)
    thousand = 1000 * charged // len(decisions)
    whole = np.concatenate([samples_of(wav) for wav in clips().values()])
    return {
        "decisions": decisions,
        "waiting": {
            "deadline_ms": 1000 * PATIENCE_S,
            "n": len(every),
            "late": 0,  # it would have ended the run
            "slowest_ms": max(item.ms for item in every),
        },
        "latency": {
            "pool": percentiles([item.ms for item in every]),
            "engine in process": percentiles([ms for _, ms in again]),
        },
        "cost": {
            "decisions": len(decisions),
            "charged_pico_usd": charged,
            "usd_per_1000_decisions": thousand / 10**12,
            "per_1000_decisions": format_usd(thousand),
        },
        "drift": speech_desk.line(whole, noisy(whole, MONITORED_DB)),
    }


def _trace(heard: Heard) -> dict[str, Any]:
    """What leaves of a file with a name in its tag and its own name: its samples alone."""
    again = wav_of(samples_of(tagged(clips()["sense-0880"])))
    assert again in heard.form, "what was sent is what a tagged file gives"
    return {
        "file": WHO["file"],
        "left_out": dict(WHO),
        "sent": f"a form of {len(heard.form)} bytes with the samples",
        "sent_sha256": hashlib.sha256(heard.form).hexdigest(),
        "leaks": leaks(heard.form, WHO),
    }


def _outlived(found: Mapping[str, bytes], heard: Mapping[str, Heard]) -> dict[str, Any]:
    """Clips again and again, while the node that is asked first dies."""
    names = list(found)

    def letters(text: str) -> Sample:
        return {"text": np.frombuffer(text.encode(), dtype=np.uint8)}

    def ask_by(client: PoolScorer) -> Callable[[Array], Sample]:
        ear = Ear(client, Meter())
        return lambda row: letters(ear.hear(found[names[int(row[0, 0])]]).text)

    rows = np.arange(REHEARSED).reshape(-1, 1) % len(names)
    return outlived(
        MODEL, rows, ask_by, lambda row: letters(heard[names[int(row[0, 0])]].text), PATIENCE_S
    )


def _figure(name: str, heard: dict[str, Heard], bar: float | None = None) -> Figure:
    spoken = sum(len(words(CLIPS[clip])) for clip in heard)
    wrong = sum(errors(words(CLIPS[clip]), words(item.text)) for clip, item in heard.items())
    plain = sum(errors(CLIPS[clip].split(), item.text.split()) for clip, item in heard.items())
    return _rate(name, spoken, wrong, plain / spoken, "as written, letter by letter", bar)


def _rate(
    name: str, spoken: int, wrong: int, rule: float, rule_name: str, bar: float | None = None
) -> Figure:
    """A word error rate with the words as cases, of which more than there are may be wrong."""
    counts = np.bincount(np.arange(wrong) % spoken, minlength=spoken).astype(float)
    return figure(name, rate, np.ones(spoken), counts, rule, rule_name, bar=bar,
                  more_is_better=False, share=True)  # fmt: skip


def _noise(heard: Mapping[int | None, dict[str, Heard]]) -> dict[str, Any]:
    return {
        "title": "In noise, and what goes to a person",
        "text": "White noise on the same clips. A segment that the model is unsure of is marked for"
        " a person; the same share is the monitor of a line that got worse.",
        "head": ["noise", "word error rate", "segments", "to a person"],
        "rows": [
            ["none" if level is None else f"{level} dB below the speech", *_row(part)]
            for level, part in heard.items()
        ],
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
    reference = [word for clip in found for word in words(CLIPS[clip])]
    first = errors(reference, words(shown[len(shown) // 2] if shown else ""))
    return _rate(
        "word error rate, stream",
        len(reference),
        errors(reference, words(text)),
        first / len(reference),
        "its partial result half way",
    )


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


LIMITS: Final = (
    "Read English by one speaker, without noise of its own; 70 words say little about accents,"
    " names, or a telephone line. Intervals take words for cases, though those of a clip hang"
    " together.",
    "A node hears what is said: send nothing to strangers that they may not know. Tags and file"
    " names stay here; a voice is a voice.",
    "The chance that a word is right was fitted on the same five clips in white noise of other"
    " seeds: other voices, rooms and languages will be off.",
    "In loud noise Whisper invents words, some of them with confidence.",
)
RECIPE: Final = Use(
    "transcribe",
    "Speech to text",
    "Files and a microphone-like stream, written down; what is unclear goes to a person.",
    "Five clips of Sense and Sensibility, read for LibriVox (public domain), as they come with"
    " PocketSphinx (BSD); A Tale of Two Cities from the PyPI package moonshine-voice 0.1.5.",
    (MODEL,),
    play,
    whole=True,
    audits=True,
    replay=speech_desk.replay,
    needs="faster_whisper",
    extra="whisper",
)
