"""Durable writes with group commit: whoever awaits a write goes on when it is on disk.

One writer thread takes all that queued while the last transaction was committed and commits it in
one go, so that a burst of answers shares one fsync. What is written within one turn of the event
loop is handed over together: calls that one commit woke share the next one too. `MemoryJournal`
does the same without thread or file, for the simulator: a crash there loses exactly what was not
committed yet.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Protocol

from sqlalchemy import Executable, Table
from sqlalchemy.engine import Engine, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql import ClauseElement

from inferpool.payments.database import (
    Location,
    Statement,
    away,
    compiled,
    insert_or_update,
    open_engine,
    passes,
)
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.value import value

_LOG = logging.getLogger("inferpool.journal")
BATCH_MAX: Final = 1024
QUEUE_MAX: Final = 100_000
ROWS_AT_ONCE: Final = 16  # of one statement; below SQLite's bound on parameters for any table here
_RETRY_FIRST_S: Final = 0.05
_RETRY_LAST_S: Final = 1.0
_CLOSE_S: Final = 10.0


@value
class Write:
    """One statement with its parameters.

    Of several writes to one `row` in one commit only the last is executed: the totals of a channel
    change with each answer, and a burst of answers needs one of them on disk.
    """

    statement: Statement
    values: dict[str, object] | tuple[object, ...]  # by column, or in the order of the SQL
    row: bytes | None = None  # the key of the row that it replaces whole, where it does

    def parameters(self) -> tuple[object, ...]:
        """Positional parameters in the order of the SQL."""
        values = self.values
        if isinstance(values, tuple):
            return values
        return tuple(values[name] for name in self.statement.names)


class Journal(Protocol):
    """Where both ledgers write and read."""

    @property
    def dialect(self) -> str:
        """The database's name, for statements that differ."""
        ...

    def compile(self, statement: ClauseElement) -> Statement:
        """Compile a Core statement for this database."""
        ...

    def check(self) -> None:
        """Raise Unavailable(ledger_unavailable) while nothing becomes durable."""
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
    return journal.compile(insert_or_update(journal.dialect, table, keys))


@dataclass(frozen=True, slots=True)
class Fence:
    """A query that finds a row for as long as this process may write; `lost` is called, from the
    writer's thread, when it finds none."""

    query: Statement
    values: tuple[object, ...]
    lost: Callable[[], None]


