"""The journal: durable when it says so, in order, in groups, and honest about a failed write."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from inferpool.payments.journal import Journal, MemoryJournal, SqlJournal, Statement, Write
from inferpool.payments.schema import ACCOUNTS, PAYEE_RECEIPTS
from inferpool.protocol.errors import Unavailable


def account_write(statement: Statement, number: int, name: object = "") -> Write:
    values: dict[str, object] = {
        "key_hash": b"%06d" % number,
        "name": f"consumer {number}" if name == "" else name,
        "limit_pico_usd": None,
        "spent_pico_usd": str(number),
        "created_ms": 0,
    }
    return Write(statement, values)


def spent(journal: Journal) -> list[int]:
    return sorted(int(row.spent_pico_usd) for row in journal.read(select(ACCOUNTS)))


def on_disk(path: Path) -> list[int]:
    """What another process sees."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT spent_pico_usd FROM accounts").fetchall()
    connection.close()
    return sorted(int(row[0]) for row in rows)


async def test_what_was_awaited_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.sqlite"
    journal = SqlJournal(path)
    statement = journal.compile(insert(ACCOUNTS))
    await journal.write([account_write(statement, 1), account_write(statement, 2)])
    assert on_disk(path) == [1, 2]
    journal.close()


async def test_a_burst_is_committed_in_order_and_in_few_transactions(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    journal = SqlJournal(path)
    statement = journal.compile(insert(ACCOUNTS))
    order: list[int] = []
    futures = []
    for number in range(500):
        future = journal.write([account_write(statement, number)])
        future.add_done_callback(lambda _, number=number: order.append(number))
        futures.append(future)
    before = os.stat(f"{path}-wal").st_size
    await asyncio.gather(*futures)
    assert order == list(range(500))
    assert on_disk(path) == list(range(500))
    # 500 commits of their own would write at least one page of the log each.
    assert os.stat(f"{path}-wal").st_size - before < 500 * 4096
    journal.close()


async def test_a_failed_write_is_told_to_its_writer_and_to_no_other(tmp_path: Path) -> None:
    """One bad row among many in one commit: the others are durable, and their writers hear so."""
    journal = SqlJournal(tmp_path / "ledger.sqlite")
    await _check_one_bad_among_many(journal)
    journal.close()


async def test_a_failed_write_in_memory_too() -> None:
    await _check_one_bad_among_many(MemoryJournal())


async def _check_one_bad_among_many(journal: Journal) -> None:
    statement = journal.compile(insert(ACCOUNTS))
    futures = [journal.write([account_write(statement, number)]) for number in range(20)]
    # A unit is all or nothing: its first row must not stand when its second one cannot.
    bad = journal.write([account_write(statement, 900), account_write(statement, 901, None)])
    futures += [journal.write([account_write(statement, number)]) for number in range(20, 40)]
    results = await asyncio.gather(*futures, bad, return_exceptions=True)
    assert results[:40] == [None] * 40
    assert isinstance(results[40], sqlite3.IntegrityError)
    assert spent(journal) == list(range(40))
    await journal.write([account_write(statement, 41)])  # and it goes on
    assert spent(journal)[-1] == 41


async def test_two_receipts_for_one_request_id_cannot_be_stored() -> None:
    journal = MemoryJournal()
    statement = journal.compile(insert(PAYEE_RECEIPTS))

    def row(request_id: bytes, seq: int) -> Write:
        values: dict[str, object] = {
            "request_id": request_id,
            "channel_id": b"c",
            "seq": seq,
            "model": "m",
            "charge_pico_usd": "1",
            "ended_ms": 0,
            "data": b"",
        }
        return Write(statement, values)

    await journal.write([row(b"a", 1)])
    for double in (row(b"a", 2), row(b"b", 1)):
        with pytest.raises(sqlite3.IntegrityError):
            await journal.write([double])
    await journal.write([row(b"b", 2)])


async def test_closing_commits_what_is_queued_and_then_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    journal = SqlJournal(path)
    statement = journal.compile(insert(ACCOUNTS))
    futures = [journal.write([account_write(statement, number)]) for number in range(100)]
    journal.close()
    await asyncio.wait_for(asyncio.gather(*futures), timeout=5)
    assert on_disk(path) == list(range(100))
    with pytest.raises(Unavailable):
        await asyncio.wait_for(journal.write([account_write(statement, 101)]), timeout=5)
    journal.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from sqlalchemy import insert
from inferpool.payments.journal import SqlJournal, Write
from inferpool.payments.schema import ACCOUNTS

async def main(path):
    journal = SqlJournal(path)
    statement = journal.compile(insert(ACCOUNTS))
    async def write(number):
        values = dict(key_hash=b"%06d" % number, name=f"consumer {number}", limit_pico_usd=None,
                      spent_pico_usd=str(number), created_ms=0)
        await journal.write([Write(statement, values)])
        print(number, flush=True)
    for start in range(0, 10**6, 8):
        await asyncio.gather(*(write(number) for number in range(start, start + 8)))

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_rows_that_were_acknowledged_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged: list[int] = []
    for line in child.stdout:
        if len(acknowledged) == 200:
            os.kill(child.pid, signal.SIGKILL)  # in the middle of writing
        if line.endswith("\n"):
            acknowledged.append(int(line))
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert len(acknowledged) >= 200
    journal = SqlJournal(path)
    found = spent(journal)
    journal.close()
    assert set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + 16, "and next to nothing that was not"


async def test_a_memory_crash_loses_exactly_what_was_not_committed() -> None:
    journal = MemoryJournal(delay_s=0.01)
    statement = journal.compile(insert(ACCOUNTS))
    await journal.write([account_write(statement, 1)])
    lost = [journal.write([account_write(statement, number)]) for number in (2, 3)]
    journal.crash()
    after = journal.write([account_write(statement, 4)])
    results = await asyncio.gather(*lost, after, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await asyncio.sleep(0.05)
    again = MemoryJournal(journal.engine)
    assert spent(again) == [1]
    await again.write([account_write(statement, 5)])
    assert spent(again) == [1, 5]


def test_accounts_of_one_name_in_an_earlier_version_s_book_are_told_apart(tmp_path: Path) -> None:
    """A second key of the home made a second account `default` there, and names are unique now."""
    path = tmp_path / "ledger.sqlite"
    SqlJournal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX accounts_by_name")
        connection.executemany(
            "INSERT INTO accounts (key_hash, name, limit_pico_usd, spent_pico_usd, created_ms)"
            " VALUES (?, ?, NULL, '7', ?)",
            [(b"b" * 32, "default", 2), (b"a" * 32, "default", 1), (b"c" * 32, "other", 3)],
        )
    connection.close()
    journal = SqlJournal(path)
    names = {row.key_hash[:1]: row.name for row in journal.read(select(ACCOUNTS))}
    assert names == {b"a": "default", b"b": "default.62626262", b"c": "other"}
    assert spent(journal) == [7, 7, 7]
    journal.close()
    SqlJournal(path).close()  # and nothing is left to be done
