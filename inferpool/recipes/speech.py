"""Speech as samples and as words, for the recipe `transcribe`, and the clips with their words."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Sequence
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import MODELS, Array

RATE: Final = 16_000
WHO: Final = {"artist": "Erika Mustermann", "file": "erika-mustermann.wav"}
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


def tagged(wav: bytes) -> bytes:
    """The file with a tag that says who speaks, as a recorder may write it."""
    name = WHO["artist"].encode() + b"\0"
    part = b"IART" + len(name).to_bytes(4, "little") + name + b"\0" * (len(name) % 2)
    tag = b"LIST" + (4 + len(part)).to_bytes(4, "little") + b"INFO" + part
    return wav[:4] + (len(wav) - 8 + len(tag)).to_bytes(4, "little") + wav[8:] + tag
