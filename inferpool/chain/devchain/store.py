"""What the chain keeps on disk: trie nodes, blocks and a few numbers, in one SQLite file.

Every block is one SQLite transaction, so a killed process leaves the chain at the end of a block.
WAL with `synchronous=NORMAL` survives kill -9; a power cut may lose the last blocks, whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from eth.db.backends.base import BaseDB

from inferpool.chain.devchain.limits import CACHE_ENTRIES_MAX

_LOCK_TIMEOUT_S: Final = 1.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block (number INTEGER PRIMARY KEY, header BLOB NOT NULL,
  transactions TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class KeyValues(BaseDB):
    """py-evm's database on one table, with a cache in memory."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cache: dict[bytes, bytes] = {}

    def __getitem__(self, key: bytes) -> bytes:
        value = self._cache.get(key)
        if value is None:
            row = self._connection.execute("SELECT value FROM kv WHERE key=?", (key,)).fetchone()
            if row is None:
                raise KeyError(key)
            value = bytes(row[0])
            self._remember(key, value)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._connection.execute("REPLACE INTO kv VALUES (?,?)", (key, value))
        self._remember(key, value)

    def __delitem__(self, key: bytes) -> None:
        if not self._exists(key):
            raise KeyError(key)
        self._connection.execute("DELETE FROM kv WHERE key=?", (key,))
        self._cache.pop(key, None)

    def _exists(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def _remember(self, key: bytes, value: bytes) -> None:
        if len(self._cache) >= CACHE_ENTRIES_MAX:
            self._cache.clear()
        self._cache[key] = value

    def forget(self) -> None:
        """Drop the cache: after a rollback it may hold what the file does not."""
        self._cache.clear()


def _own(path: str) -> int | None:
    """Two processes on one file would fork the chain: the second must not start.

    A lock beside the file and not SQLite's own exclusive one, so that a backup may read.
    """
    if path == ":memory:":
        return None
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise sqlite3.OperationalError("database is locked") from None
    return handle


class Store:
    """One chain's file; `:memory:` keeps nothing. Used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self._lock = _own(path)
        self._connection = sqlite3.connect(
            path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_SCHEMA)
        self.kv = KeyValues(self._connection)

    def close(self) -> None:
        """Close the file; committed blocks stay."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes within, or none. Transactions do not nest."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            self.kv.forget()
            raise
        self._connection.execute("COMMIT")

    def blocks(self) -> list[tuple[bytes, list[dict[str, Any]]]]:
        """All blocks in order: the header's RLP and the transactions as they were saved."""
        rows = self._connection.execute("SELECT header, transactions FROM block ORDER BY number")
        return [(bytes(header), json.loads(text)) for header, text in rows]

    def save_block(self, number: int, header: bytes, transactions: list[dict[str, Any]]) -> None:
        """Append one block."""
        text = json.dumps(transactions, separators=(",", ":"))
        self._connection.execute("INSERT INTO block VALUES (?,?,?)", (number, header, text))

    def delete_blocks_after(self, number: int) -> None:
        """Forget the blocks above `number`; their trie nodes stay and do no harm."""
        self._connection.execute("DELETE FROM block WHERE number>?", (number,))

    def number(self, name: str, default: int) -> int:
        """A number that was kept under a name."""
        row = self._connection.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return default if row is None else int(row[0])

    def keep_number(self, name: str, value: int) -> None:
        """Keep a number under a name."""
        self._connection.execute("REPLACE INTO meta VALUES (?,?)", (name, str(value)))
