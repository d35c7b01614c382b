"""Words, errors, noise, and the microphone; the engine is tested with its route."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.models import catalogue
from inferpool.protocol.errors import Refused
from inferpool.recipes import speech, speech_desk, transcribe
from inferpool.recipes.ear import SETTLED_S, STEP_S, Ear
from inferpool.recipes.kit.use import Meter
from inferpool.recipes.speech import RATE, errors, words
from inferpool.recipes.speech_desk import Heard

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
    found = speech.clips()
    assert found.keys() == speech.CLIPS.keys()
    seconds = [len(speech.samples_of(wav)) / RATE for wav in found.values()]
    assert 20 < sum(seconds) < 30
    assert speech.wav_of(speech.samples_of(found["sense-0880"])) == found["sense-0880"]


@pytest.mark.parametrize("decibels", [20, 0])
def test_noise_is_as_loud_as_said(decibels: int) -> None:
    samples = speech.samples_of(speech.clips()["sense-0930"]) // 4  # nothing is cut off
    noise = speech.noisy(samples, decibels) - samples
    ratio = np.mean(samples.astype(float) ** 2) / np.mean(noise**2)
    assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.1)
    assert (speech.noisy(samples, decibels) == speech.noisy(samples, decibels)).all()


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
        samples = speech.samples_of(wav)
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
    assert max(ear.heard_s) <= 2 * STEP_S + SETTLED_S


def test_what_is_unclear_goes_to_a_person() -> None:
    sure, low, none = Segment("a", 1), Segment("b", 2, -1.0), Segment("c", 3, 0.0, 0.9)
    assert Heard("", (sure,)).doubts == 0
    assert Heard("", (sure, low, none)).doubts == 2
    assert Heard("", (sure, low)).chance == speech_desk.chance(low)
    assert Heard("", ()).chance == 0, "silence is for a person too"


def test_a_chance_grows_with_the_confidence_and_stays_one() -> None:
    chances = [speech_desk.chance(Segment("", 1, logprob)) for logprob in (-9, -1, -0.3, -0.1, 0)]
    assert chances == sorted(chances)
    assert 0 <= chances[0] < 0.05
    assert 0.95 < chances[-1] <= 1


@given(lists, lists)
def test_right_words_are_those_of_an_alignment_with_the_fewest_errors(
    a: list[str], b: list[str]
) -> None:
    found = speech_desk.right(a, b)
    kept = [word for word, right in zip(b, found, strict=True) if right]
    places = iter(a)
    assert all(word in places for word in kept), "in the reference's order"
    assert max(len(a), len(b)) - sum(found) <= errors(a, b)
    assert speech_desk.right(a, a) == [True] * len(a)


def test_a_noisy_line_is_noticed_and_a_clean_one_is_not() -> None:
    whole = np.concatenate([speech.samples_of(wav) for wav in speech.clips().values()])
    found = speech_desk.line(whole, speech.noisy(whole, transcribe.MONITORED_DB))
    assert found["alarms"] == 0
    assert found["rehearsal"]["alarm"]


def test_a_name_in_a_tag_stays_here() -> None:
    clip = speech.clips()["sense-0880"]
    made = speech.tagged(clip)
    assert speech.WHO["artist"].encode() in made
    assert speech.wav_of(speech.samples_of(made)) == clip


@pytest.fixture(scope="module")
def decision() -> dict[str, Any]:
    """As `speech_desk.record` makes one of a form and an attempt; nobody signed it."""
    wav = speech.clips()["sense-0880"]
    kind = "multipart/form-data; boundary=x"
    parts = {"model": transcribe.MODEL, "language": "en"}
    form = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in parts.items()
    )
    form += b'--x\r\nContent-Disposition: form-data; name="file"; filename="speech.wav"\r\n\r\n'
    form += wav + b"\r\n--x--\r\n"
    heard = Heard(
        "He was not an ill-disposed young man.", (Segment("He was", 3.0, -0.3),), form, kind
    )
    manifest = catalogue.load(transcribe.MODEL).id
    proof = {"receipt": {"manifest": manifest, "class": "ctranslate2@0/int8/cpu"}}
    return speech_desk.record(heard, {"proof": proof, "node": "0x"}, None) | {"receipt": None}


def test_a_record_that_was_altered_is_refused(decision: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="hash"):
        speech_desk.replay(decision | {"form_base64": "AAAA"})
    with pytest.raises(Refused, match="another model"):
        speech_desk.replay(decision | {"manifest": "0x00"})


@pytest.mark.timeout(120)
def test_a_clip_is_heard_again_from_its_record(decision: dict[str, Any]) -> None:
    pytest.importorskip("faster_whisper", reason="make test-whisper")
    again = speech_desk.replay(decision)
    assert again.same
    assert again.bitwise
    assert (again.signed, again.about_this) == (None, None)
    other = speech_desk.replay(decision | {"text": "He was a young man."})
    assert not other.same
    assert other.difference > speech_desk.OTHER_CLASS
