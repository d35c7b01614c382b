"""How long an audio file plays, measured on the file itself and never on what it claims.

WAV with plain PCM is read here; other formats through PyAV (FFmpeg) where that is installed, by
their packets, without decoding, and in a sandboxed child for each file (`audio_child`). The format
is found by its first bytes and given to FFmpeg, so that no playlist or other format that leads to
further files is ever opened. Node and gateway measure the same file the same way, since the price
depends on it.
"""

from __future__ import annotations

import asyncio
import io
import json
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from inferpool.engines.child import Child, start_child
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import AUDIO_CHILDREN_MAX, AUDIO_MS_MAX

RATE: Final = 16_000  # samples a second
SCRIPT: Final = Path(__file__).with_name("audio_child.py")
TIMEOUT_S: Final = 60.0  # half an hour of Opus is decoded in ten seconds of one core
_children = 0
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
    return await _packets_ms(audio, name)


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


async def decode(audio: bytes, most_samples: int) -> bytes:
    """Mono samples of 16 bits, `RATE` a second, at most a frame more than `most_samples`.

    Raises BadRequest: what cannot be decoded; Unavailable(overloaded).
    """
    told, samples = await _opened(audio, container_of(audio), most_samples)
    if told.get("samples") == 0:
        raise _unreadable("it holds no sound")
    return samples


async def _packets_ms(audio: bytes, name: str) -> int:
    told, _ = await _opened(audio, name, 0)
    found = told["ms"]
    if found <= 0:
        raise _unreadable("it holds no sound")
    return int(found)


async def _opened(audio: bytes, name: str, most_samples: int) -> tuple[dict[str, Any], bytes]:
    """What a child of its own says of a file: FFmpeg is large, and the file a stranger's."""
    global _children
    if find_spec("av") is None:
        raise _unreadable("only PCM WAV is read here; others need PyAV on this server")
    if _children >= AUDIO_CHILDREN_MAX:
        message = f"{AUDIO_CHILDREN_MAX} audio files are being read already"
        raise Unavailable(message, code="overloaded", retry_after_s=2)
    config = {
        "format": name,
        "size": len(audio),
        "most_samples": most_samples,
        "most_packets": PACKETS_MAX,
        "most_ms": 2 * AUDIO_MS_MAX,
    }
    _children += 1
    try:
        child = await start_child(SCRIPT, config, TIMEOUT_S)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told, samples = await _asked(child, audio)
        except (TimeoutError, OSError, ValueError, EOFError):
            raise _unreadable("its decoder crashed or took too long") from None
        finally:
            child.kill()
            await child.stop()
    finally:
        _children -= 1
    if "error" in told:
        raise _unreadable(told["error"])
    return told, samples


async def _asked(child: Child, audio: bytes) -> tuple[dict[str, Any], bytes]:
    told = json.loads(await child.ask(audio))
    return told, await child.more(2 * told.get("samples", 0))


def _unreadable(why: str) -> BadRequest:
    return BadRequest(f"The audio file cannot be read: {why}.", param="file")
