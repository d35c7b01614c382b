"""How long an audio file plays, measured on the file itself and never on what it claims.

WAV with plain PCM is read here; other formats through PyAV (FFmpeg) where that is installed, by
their packets, without decoding. The format is found by its first bytes and given to FFmpeg, so
that no playlist or other format that leads to further files is ever opened. Node and gateway
measure the same file the same way, since the price depends on it.
"""

from __future__ import annotations

import asyncio
import io
import wave
from importlib import import_module
from typing import Any, Final

from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import AUDIO_MS_MAX

PACKETS_MAX: Final = 1_000_000  # at 2.5 ms, the shortest that Opus has, 40 minutes

# First bytes (at an offset) -> FFmpeg's name of the format.
_MAGIC: Final = (
    (0, b"RIFF", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (4, b"ftyp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"ID3", "mp3"),
)
NAMES: Final = "WAV, FLAC, OGG, MP4/M4A, WebM, MP3"


def container_of(audio: bytes) -> str:
    """FFmpeg's name of a file's format. Raises BadRequest for one that is not served."""
    for at, magic, name in _MAGIC:
        if audio.startswith(magic, at):
            return name
    # An MPEG audio frame: eleven bits set, version not reserved, layer III.
    if len(audio) > 2 and audio[0] == 0xFF and audio[1] & 0xE6 == 0xE2 and audio[1] & 0x18 != 0x08:
        return "mp3"
    raise _unreadable(f"it is none of {NAMES}")


async def length_ms(audio: bytes) -> int:
    """The length in ms, at least 1. Raises BadRequest: unknown, broken, or without sound."""
    name = container_of(audio)
    if name == "wav":
        found = _wave_ms(audio)
        if found is not None:
            return found
    return await asyncio.to_thread(_packets_ms, audio, name)


def _wave_ms(audio: bytes) -> int | None:
    """The length of plain PCM, by the bytes that are there; None for other WAV files."""
    try:
        with wave.open(io.BytesIO(audio)) as file:
            width, rate = file.getnchannels() * file.getsampwidth(), file.getframerate()
            if not width or not rate:
                return None
            # A file that was streamed claims the greatest length there is: count what is there.
            wanted = min(file.getnframes(), len(audio) // width)
            frames = len(file.readframes(wanted)) // width
    except (wave.Error, EOFError):
        return None
    if not frames:
        raise _unreadable("it holds no sound")
    return int(-(-1000 * frames // rate))


def _packets_ms(audio: bytes, name: str) -> int:
    try:
        av = import_module("av")
    except ImportError:
        raise _unreadable("only PCM WAV is read here; others need PyAV on this server") from None
    try:
        with av.open(io.BytesIO(audio), format=name) as container:
            return _stream_ms(container)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise _unreadable(str(error)) from None


def _stream_ms(container: Any) -> int:
    """The sum of the first audio stream's packets."""
    stream = container.streams.audio[0]
    ticks = 0
    for count, packet in enumerate(container.demux(stream)):
        ticks += max(0, packet.duration or 0)
        if count > PACKETS_MAX or ticks * stream.time_base * 1000 > 2 * AUDIO_MS_MAX:
            raise _unreadable("it is too long")
    found = int(-(-ticks * stream.time_base * 1000 // 1))
    if found <= 0:
        raise _unreadable("it holds no sound")
    return found


def _unreadable(why: str) -> BadRequest:
    return BadRequest(f"The audio file cannot be read: {why}.", param="file")