class SqlJournal:
    """The journal of a real process, on a file or at a URL.

    While the database is away its writer tries again, in order, and `check` refuses what would
    need it. So a write is either told to be wrong, or it waits and is durable in the end.
    """

    def __init__(self, location: Location, fence: Fence | None = None) -> None:
        self.engine = open_engine(location)
        self.dialect = self.engine.dialect.name
        self.fence = fence
        self._queue: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._gathered: list[_Job] = []  # in this turn of the loop
        self._taken, self._written = 0, 0  # jobs so far; the second counts in the thread
        self._closed = False
        self._ending = threading.Event()  # the writer waits for nothing any more
        self._away: Unavailable | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def compile(self, statement: ClauseElement) -> Statement:
        """See Journal."""
        return compiled(self.engine, statement)

    def check(self) -> None:
        """See Journal."""
        if self._away is not None:
            raise self._away

    def write(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """See Journal. Raises Unavailable: overloaded where the disk is too far behind,
        shutting_down after `close`."""
        if self._closed:
            raise Unavailable("The ledger is closed.", code="shutting_down")
        if self._taken - self._written > QUEUE_MAX:
            raise Unavailable("The disk is too slow for the ledger; try again.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        gathered = self._gathered
        if not gathered or gathered[-1][2] is not loop:
            loop.call_soon(self._hand_over)
        gathered.append((writes, future, loop))
        self._taken += 1
        return future

    def _hand_over(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._queue.put(gathered)

    def read(self, query: Executable) -> Sequence[Row[Any]]:
        """See Journal."""
        self.check()
        try:
            with self.engine.connect() as connection:
                return connection.execute(query).all()
        except (DBAPIError, PoolTimeout) as error:
            if isinstance(error, DBAPIError) and not passes(error):
                raise
            raise away(error) from None

    async def ask(self, query: Executable) -> Sequence[Row[Any]]:
        """See Journal."""
        self.check()
        await self.write([])
        return await asyncio.to_thread(self.read, query)

    def close(self) -> None:
        """See Journal."""
        self._closed = True
        self._hand_over()
        self._queue.put(None)
        if self._away is not None:
            self._ending.set()
        self._thread.join(timeout=_CLOSE_S)
        self._ending.set()
        self.engine.dispose()

    def _run(self) -> None:
        connection: Any = None
        while (jobs := self._queue.get()) is not None:
            batch, last = self._drain(jobs)
            connection, errors = self._commit(connection, [writes for writes, _, _ in batch])
            self._written += len(batch)
            _tell(batch, errors)
            if last:
                break
        if connection is not None:
            connection.close()

    def _commit(
        self, connection: Any, units: Sequence[Sequence[Write]]
    ) -> tuple[Any, list[Exception | None]]:
        """Commit units, in order, however long the database is away. A unit whose commit was cut
        is written again: every row is written whole, so twice is the same as once."""
        errors: list[Exception | None] = []
        pause_s = _RETRY_FIRST_S
        while True:
            passing: Exception
            try:
                connection = connection or self.engine.raw_connection()
                errors += _commit_all(connection, units[len(errors) :], self.fence)
                if not errors or not passes(errors[-1]):
                    self._away = None
                    return connection, errors
                passing = errors.pop() or AssertionError("it is an error")
            except Exception as error:  # no connection, for whatever reason: there may be one later
                passing = error
            if connection is not None:
                connection.invalidate()
                connection = None
            if self._away is None:
                _LOG.warning("the ledger's database is away: %s", passing)
            self._away = away(passing)
            if self._ending.wait(pause_s):
                return None, [*errors, *[self._away] * (len(units) - len(errors))]
            pause_s = min(2 * pause_s, _RETRY_LAST_S)

    def _drain(self, batch: list[_Job]) -> tuple[list[_Job], bool]:
        while len(batch) < BATCH_MAX:
            try:
                jobs = self._queue.get_nowait()
            except queue.Empty:
                break
            if jobs is None:
                return batch, True
            batch += jobs
        return batch, False


_Job = tuple[Sequence[Write], "asyncio.Future[None]", asyncio.AbstractEventLoop]


def _tell(batch: list[_Job], errors: list[Exception | None]) -> None:
    """Wake each job's writer, in its own loop."""
    for loop in {loop for _, _, loop in batch}:
        ended = [
            (future, error)
            for (_, future, owner), error in zip(batch, errors, strict=True)
            if owner is loop
        ]
        if not loop.is_closed():
            loop.call_soon_threadsafe(_finish, ended)


def _commit_all(
    connection: Any, units: Sequence[Sequence[Write]], fence: Fence | None = None
) -> list[Exception | None]:
    """Commit many units at once; where that fails each by itself, so that a bad one harms no
    other. The result tells each unit's error, up to the first that may pass."""
    error = _commit(connection, [write for writes in units for write in writes], fence)
    if passes(error):
        return [error]
    if error is None or len(units) == 1:
        return [error] * len(units)
    errors: list[Exception | None] = []
    for writes in units:
        errors.append(_commit(connection, writes, fence))
        if passes(errors[-1]):
            break
    return errors


def _commit(connection: Any, writes: Sequence[Write], fence: Fence | None) -> Exception | None:
    if not writes:
        return None
    cursor = connection.cursor()
    try:
        for statement, rows in _grouped(writes):
            many = statement.many(ROWS_AT_ONCE)
            whole = len(rows) - len(rows) % ROWS_AT_ONCE if many else 0
            for at in range(0, whole, ROWS_AT_ONCE):
                cursor.execute(many, tuple(chain.from_iterable(rows[at : at + ROWS_AT_ONCE])))
            if whole < len(rows):
                cursor.executemany(statement.sql, rows[whole:])
        if fence is not None:
            cursor.execute(fence.query.sql, fence.values)
            if cursor.fetchone() is None:
                fence.lost()
                raise Refused("another process has taken this one's place")
        connection.commit()
    except Exception as error:
        with suppress(Exception):  # of a connection that is gone there is nothing to take back
            connection.rollback()
        return error
    finally:
        cursor.close()
    return None


def _grouped(writes: Sequence[Write]) -> list[tuple[Statement, list[tuple[object, ...]]]]:
    """Parameters by statement, in the order in which these first come; each row once."""
    groups: dict[int, tuple[Statement, list[tuple[object, ...]], dict[bytes, Write]]] = {}
    for write in writes:
        group = groups.get(id(write.statement))
        if group is None:
            group = groups[id(write.statement)] = (write.statement, [], {})
        if write.row is None:
            group[1].append(write.parameters())
        else:
            group[2][write.row] = write
    return [
        (statement, [*rows, *(write.parameters() for write in last.values())])
        for statement, rows, last in groups.values()
    ]


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
        self.dialect = self._engine.dialect.name

    @property
    def engine(self) -> Engine:
        """The database, to be opened again after a crash."""
        return self._engine

    def compile(self, statement: ClauseElement) -> Statement:
        """See Journal."""
        return compiled(self._engine, statement)

    def check(self) -> None:
        """See Journal."""

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
