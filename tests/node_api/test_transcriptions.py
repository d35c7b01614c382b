"""`POST /v1/audio/transcriptions` through a gateway with Whisper base behind it."""

from __future__ import annotations

import asyncio
import io
import re
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rig import Rig, check_money, hosted, receipt_of

from inferpool.engines.whisper import WhisperEngine
from inferpool.recipes import speech, transcribe
from inferpool.recipes.kit.data import MODELS

PATH = "/v1/audio/transcriptions"
MODEL = "whisper-base"
CLIP = MODELS / "data" / "speech" / "sense-0880.wav"
WORDS = "he was not an ill disposed young man"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner) -> Iterator[Rig]:
    pytest.importorskip("faster_whisper", reason="the extra 'whisper' is not installed")

    async def start() -> Rig:
        return await Rig([[await hosted(MODEL)]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


async def ask(rig: Rig, audio: bytes | None = None, **fields: str) -> httpx.Response:
    files = {"file": ("speech.wav", CLIP.read_bytes() if audio is None else audio, "audio/wav")}
    return await rig.client.post(PATH, files=files, data={"model": MODEL, **fields})


def words_of(text: str) -> list[str]:
    return re.sub(r"[^a-z ]", " ", text.lower().replace("mr.", "mister")).split()


async def test_words_and_money(runner: asyncio.Runner, rig: Rig) -> None:
    before = rig.charged(), rig.spent()
    answer = await ask(rig, language="en")
    body = answer.json()
    assert words_of(body["text"]) == WORDS.split()
    assert body["usage"] == {"type": "duration", "seconds": 3}  # 2.99 s
    signed = receipt_of(answer)
    assert (signed.receipt.prompt_units, signed.receipt.output_units) == (3, 0)
    assert check_money(rig, rig.services[0][0], signed, before) == 3 * 100_000_000


async def test_openai_python_verbose(runner: asyncio.Runner, rig: Rig) -> None:
    made: Any = await rig.openai().audio.transcriptions.create(
        model=MODEL, file=CLIP, response_format="verbose_json"
    )
    assert made.language == "en"  # found out, not told
    assert made.duration == 2.99
    assert words_of("".join(segment.text for segment in made.segments)) == WORDS.split()
    assert 0 <= made.segments[0].start < made.segments[-1].end <= 30


async def test_plain_text(runner: asyncio.Runner, rig: Rig) -> None:
    answer = await ask(rig, response_format="text", language="en")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert words_of(answer.text) == WORDS.split()


async def test_more_speech(runner: asyncio.Runner, rig: Rig) -> None:
    wrong = total = 0
    for name, audio in speech.clips().items():
        heard = speech.words((await ask(rig, audio, language="en")).json()["text"])
        reference = speech.words(speech.CLIPS[name])
        wrong += speech.errors(reference, heard)
        total += len(reference)
    assert total == 70
    assert wrong / total <= transcribe.BAR


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"response_format": "srt"}, "response_format", "unsupported_parameter"),
        ({"temperature": "0.5"}, "temperature", "unsupported_parameter"),
        ({"prompt": "Austen"}, "prompt", "unsupported_parameter"),
        ({"stream": "true"}, "stream", "unsupported_parameter"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]", None),
        ({"chunking_strategy": "auto"}, "chunking_strategy", "unsupported_parameter"),
        ({"language": "english"}, "language", "invalid_request"),
        ({"language": "qqq"}, "language", "invalid_request"),
        ({"model": "spam"}, "model", "model_not_found"),
    ],
)
async def test_refused_by_name(
    runner: asyncio.Runner, rig: Rig, more: dict[str, str], param: str, code: str | None
) -> None:
    before = rig.charged()
    error = (await ask(rig, **more)).json()["error"]
    assert (error["param"], error["code"]) == (param, code or "unsupported_parameter")
    assert rig.charged() == before


def silence(seconds: float, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 1, rate, 0, "NONE", ""))
        file.writeframes(b"\x80" * int(seconds * rate))
    return out.getvalue()


@pytest.mark.parametrize(
    "audio",
    [
        b"not audio at all",
        b"RIFF\0\0\0\0WAVE",
        silence(0),
        silence(1900, 1000),
        b"OggS" + bytes(99),
    ],
    ids=["text", "cut wav", "no samples", "too long", "broken ogg"],
)
async def test_bad_files(runner: asyncio.Runner, rig: Rig, audio: bytes) -> None:
    before = rig.charged()
    answer = await ask(rig, audio)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    assert rig.charged() == before


async def test_not_a_form(runner: asyncio.Runner, rig: Rig) -> None:
    error = await rig.refused(PATH, {"model": MODEL})
    assert "multipart/form-data" in error["message"]


async def test_silence_is_charged_as_heard(runner: asyncio.Runner, rig: Rig) -> None:
    before = rig.charged(), rig.spent()
    answer = await ask(rig, silence(2), language="en")
    check_money(rig, rig.services[0][0], receipt_of(answer), before)
    assert receipt_of(answer).receipt.prompt_units == 2


async def test_a_caller_that_leaves_ends_the_work(runner: asyncio.Runner, rig: Rig) -> None:
    engine: WhisperEngine = rig.services[0][0].engine
    long = silence(180, 1000)
    run = asyncio.create_task(engine.transcribe(long, "en", 180_000))
    await asyncio.sleep(0.2)
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    async with asyncio.timeout(20):  # the thread is free after one window, not after twenty
        found = await engine.transcribe(CLIP.read_bytes(), "en", 2990)
    assert words_of(found.text) == WORDS.split()
