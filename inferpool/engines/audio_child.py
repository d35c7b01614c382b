"""The child that opens a stranger's audio file with FFmpeg: measures it, or decodes it.

Run as `python -I audio_child.py`, one file each. Reads one line of JSON and, after its answer
{"sandbox": ...}, the file; then answers {"ms": N}, {"samples": N} and so many 16-bit mono samples,
or {"error": ...}. Imports nothing of this package.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RATE = 16_000


def main() -> None:
    """Answer one request."""
    config = json.loads(sys.stdin.buffer.readline())
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sandbox = _sandbox().enter([])
    answer.write(json.dumps({"sandbox": sandbox}).encode() + b"\n")
    answer.flush()
    audio = sys.stdin.buffer.read(config["size"])
    samples = b""
    try:
        import av

        with av.open(io.BytesIO(audio), format=config["format"]) as container:
            if config["most_samples"]:
                samples = _decode(av, container, config["most_samples"])
                found: dict[str, object] = {"samples": len(samples) // 2}
            else:
                found = {"ms": _measure(container, config["most_packets"], config["most_ms"])}
    except Exception as error:
        found = {"error": str(error)[:500] or type(error).__name__}
    answer.write(json.dumps(found).encode() + b"\n" + samples)
    answer.flush()
    os._exit(0)


def _measure(container: Any, most_packets: int, most_ms: int) -> int:
    """The sum of the first audio stream's packets, without decoding."""
    stream = container.streams.audio[0]
    ticks = 0
    for count, packet in enumerate(container.demux(stream)):
        ticks += max(0, packet.duration or 0)
        if count > most_packets or ticks * stream.time_base * 1000 > most_ms:
            raise ValueError("it is too long")
    return int(-(-ticks * stream.time_base * 1000 // 1))


def _decode(av: Any, container: Any, most: int) -> bytes:
    """Mono samples, at most one frame more than `most`: a bomb stops there."""
    resampler = av.AudioResampler("s16", "mono", RATE)
    parts, size = [], 0
    for frame in _frames(container, resampler):
        parts.append(bytes(frame.planes[0])[: 2 * frame.samples])
        size += frame.samples
        if size > most:
            break
    return b"".join(parts)


def _frames(container: Any, resampler: Any) -> Iterator[Any]:
    for frame in container.decode(audio=0):
        frame.pts = None
        yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _sandbox() -> Any:
    """The module beside this file, by its path: this directory is no place to import from."""
    path = Path(__file__).with_name("sandbox.py")
    spec = importlib.util.spec_from_file_location("_sandbox", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
