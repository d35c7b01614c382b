"""Durable writes with group commit: whoever awaits a write goes on when it is on disk.

One writer thread takes all that queued while the last transaction was committed and commits it in
one go, so that a burst of answers shares one fsync. `MemoryJournal` does the same without thread
or file, for the simulator: a crash there loses exactly what was not committed yet.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Executable, Table, create_engine, event, inspect, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Engine, Row
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateColumn
from sqlalchemy.sql import ClauseElement

from inferpool.payments.schema import METADATA
from inferpool.protocol.errors import Unavailable

BATCH_MAX: Final = 1024
QUEUE_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement compiled once for one database: executing it skips SQLAlchemy (5 us, not 150)."""

    sql: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """One statement with its parameters.

    Of several writes to one `row` in one commit only the last is executed: the totals of a channel
    change with each answer, and a burst of answers needs one of them on disk.
    """

    statement: Statement
    values: dict[str, object]
    row: bytes | None = None  # the key of the row that it replaces whole, where it does

    def parameters(self) -> tuple[object, ...]:
        """Positional parameters in the order of the SQL."""
        return tuple(self.values[name] for name in self.statement.names)


class Journal(Protocol):
    """Where both ledgers write and read."""

    def compile(self, statement: ClauseElement) -> Statement:
        """Compile a Core statement for this database."""
        ...

    def write(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """Queue writes, in order, as one unit; the future is done when they are durable."""
        ...

    def read(self, query: Executable) -> Sequence[Row[Any]]:
        """Run a query now; for start-up and rare paths."""
        ...

    async def ask(self, query: Executable) -> Sequence[Row[Any]]:
        """Run a query that may take its time, on what was written before."""
        ...

    def close(self) -> None:
        """Commit what is queued and close."""
        ...


def upsert(journal: Journal, table: Table, *keys: str) -> Statement:
    """Insert a row, or write its other columns where one with these keys is there."""
    statement = insert(table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    return journal.compile(statement.on_conflict_do_update(index_elements=keys, set_=changed))


def _compile(engine: Engine, statement: ClauseElement) -> Statement:
    compiled = statement.compile(dialect=engine.dialect)
    names = getattr(compiled, "positiontup", None)
    assert names is not None, "the driver must take positional parameters"
    return Statement(str(compiled), tuple(names))


def _pragmas(connection: Any, _: Any) -> None:
    # FULL: a commit survives a power cut, not just a killed process. Measured at 0.25 ms here.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def open_engine(path: Path | None) -> Engine:
    """An SQLite engine on a file, or in memory for None, with its tables made."""
    if path is None:
        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _pragmas)
    METADATA.create_all(engine)
    _add_columns(engine)
    return engine


def _add_columns(engine: Engine) -> None:
    """Columns that a book of an earlier version lacks; each has a default for its rows."""
    present = inspect(engine)
    with engine.begin() as connection:
        for table in METADATA.sorted_tables:
            known = {item["name"] for item in present.get_columns(table.name)}
            for column in table.columns:
                if column.name not in known:
                    made = CreateColumn(column).compile(dialect=engine.dialect)
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {made}"))


class SqlJournal:
    """The journal of a real process."""

    def __init__(self, path: Path) -> None:
        self._engine = open_engine(path)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def compile(self, statement: ClauseElement) -> Statement:
        """See Journal."""
        return _compile(self._engine, statement)

    def write(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """See Journal. Raises Unavailable: overloaded where the disk is too far behind,
        shutting_down after `close`."""
        if self._closed:
            raise Unavailable("The ledger is closed.", code="shutting_down")
        if self._queue.qsize() > QUEUE_MAX:
            raise Unavailable("The disk is too slow for the ledger; try again.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._queue.put((tuple(writes), future, loop))
        return future

    def read(self, query: Executable) -> Sequence[Row[Any]]:
        """See Journal."""
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    async def ask(self, query: Executable) -> Sequence[Row[Any]]:
        """See Journal."""
        await self.write([])
        return await asyncio.to_thread(self.read, query)

    def close(self) -> None:
        """See Journal."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout=10)
        self._engine.dispose()

    def _run(self) -> None:
        connection = self._engine.raw_connection()
        try:
            while (job := self._queue.get()) is not None:
                batch, last = self._drain(job)
                errors = _commit_all(connection, [writes for writes, _, _ in batch])
                for loop in {loop for _, _, loop in batch}:
                    ended = [
                        (future, error)
                        for (_, future, owner), error in zip(batch, errors, strict=True)
                        if owner is loop
                    ]
                    if not loop.is_closed():
                        loop.call_soon_threadsafe(_finish, ended)
                if last:
                    return
        finally:
            connection.close()

    def _drain(self, first: _Job) -> tuple[list[_Job], bool]:
        batch = [first]
        while len(batch) < BATCH_MAX:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False


_Job = tuple[tuple[Write, ...], "asyncio.Future[None]", asyncio.AbstractEventLoop]


def _commit_all(connection: Any, units: Sequence[Sequence[Write]]) -> list[Exception | None]:
    """Commit many units at once; where that fails each by itself, so that a bad one harms no
    other. The result tells each unit's error."""
    error = _commit(connection, [write for writes in units for write in writes])
    if error is None or len(units) == 1:
        return [error] * len(units)
    return [_commit(connection, writes) for writes in units]


def _commit(connection: Any, writes: Sequence[Write]) -> Exception | None:
    cursor = connection.cursor()
    try:
        for statement, rows in _grouped(writes):
            cursor.executemany(statement.sql, rows)
        connection.commit()
    except Exception as error:
        connection.rollback()
        return error
    finally:
        cursor.close()
    return None


def _grouped(writes: Sequence[Write]) -> list[tuple[Statement, list[tuple[object, ...]]]]:
    """Parameters by statement, in the order in which these first come; each row once."""
    last: dict[tuple[int, object], Write] = {}
    for at, write in enumerate(writes):
        key = (id(write.statement), at if write.row is None else write.row)
        last.pop(key, None)
        last[key] = write
    groups: dict[int, tuple[Statement, list[tuple[object, ...]]]] = {}
    for write in last.values():
        found = groups.setdefault(id(write.statement), (write.statement, []))
        found[1].append(write.parameters())
    return list(groups.values())


def _finish(ended: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for future, error in ended:
        if future.done():
            continue  # its owner was cancelled; the write stands all the same
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # not every writer waits; whoever does gets it


class MemoryJournal:
    """A journal without thread or file: commits `delay_s` after a write, on the loop's own clock.

    `crash()` drops what was not committed; the database itself outlives it, as a disk would.
    """

    def __init__(self, engine: Engine | None = None, delay_s: float = 0.001) -> None:
        self._engine = engine or open_engine(None)
        self._delay_s = delay_s
        self._pending: list[tuple[tuple[Write, ...], asyncio.Future[None]]] = []
        self._dead = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def engine(self) -> Engine:
        """The database, to be opened again after a crash."""
        return self._engine

    def compile(self, statement: ClauseElement) -> Statement:
        """See Journal."""
        return _compile(self._engine, statement)

    def write(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """See Journal."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._dead:
            future.cancel()  # a killed process writes nothing; its tasks end here
            return future
        self._pending.append((tuple(writes), future))
        if self._timer is None:
            self._timer = loop.call_later(self._delay_s, self._flush)
        return future

    def _flush(self) -> None:
        self._timer = None
        pending, self._pending = self._pending, []
        connection = self._engine.raw_connection()
        try:
            errors = _commit_all(connection, [writes for writes, _ in pending])
        finally:
            connection.close()
        ended = zip([future for _, future in pending], errors, strict=True)
        _finish(list(ended))

    def read(self, query: Executable) -> Sequence[Row[Any]]:
        """See Journal."""
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    async def ask(self, query: Executable) -> Sequence[Row[Any]]:
        """See Journal."""
        await self.write([])
        return self.read(query)

    def crash(self) -> None:
        """Lose what was not committed, now and later; its writers are cancelled."""
        self._dead = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _, future in self._pending:
            future.cancel()
        self._pending = []

    def close(self) -> None:
        """See Journal."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
