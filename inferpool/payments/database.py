"""The database below the books: SQLite by default, PostgreSQL by URL, one schema on both.

What differs between the two is here and nowhere else: how a connection is opened, which insert
gives way to a row that is there, what an error means, and whose clock counts. Several processes
may open one database at once; the first makes the tables, the others wait for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Table, create_engine, event, inspect, select, text, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateColumn
from sqlalchemy.sql import ClauseElement

from inferpool.payments.schema import ACCOUNTS, METADATA, VERSIONS
from inferpool.protocol.errors import Refused, Unavailable

POSTGRESQL: Final = "postgresql"
CONNECT_TIMEOUT_S: Final = 3
_SILENCE_MS: Final = 5_000  # of a server that answers nothing: then the connection is given up
_MIGRATION_LOCK: Final = 0x696E666572706F6F  # an arbitrary number, of PostgreSQL's advisory locks
_RETRY_AFTER_S: Final = 2
# SQLSTATE classes after which the same transaction may go well: connection, shutdown, conflict.
_PASSING: Final = ("08", "57", "40", "53", "55")

Location = Path | str | None  # a file, a URL, or memory


def _boot() -> str:
    """What tells this machine's start from any other; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()[:40]
    except OSError:
        return ""


def _since_boot_ns() -> int:
    """Also while the machine slept, the same for all its processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_BOOT: Final = _boot()  # only Linux has it, and with it that clock


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement compiled once for one database: executing it skips SQLAlchemy (5 us, not 150)."""

    sql: str
    names: tuple[str, ...]

    def many(self, rows: int) -> str:
        """The same for several rows at once, one step of SQLite and of the interpreter's lock; ""
        where it inserts none, and for PostgreSQL, whose driver batches by itself."""
        return _many(self.sql, rows)


_ROW: Final = re.compile(r"VALUES (\([?, ]+\))")


@lru_cache(maxsize=256)
def _many(sql: str, rows: int) -> str:
    found = _ROW.search(sql)
    return _ROW.sub("VALUES " + ", ".join([found[1]] * rows), sql) if found else ""


def open_engine(location: Location) -> Engine:
    """An engine with its tables made: on a file, at a URL, or in memory for None.

    Raises Refused(bad_config) for a URL that names no database of ours,
    Unavailable(ledger_unavailable) where the server is away.
    """
    if location is None:
        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    elif isinstance(location, Path):
        location.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(f"sqlite:///{location}", connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _pragmas)
    else:
        engine = _postgresql(location)
    try:
        with engine.connect() as connection:
            _migrate(connection)
    except DBAPIError as error:
        engine.dispose()
        raise away(error) from None
    return engine


def _pragmas(connection: Any, _: Any) -> None:
    # FULL: a commit survives a power cut, not just a killed process. Measured at 0.25 ms here.
    for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _postgresql(location: str) -> Engine:
    try:
        url = make_url(location)
    except ArgumentError:
        raise _bad("it is no URL") from None
    if url.get_backend_name() != POSTGRESQL:
        raise _bad(f"{url.get_backend_name()} is not served")
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            paramstyle="format",
            pool_size=4,
            max_overflow=8,
            pool_timeout=_SILENCE_MS / 1000,
            pool_pre_ping=True,
            connect_args={
                "application_name": "inferpool",
                "connect_timeout": CONNECT_TIMEOUT_S,
                "tcp_user_timeout": _SILENCE_MS,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                # A process that froze in a transaction must not keep its locks from the others.
                "options": "-c idle_in_transaction_session_timeout=10000 -c lock_timeout=5000",
            },
        )
    except (ImportError, NoSuchModuleError):
        message = "gateway.db needs the extra `postgres`: pip install 'inferpool[postgres]'"
        raise Refused(message, code="bad_config", param="gateway.db") from None


def _bad(why: str) -> Refused:
    message = f"gateway.db must be postgresql://USER@HOST/NAME or empty for SQLite: {why}"
    return Refused(message, code="bad_config", param="gateway.db")


