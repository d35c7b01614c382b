"""The page of what a gateway process remembers of nodes, in a file of its home."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from inferpool.daemon.workers import Worker
from inferpool.home import Home


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A `MemoryStore`: one file that is replaced whole."""

    path: Path

    @classmethod
    def of(cls, home: Home, worker: Worker) -> MemoryFile:
        """Each worker has one: it has its own experience."""
        return cls(home.root / "gateway" / f"{worker.role}-nodes.json")

    def load(self, most: int) -> bytes:
        """Empty where there is none. Raises OSError, ValueError above `most` bytes."""
        try:
            with self.path.open("rb") as file:
                page = file.read(most + 1)
        except FileNotFoundError:
            return b""
        if len(page) > most:
            raise ValueError(f"{self.path} has more than {most} bytes")
        return page

    def save(self, page: bytes) -> None:
        """Not synced: what a power cut takes is learned again. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(page)
        fresh.replace(self.path)
