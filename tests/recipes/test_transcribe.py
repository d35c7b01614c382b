"""Words, errors, noise, and the microphone; the engine is tested with its route."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.recipes import transcribe
from inferpool.recipes.kit.use import Meter
from inferpool.recipes.transcribe import RATE, STEP_S, Ear, Heard, errors, words

lists = st.lists(st.sampled_from("abcd"), max_size=8)


def test_case_punctuation_and_abbreviations_do_not_count() -> None:
    assert words("Mr. Dashwood's cold-hearted, 2 men.") == words(
        "mister dashwood's cold hearted 2 men"
    )


@given(lists, lists)
def test_errors_are_a_distance(a: list[str], b: list[str]) -> None:
    assert errors(a, a) == 0
    assert errors(a, b) == errors(b, a) <= max(len(a), len(b))
    assert errors(a, b) >= abs(len(a) - len(b))
    assert errors([*a, "x"], [*b, "x"]) == errors(a, b)


def test_the_clips_are_what_the_transcripts_say_they_are() -> None:
    found = transcribe.clips()
    assert found.keys() == transcribe.CLIPS.keys()
    seconds = [len(transcribe.samples_of(wav)) / RATE for wav in found.values()]
    assert 20 < sum(seconds) < 30
    assert transcribe.wav_of(transcribe.samples_of(found["sense-0880"])) == found["sense-0880"]


@pytest.mark.parametrize("decibels", [20, 0])
def test_noise_is_as_loud_as_said(decibels: int) -> None:
    samples = transcribe.samples_of(transcribe.clips()["sense-0930"]) // 4  # nothing is cut off
    noise = transcribe.noisy(samples, decibels) - samples
    ratio = np.mean(samples.astype(float) ** 2) / np.mean(noise**2)
    assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.1)
    assert (transcribe.noisy(samples, decibels) == transcribe.noisy(samples, decibels)).all()


@dataclass
class Segment:
    text: str
    end: float
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0


@dataclass
class Counting(Ear):
    """Hears one word each second: the number of the second that its sample names."""

    meter: Meter = field(default_factory=Meter)
    heard_s: list[float] = field(default_factory=list)

    def hear(self, wav: bytes) -> Heard:
        samples = transcribe.samples_of(wav)
        self.heard_s.append(len(samples) / RATE)
        found: list[Any] = [
            Segment(f" {samples[at * RATE]}", at + 1.0) for at in range(len(samples) // RATE)
        ]
        return Heard("".join(item.text for item in found).strip(), tuple(found))


def test_a_stream_hears_every_word_once_and_never_all_of_it_again() -> None:
    seconds = 40
    samples = np.repeat(np.arange(seconds), RATE)
    ear, partial = Counting(), list[str]()
    assert ear.stream(samples, partial.append).split() == [str(i) for i in range(seconds)]
    assert len(partial) == int(seconds / STEP_S) - 1
    assert all(text.split() == [str(i) for i in range(len(text.split()))] for text in partial)
    assert max(ear.heard_s) <= 2 * STEP_S + transcribe.SETTLED_S


def test_what_is_unclear_goes_to_a_person() -> None:
    sure, low, none = Segment("a", 1), Segment("b", 2, -1.0), Segment("c", 3, 0.0, 0.9)
    assert Heard("", (sure,)).doubts == 0
    assert Heard("", (sure, low, none)).doubts == 2