def _migrate(connection: Connection) -> None:
    """Tables, columns and indexes that a book of an earlier version lacks, one process at a time.

    A new column has a default for the rows that are there; nothing is ever dropped or renamed, so
    that a process of the earlier version may go on beside us until it is replaced.
    """
    if connection.dialect.name == POSTGRESQL:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    else:
        begin_writing(connection)
    METADATA.create_all(connection)
    present = inspect(connection)
    for table in METADATA.sorted_tables:
        columns = {item["name"] for item in present.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                made = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {made}"))
        indexes = {item["name"] for item in present.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                if index.name == "accounts_by_name":
                    _tell_apart(connection)
                index.create(connection)
    connection.commit()


def _tell_apart(connection: Connection) -> None:
    """Accounts of one name, which earlier versions let be: the oldest keeps it, with the usage that
    is kept under it; the others go by a part of their id too. No name is ever given out twice."""
    table = ACCOUNTS.c
    query = select(table.key_hash, table.name).order_by(table.created_ms, table.key_hash)
    rows = connection.execute(query).all()
    known, met = {row.name for row in rows}, set[str]()
    for row in rows:
        name, digits = row.name, 8
        while name in met or (name != row.name and name in known):
            name = f"{row.name[:48]}.{row.key_hash.hex()[:digits]}"
            digits += 1
        met.add(name)
        if name != row.name:
            mine = update(ACCOUNTS).where(table.key_hash == row.key_hash)
            connection.execute(mine.values(name=name))


def begin_writing(connection: Connection) -> None:
    """Begin a transaction that reads before it writes: no other process writes in between.

    On PostgreSQL rows are locked as they are read (`with_for_update`); SQLite has one writer.
    """
    if connection.dialect.name != POSTGRESQL:
        driver = connection.connection.driver_connection
        assert driver is not None, "it is open"
        if not driver.in_transaction:
            driver.execute("BEGIN IMMEDIATE")


def steady_ms(
    connection: Connection,
    wall: Callable[[], int] = time.time_ns,
    since_boot: Callable[[], int] = _since_boot_ns,
) -> int:
    """The time that counts for lanes: the server's; with SQLite one that no step of this machine's
    clock moves, since a lane would look dead to its neighbours, and what it reserved be free.

    The first process after a boot writes down when that was; all count on from there. Both clocks
    give ns.
    """
    if connection.dialect.name == POSTGRESQL or not _BOOT:
        return now_ms(connection)
    name, elapsed_ms = f"boot/{_BOOT}", since_boot() // 1_000_000
    query = select(VERSIONS.c.number).where(VERSIONS.c.name == name)
    began_ms = connection.execute(query).scalar()
    if began_ms is None:
        made = sqlite.insert(VERSIONS).on_conflict_do_nothing(index_elements=["name"])
        now = wall() // 1_000_000
        connection.execute(made.values(name=name, number=now - elapsed_ms))
        began_ms = connection.execute(query).scalar_one()
    return int(began_ms) + elapsed_ms


def now_ms(connection: Connection) -> int:
    """The time that counts for limits: the server's, since machines' clocks differ; with SQLite
    this machine's, since all its processes are here."""
    if connection.dialect.name != POSTGRESQL:
        return time.time_ns() // 1_000_000
    asked = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
    return int(connection.execute(asked).scalar_one())


def compiled(engine: Engine, statement: ClauseElement) -> Statement:
    """A Core statement as the driver takes it."""
    made = statement.compile(dialect=engine.dialect)
    names = getattr(made, "positiontup", None)
    assert names is not None, "the driver must take positional parameters"
    return Statement(str(made), tuple(names))


def insert(dialect: str, table: Table) -> Any:
    """An insert that can give way to a row that is there, as a database of this name spells it."""
    if dialect != POSTGRESQL:
        return sqlite.insert(table)
    from sqlalchemy.dialects import (
        postgresql,  # 10 MB and a tenth of a second, for those who use it
    )

    return postgresql.insert(table)


def insert_or_update(dialect: str, table: Table, keys: Sequence[str]) -> Any:
    """Insert a row, or write its other columns where one with these keys is there."""
    statement = insert(dialect, table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)


def passes(error: BaseException | None) -> bool:
    """Whether the same transaction may go well later: the server is away or going down, two
    processes locked each other out, or another one writes for very long."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if original is None:
        return False
    module, name = type(original).__module__.partition(".")[0], type(original).__name__
    if module == "sqlite3":
        return name == "OperationalError" and "locked" in str(original)
    if module != "psycopg" and isinstance(error, DBAPIError):
        return error.connection_invalidated
    state = getattr(original, "sqlstate", None)
    if state is None:  # none came from the server
        return name in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    return str(state).startswith(_PASSING)


def is_double(error: BaseException) -> bool:
    """Whether a row was refused because another one has its place."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return type(original).__name__ in ("IntegrityError", "UniqueViolation")


def away(error: BaseException) -> Unavailable:
    """What a caller is told: nothing was done, and it may try again."""
    why = str(getattr(error, "orig", error)).strip().partition("\n")[0][:200]
    return Unavailable(
        f"The gateway's database does not answer now: {why or type(error).__name__}",
        code="ledger_unavailable",
        retry_after_s=_RETRY_AFTER_S,
    )
