"""A file on its way into the store: written and hashed in one pass, resumable, bounded in size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from inferpool.models.manifest import File

CHUNK_BYTES: Final = 1024 * 1024


class SourceError(Exception):
    """One source did not deliver; the message says why and what to do. Another may succeed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is; `done_bytes` stays 0 while a package manager works."""

    done_bytes: int
    total_bytes: int
    label: str


OnProgress = Callable[[Progress], None]


class Partial:
    """The bytes so far of one file, in `path`; leaving the context keeps them."""

    def __init__(self, path: Path, file: File, on_progress: OnProgress | None = None) -> None:
        self.path = path
        self.file = file
        self.written = 0
        self._hash = hashlib.sha256()
        self._on_progress = on_progress
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("a+b")
        try:
            self._take_up()
        except BaseException:
            self._handle.close()
            raise

    def _take_up(self) -> None:
        """Hash what an earlier try left; too much of it is of no use."""
        self._handle.seek(0)
        while chunk := self._handle.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.written += len(chunk)
            if self.written > self.file.size:
                return self.restart()

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.close()

    def write(self, chunk: bytes) -> None:
        """Append. Raises `SourceError` past the expected size: the source has another file."""
        if self.written + len(chunk) > self.file.size:
            raise SourceError(f"sends more than the expected {self.file.size} bytes")
        self._handle.write(chunk)
        self._hash.update(chunk)
        self.written += len(chunk)
        self.report(self.file.name)

    def restart(self) -> None:
        """Forget all bytes, for a source that can only begin at the beginning."""
        self._handle.seek(0)
        self._handle.truncate()
        self._hash = hashlib.sha256()
        self.written = 0

    def report(self, label: str) -> None:
        """Tell the listener, if there is one, where this file is."""
        if self._on_progress:
            self._on_progress(Progress(self.written, self.file.size, label))

    def flush(self) -> int:
        """Hand the bytes to the kernel; the descriptor, for an fsync."""
        self._handle.flush()
        return self._handle.fileno()

    @property
    def complete(self) -> bool:
        """Whether the expected number of bytes is there (their hash may still be wrong)."""
        return self.written == self.file.size

    @property
    def sha256(self) -> str:
        """Hash of all bytes so far, 64 hex digits."""
        return self._hash.hexdigest()
