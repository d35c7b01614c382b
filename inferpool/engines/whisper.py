"""Whisper through faster-whisper (CTranslate2), in threads of this process.

Imported when it starts: it comes with the optional extra `whisper`. A call that is left ends at
the next window of 30 seconds of speech, about two seconds of work on one core; the spectrum of the
whole file comes before the first window, a second for ten minutes.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, Final

from inferpool.engines import sandbox
from inferpool.engines.audio import RATE, decode
from inferpool.engines.heap import give_back
from inferpool.engines.trial import tried
from inferpool.protocol.errors import BadRequest, InferpoolError, Unavailable
from inferpool.protocol.transcription import Segment, Transcript

SLACK_MS: Final = 1_000  # a decoder may add or drop some samples at the ends
_SCALE: Final = 32_768.0  # of 16-bit samples


class WhisperEngine:
    """A `TranscriptionEngine`. `files` maps the names that CTranslate2 expects to paths."""

    def __init__(
        self, files: Mapping[str, Path], name: str, quant: str, *, slots: int = 1, threads: int = 2
    ) -> None:
        self.files, self.name, self.slots = dict(files), name, slots
        self.engine_class = f"ctranslate2@{_version()}/{quant.lower()}/cpu"
        self._quant, self._threads = quant, threads
        self.sandbox = sandbox.NONE  # of the trial; the engine itself runs in this process
        self._model: Any = None
        self._folder: str | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._left: set[Event] = set()

    async def start(self) -> None:
        """Try in a child, load. Raises Unavailable(engine_unavailable) with what is missing."""
        try:
            folder = await asyncio.to_thread(self._lay_out)
            self.sandbox = await tried(
                "ctranslate2",
                self.name,
                folder,
                readable=[path.resolve() for path in self.files.values()],
                threads=self._threads,
                quant=self._quant,
            )
            await asyncio.to_thread(self._load)
        except Exception as error:
            await self.close()
            if isinstance(error, InferpoolError):
                raise
            message = f"{self.name} cannot be loaded: {error}"
            raise Unavailable(message, code="engine_unavailable") from error
        self._pool = ThreadPoolExecutor(self.slots, "inferpool-whisper")

    async def close(self) -> None:
        """End what runs at its next window, free the model."""
        pool, self._pool = self._pool, None
        for left in self._left:
            left.set()
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        self._model = None
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)
            self._folder = None
        await give_back()

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self._pool is not None

    async def transcribe(self, audio: bytes, language: str | None, audio_ms: int) -> Transcript:
        """See `base.TranscriptionEngine`. Raises Unavailable(engine_failed)."""
        if self._pool is None:
            raise Unavailable(f"{self.name} is not loaded", code="engine_unavailable")
        if language is not None and language not in self._model.supported_languages:
            raise BadRequest(f"{self.name} does not know {language!r}.", param="language")
        samples = await decode(audio, (audio_ms + 2 * SLACK_MS) * RATE // 1000)
        if self._pool is None:
            raise Unavailable(f"{self.name} was closed", code="engine_failed")
        left, loop = Event(), asyncio.get_running_loop()
        self._left.add(left)
        run = loop.run_in_executor(self._pool, self._run, samples, language, audio_ms, left)
        try:
            return await run
        except asyncio.CancelledError:
            if self._pool is None and run.cancelled():  # closed before its turn came
                raise Unavailable(f"{self.name} was closed", code="engine_failed") from None
            raise
        finally:
            left.set()
            self._left.discard(left)

    # -- in a thread -----------------------------------------------------------------------------

    def _lay_out(self) -> Path:
        """The store names files by their hash; CTranslate2 wants a folder with their own names."""
        if find_spec("faster_whisper") is None:
            raise Unavailable(
                "whisper needs the extra: pip install 'inferpool[whisper]'",
                code="engine_unavailable",
            )
        self._folder = tempfile.mkdtemp(prefix="inferpool-whisper-")
        for name, path in self.files.items():
            (Path(self._folder) / name).symlink_to(path.resolve())
        return Path(self._folder)

    def _load(self) -> None:
        make = import_module("faster_whisper").WhisperModel
        self._model = make(
            self._folder,
            device="cpu",
            compute_type=self._quant,
            cpu_threads=self._threads,
            num_workers=self.slots,
            local_files_only=True,
        )

    def _run(self, heard: bytes, language: str | None, audio_ms: int, left: Event) -> Transcript:
        import numpy as np

        if left.is_set():
            raise _cut()
        samples = np.frombuffer(heard, "<i2").astype(np.float32) / _SCALE
        heard_ms = -(-1000 * len(samples) // RATE)
        if heard_ms > audio_ms + SLACK_MS:
            raise BadRequest("The audio is longer than its packets say.", param="file")
        try:
            # Greedy, one temperature, no carried text: the same audio gives the same words.
            found, info = self._model.transcribe(
                samples,
                language=language,
                beam_size=1,
                temperature=0.0,
                condition_on_previous_text=False,
            )
            segments = []
            for item in found:
                if left.is_set():
                    raise _cut()
                segments.append(_segment(item))
        except (RuntimeError, ValueError, IndexError) as error:
            raise Unavailable(f"{self.name} failed: {error}", code="engine_failed") from error
        text = "".join(segment.text for segment in segments).strip()
        return Transcript(text, info.language, min(heard_ms, audio_ms), tuple(segments))


def _segment(item: Any) -> Segment:
    return Segment(
        start_ms=round(1000 * item.start),
        end_ms=round(1000 * item.end),
        text=item.text,
        tokens=tuple(item.tokens),
        temperature=float(item.temperature or 0.0),
        avg_logprob=float(item.avg_logprob),
        compression_ratio=float(item.compression_ratio),
        no_speech_prob=float(item.no_speech_prob),
    )


def _cut() -> Unavailable:
    return Unavailable("the call was left", code="engine_failed")


def _version() -> str:
    try:
        return version("ctranslate2")
    except PackageNotFoundError:
        return "none"
