"""How long audio is, by the file alone: WAV with the standard library, others by their packets."""

from __future__ import annotations

import asyncio
import io
import struct
import wave
from pathlib import Path
from typing import Any

import pytest

from inferpool.engines import audio as measured
from inferpool.engines.audio import length_ms
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import AUDIO_CHILDREN_MAX


def wav(seconds: float = 1.5, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(bytes(int(seconds * rate) * channels * width))
    return out.getvalue()


def measure(data: bytes) -> int:
    return asyncio.run(length_ms(data))


@pytest.mark.parametrize(
    ("rate", "channels", "width"), [(8000, 1, 1), (44_100, 2, 2), (48_000, 1, 3)]
)
def test_pcm(rate: int, channels: int, width: int) -> None:
    assert measure(wav(1.5, rate, channels, width)) == 1500


def test_a_header_that_lies_is_not_believed() -> None:
    data = wav(1.0)
    at = data.index(b"data") + 4
    for claim in (2**32 - 1, 2**31, 64_000):
        assert measure(data[:at] + struct.pack("<I", claim) + data[at + 4 :]) == 1000
    assert measure(data[:-16_000]) == 500  # cut


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("mp3", "libmp3lame"),
        ("mp4", "aac"),
        ("webm", "libopus"),
    ],
)
def test_other_containers(form: str, codec: str) -> None:
    av: Any = pytest.importorskip("av", reason="PyAV (the extra 'whisper') is not installed")
    out = io.BytesIO()
    with av.open(io.BytesIO(wav(3.0, 48_000))) as source, av.open(out, "w", format=form) as made:
        stream = made.add_stream(codec, rate=48_000)
        for frame in source.decode(audio=0):
            for packet in stream.encode(frame):
                made.mux(packet)
        for packet in stream.encode(None):
            made.mux(packet)
    assert measure(out.getvalue()) == pytest.approx(3000, abs=110)  # a frame or two of padding


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain text",
        b"#EXTM3U\n/etc/hostname",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"fLaC" + bytes(40),
        b"OggS" + bytes(40),
        b"ID3" + bytes(40),
        b"\0\0\0\x18ftypM4A " + bytes(40),
        b"\x1aE\xdf\xa3" + bytes(40),
        wav(0.0),
    ],
)
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        measure(data)
    assert caught.value.param == "file"


def test_without_the_library_the_answer_says_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "find_spec", lambda _: None)
    assert measure(wav(1.0)) == 1000
    with pytest.raises(BadRequest, match="only PCM WAV is read here"):
        measure(b"fLaC" + bytes(40))


ABORTS = """
import os, sys
sys.stdin.buffer.readline()
print("{}".replace("{}", '{"sandbox": "none"}'), flush=True)
os.abort()
"""


def test_a_decoder_that_crashes_takes_nobody_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="PyAV (the extra 'whisper') is not installed")
    script = tmp_path / "aborts.py"
    script.write_text(ABORTS)
    monkeypatch.setattr(measured, "SCRIPT", script)
    with pytest.raises(BadRequest, match="its decoder crashed"):
        measure(b"fLaC" + bytes(100))


def test_a_crowd_of_files_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV (the extra 'whisper') is not installed")
    monkeypatch.setattr(measured, "_children", AUDIO_CHILDREN_MAX)
    with pytest.raises(Unavailable) as raised:
        measure(b"fLaC" + bytes(100))
    assert (raised.value.code, raised.value.retry_after_s) == ("overloaded", 2)
