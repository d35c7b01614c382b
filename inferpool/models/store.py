"""Model files on disk, each under its own SHA-256, so that a name can never lie.

    <root>/blobs/sha256/ab/abcdef...            a whole file, read-only
    <root>/blobs/sha256/ab/abcdef....verified   size and time of change at its last full hash
    <root>/partial/abcdef...                    the first bytes of a file, to be resumed
    <root>/locks/abcdef...                      one process at a time fetches a file

A file enters by an atomic rename after its hash was checked. A file that stays as it was (same
size, same time of change) is not hashed again at start-up; `verify` always hashes. That guards
against broken disks and half-written files, not against somebody who may write in the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Final

import orjson
from platformdirs import user_cache_dir

from inferpool.models.manifest import File, Manifest
from inferpool.models.partial import OnProgress, Partial, SourceError
from inferpool.protocol.errors import Refused, Unavailable

# Left free on the disk beside the file itself, for logs and databases on the same disk.
RESERVE_BYTES: Final = 64 * 1024 * 1024
# Longer than any package manager's time-out in `sources`, so that the second process waits.
LOCK_WAIT_S: Final = 3600.0
_LOCK_POLL_S: Final = 0.05

_Mark = tuple[int, int]


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Store:
    """The content-addressed store under one root (default: the user's cache folder)."""

    def __init__(
        self, root: Path | None = None, *, free_bytes: Callable[[Path], int] = _free_bytes
    ) -> None:
        self.root = root or Path(user_cache_dir("inferpool"))
        self._free_bytes = free_bytes
        self._verified: dict[str, _Mark] = {}

    def blob(self, sha256: str) -> Path:
        """Where a file of this hash lies or would lie."""
        assert len(sha256) == 64
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def has(self, file: File) -> bool:
        """Whether a file of this hash is present; nothing is checked."""
        return self.blob(file.sha256).is_file()

    def missing(self, manifest: Manifest) -> tuple[File, ...]:
        """The manifest's files that have to be pulled."""
        return tuple(file for file in manifest.files if not self.has(file))

    def path(self, file: File) -> Path:
        """The file's path, verified: hashed unless unchanged since its last full hash.

        Raises `Unavailable(source_failed)` when it was never pulled, `Refused(bad_hash)` when it
        is not the file that the manifest means.
        """
        with self.open_verified(file):
            return self.blob(file.sha256)

    def open_verified(self, file: File) -> BufferedReader:
        """The open file, verified by this very handle. The caller closes it; raises as `path`."""
        handle = self._open(file)
        try:
            mark = _mark(handle)
            known = self._verified.get(file.sha256) or self._read_mark(file.sha256)
            if known != mark or mark[0] != file.size:
                self._hash(file, handle)
            self._verified[file.sha256] = mark
        except BaseException:
            handle.close()
            raise
        return handle

    def verify(self, file: File) -> Path:
        """Hash the whole file, whatever is known of it. Raises as `path`."""
        with self._open(file) as handle:
            self._hash(file, handle)
        return self.blob(file.sha256)

    def discard(self, file: File) -> None:
        """Remove a file and what was begun of it; absent is no error."""
        blob = self.blob(file.sha256)
        self._verified.pop(file.sha256, None)
        for path in (blob, _sidecar(blob), self._partial(file)):
            path.unlink(missing_ok=True)

    def partial(self, file: File, on_progress: OnProgress | None = None) -> Partial:
        """The file's bytes so far, to be continued. Hold `lock(file)` while using it."""
        return Partial(self._partial(file), file, on_progress)

    def adopt(self, partial: Partial) -> Path:
        """Move a complete file into the store.

        Raises `SourceError` when bytes are missing (they are kept for the next try),
        `Refused(bad_hash)` when they are the wrong ones (they are removed).
        """
        file = partial.file
        if not partial.complete:
            raise SourceError(f"ended after {partial.written} of {file.size} bytes; try again")
        if partial.sha256 != file.sha256:
            partial.path.unlink(missing_ok=True)
            raise _bad_hash(file, partial.sha256, "the file that arrived was removed")
        blob = self.blob(file.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        descriptor = partial.flush()
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        stat = os.fstat(descriptor)
        partial.path.replace(blob)
        self._remember(file.sha256, (stat.st_size, stat.st_mtime_ns))
        return blob

    @contextmanager
    def lock(self, file: File, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Keep other processes from fetching the same file. Raises `Unavailable(timeout)`."""
        path = self.root / "locks" / file.sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_s
        with path.open("ab") as handle:
            while not _try_lock(handle):
                if time.monotonic() >= deadline:
                    message = f"another process has been fetching {file.name} for {wait_s:.0f} s"
                    raise Unavailable(message, code="timeout")
                time.sleep(_LOCK_POLL_S)
            yield

    def check_room(self, needed_bytes: int) -> None:
        """Raises `SourceError` unless the disk has that much, and a reserve, to spare."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = self._free_bytes(self.root)
        if free < needed_bytes + RESERVE_BYTES:
            raise SourceError(
                f"needs {needed_bytes + RESERVE_BYTES:,} bytes at {self.root}, "
                f"where {free:,} are free; make room or choose another store"
            )

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the store's disk, removed at the end."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=self.root) as folder:
            yield Path(folder)

    def _partial(self, file: File) -> Path:
        return self.root / "partial" / file.sha256

    def _open(self, file: File) -> BufferedReader:
        try:
            return self.blob(file.sha256).open("rb")
        except FileNotFoundError:
            message = f"{file.name} is not in the store {self.root}; pull the model first"
            raise Unavailable(message, code="source_failed") from None

    def _hash(self, file: File, handle: BufferedReader) -> None:
        mark = _mark(handle)
        handle.seek(0)
        found = hashlib.file_digest(handle, "sha256").hexdigest()
        handle.seek(0)
        remedy = f"remove {self.blob(file.sha256)} and pull the model again"
        if found != file.sha256 or _mark(handle) != mark:
            raise _bad_hash(file, found, remedy)
        if mark[0] != file.size:
            message = f"{file.name} has {mark[0]} bytes, the manifest says {file.size}"
            raise Refused(message, code="bad_hash")
        self._remember(file.sha256, mark)

    def _remember(self, sha256: str, mark: _Mark) -> None:
        self._verified[sha256] = mark
        sidecar = _sidecar(self.blob(sha256))
        fresh = sidecar.with_name(f"{sidecar.name}.{os.getpid()}")
        value = {"sha256": sha256, "size": mark[0], "mtime_ns": mark[1]}
        # A store that may not be written to is hashed once per process instead.
        with suppress(OSError):
            fresh.write_bytes(orjson.dumps(value))
            fresh.replace(sidecar)

    def _read_mark(self, sha256: str) -> _Mark | None:
        try:
            value = orjson.loads(_sidecar(self.blob(sha256)).read_bytes())
            if value["sha256"] == sha256:
                return int(value["size"]), int(value["mtime_ns"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None


def _sidecar(blob: Path) -> Path:
    return blob.with_name(blob.name + ".verified")


def _mark(handle: BufferedReader) -> _Mark:
    stat = os.fstat(handle.fileno())
    return stat.st_size, stat.st_mtime_ns


def _try_lock(handle: BufferedWriter) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bad_hash(file: File, found: str, remedy: str) -> Refused:
    message = f"{file.name}: expected SHA-256 {file.sha256}, found {found}; {remedy}"
    return Refused(message, code="bad_hash")
