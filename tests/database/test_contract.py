"""One contract for both databases: what a book writes is there, whole, in order, exact."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from sqlalchemy import insert, select, text

from inferpool.gateway.route_book import RouteBook
from inferpool.gateway.router import Route
from inferpool.payments.budget import Account
from inferpool.payments.database import Location, open_engine
from inferpool.payments.journal import SqlJournal, Statement, Write, upsert
from inferpool.payments.payer_ledger import AttemptRecord, PayerLedger
from inferpool.payments.schema import ACCOUNTS, METADATA, PAYER_CHANNELS
from inferpool.payments.usage import Window, usage_of
from inferpool.protocol.errors import Refused
from inferpool.protocol.lifecycle import AttemptState
from tests.payments.parts import (
    AUTHORIZER,
    CHAIN_ID,
    CHANNEL_ID,
    NODE,
    attempt,
    honest_receipt,
    name,
    payer_channel,
    signed,
)

HUGE = 2**100


def account_write(statement: Statement, number: int, name: object = "") -> Write:
    values: dict[str, object] = {
        "key_hash": b"%06d" % number,
        "name": f"account {number}" if name == "" else name,
        "limit_pico_usd": None,
        "spent_pico_usd": str(number),
        "created_ms": 0,
    }
    return Write(statement, values)


def seen_elsewhere(location: Location) -> list[int]:
    """What another process sees."""
    engine = open_engine(location)
    with engine.connect() as connection:
        found = sorted(int(row.spent_pico_usd) for row in connection.execute(select(ACCOUNTS)))
    engine.dispose()
    return found


async def test_a_burst_is_durable_in_order(location: Location) -> None:
    journal = SqlJournal(location)
    statement = journal.compile(insert(ACCOUNTS))
    order: list[int] = []
    futures = []
    for number in range(500):
        future = journal.write([account_write(statement, number)])
        future.add_done_callback(lambda _, number=number: order.append(number))
        futures.append(future)
    await asyncio.gather(*futures)
    assert order == list(range(500))
    assert seen_elsewhere(location) == list(range(500))
    journal.close()


async def test_a_bad_unit_is_told_to_its_writer_and_harms_no_other(location: Location) -> None:
    journal = SqlJournal(location)
    statement = journal.compile(insert(ACCOUNTS))
    futures = [journal.write([account_write(statement, number)]) for number in range(20)]
    bad = journal.write([account_write(statement, 900), account_write(statement, 901, None)])
    futures += [journal.write([account_write(statement, number)]) for number in range(20, 40)]
    results = await asyncio.gather(*futures, bad, return_exceptions=True)
    assert results[:40] == [None] * 40
    assert type(results[40]).__name__ in ("IntegrityError", "NotNullViolation")
    assert seen_elsewhere(location) == list(range(40))
    journal.close()


async def test_of_one_row_the_last_write_stands(location: Location) -> None:
    journal = SqlJournal(location)
    statement = upsert(journal, ACCOUNTS, "key_hash")
    for number in range(200):
        write = account_write(statement, 1)
        journal.write([replace(write, values={**write.values, "spent_pico_usd": str(number)})])
    await journal.write([])
    assert seen_elsewhere(location) == [199]
    journal.close()


async def test_two_accounts_of_one_name_cannot_be_stored(location: Location) -> None:
    journal = SqlJournal(location)
    statement = upsert(journal, ACCOUNTS, "key_hash")
    await journal.write([account_write(statement, 1, "web")])
    with pytest.raises(Exception, match=r"(?i)unique"):
        await journal.write([account_write(statement, 2, "web")])
    await journal.write([account_write(statement, 1, "web")])
    journal.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from sqlalchemy import insert
from inferpool.payments.journal import SqlJournal, Write
from inferpool.payments.schema import ACCOUNTS

async def main(where):
    journal = SqlJournal(where if "://" in where else Path(where))
    statement = journal.compile(insert(ACCOUNTS))
    async def write(number):
        values = dict(key_hash=b"%06d" % number, name=f"a{number}", limit_pico_usd=None,
                      spent_pico_usd=str(number), created_ms=0)
        await journal.write([Write(statement, values)])
        print(number, flush=True)
    for start in range(0, 10**6, 8):
        await asyncio.gather(*(write(number) for number in range(start, start + 8)))

asyncio.run(main(sys.argv[1]))
"""


def test_rows_that_were_acknowledged_survive_kill_9(location: Location) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(location)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged: list[int] = []
    for line in child.stdout:
        if len(acknowledged) == 200:
            os.kill(child.pid, signal.SIGKILL)
        if line.endswith("\n"):
            acknowledged.append(int(line))
    child.wait()
    child.stdout.close()
    found = seen_elsewhere(location)
    assert len(acknowledged) >= 200
    assert set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + 16, "and next to nothing that was not"


OPENER = """
import sys
from pathlib import Path
from inferpool.payments.database import open_engine
where = sys.argv[1]
open_engine(where if "://" in where else Path(where)).dispose()
"""


@pytest.mark.timeout(120)
def test_processes_that_open_an_empty_database_together_all_find_it_made(
    location: Location,
) -> None:
    words = [sys.executable, "-c", OPENER, str(location)]
    children = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 4, said


async def test_a_book_of_an_earlier_version_gets_what_it_lacks(location: Location) -> None:
    journal = SqlJournal(location)
    statement = upsert(journal, ACCOUNTS, "key_hash")
    await journal.write([account_write(statement, 7)])
    journal.close()
    engine = open_engine(location)
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX attempts_by_client"))
        connection.execute(text("ALTER TABLE attempts DROP COLUMN fee_pico_usd"))
        connection.execute(text("DROP TABLE routes"))
    engine.dispose()
    assert seen_elsewhere(location) == [7]
    journal = SqlJournal(location)
    for table in METADATA.sorted_tables:
        journal.read(select(table))
    names = "SELECT indexname FROM pg_indexes" if "://" in str(location) else (
        "SELECT name FROM sqlite_master"
    )  # fmt: skip
    assert "attempts_by_client" in {row[0] for row in journal.read(text(names))}
    journal.close()


async def test_the_gateways_book_is_read_as_it_was_written(location: Location) -> None:
    journal = SqlJournal(location)
    ledger = PayerLedger(journal, CHAIN_ID)
    await ledger.add_account("key-1", Account("consumer", HUGE, 17), 5)
    channel = payer_channel(HUGE, total_pico_usd=0)
    await ledger.save_channel(NODE.address, channel)
    await ledger.save_deposit(NODE.address, channel, 40, 2**255, 1000)
    for number, seq in ((1, 1), (3, 3)):
        channel.authorise(name(number), 50, AUTHORIZER)
        made = honest_receipt(number, seq, charged_total_pico_usd=9_000_000 * seq)
        record = AttemptRecord.of(attempt(number), "req_1", "consumer")
        record.move(AttemptState.SENT)
        channel.book(made)
        record.settle(signed(made))
        record.billed_pico_usd, record.fee_pico_usd = record.charge_pico_usd, 1
        await ledger.save_attempt(record, channel)
    open_record = AttemptRecord.of(attempt(2), "req_1", "consumer")
    await ledger.save_attempt(open_record, channel)
    ledger.accounts[next(iter(ledger.accounts))].own.total = HUGE + 1
    await ledger.save_attempt(open_record, None, next(iter(ledger.accounts)))
    journal.close()

    journal = SqlJournal(location)
    again = PayerLedger(journal, CHAIN_ID)
    node, found = again.channels[CHANNEL_ID]
    assert (node, found.balance, found.total_pico_usd) == (NODE.address, HUGE, 18_000_000)
    assert (found.next_seq, found.booked_ahead) == (2, {3})
    assert found.config == channel.config
    account = again.account("key-1", 0)
    assert account is not None
    assert (account[1].limit_pico_usd, account[1].spent_pico_usd) == (HUGE, HUGE + 18)
    assert again.open_attempts == [open_record]
    assert again.deposited_since(999) == 40
    assert again.deposited_since(1000) == 0
    assert again.last_used_ms() == {CHANNEL_ID: 1_000}
    assert [item.request_id for item in again.attempts_of("req_1")] != []
    assert again.attempt(name(3)) is not None
    assert len(again.attempts(2)) == 2
    used = await usage_of(journal, "key,model,node,day", Window())
    assert used["rows"] == [
        {
            "key": "consumer",
            "model": "fake-chat",
            "node": "0x" + NODE.address.hex(),
            "day": "1970-01-01",
            "requests": 1,
            "attempts": 2,
            "units_in": 40,
            "units_out": 20,
            "price_usd": "0.000018",
            "fee_usd": "0.000000000002",
            "total_usd": "0.000018000002",
            "charge_usd": "0.000018",
        }
    ]
    assert (await usage_of(journal, "", Window(until_ms=1000)))["total"]["attempts"] == 0  # type: ignore[index]
    journal.close()


async def test_why_a_request_went_where_is_kept_up_to_a_bound(location: Location) -> None:
    journal = SqlJournal(location)
    book = RouteBook(journal, kept_max=3)
    for number in range(5):
        book.note(f"req_{number}", 0, "web", Route([], at_ms=number))
        book.note(f"req_{number}", 1, "web", Route([], at_ms=number))
        book.flush()
    found = await book.find("req_4")
    assert found is not None
    assert (found[0], len(found[1])) == ("web", 2)
    book._until_sweep = 0
    book.note("req_5", 0, "web", Route([], at_ms=5))
    book.flush()
    await journal.write([])
    assert await book.find("req_0") is None
    assert await book.find("req_5") is not None
    journal.close()


@pytest.mark.parametrize("url", ["mysql://a@b/c", "no url", "sqlite:///x"])
def test_a_url_that_names_no_database_of_ours_is_refused(url: str) -> None:
    with pytest.raises(Refused) as caught:
        open_engine(url)
    assert (caught.value.code, caught.value.param) == ("bad_config", "gateway.db")


async def test_a_start_reads_only_what_is_booked_beyond_a_gap(location: Location) -> None:
    journal = SqlJournal(location)
    ledger = PayerLedger(journal, CHAIN_ID)
    channel = payer_channel(HUGE)
    await ledger.save_channel(NODE.address, channel)
    for seq in (1, 2, 3, 5, 6):
        channel.authorise(name(seq), 50, AUTHORIZER)
        made = honest_receipt(seq, seq, charged_total_pico_usd=9_000_000 * seq)
        record = AttemptRecord.of(attempt(seq), f"req_{seq}", "consumer")
        record.move(AttemptState.SENT)
        channel.book(made)
        record.settle(signed(made))
        await ledger.save_attempt(record, channel)
    assert [row.booked_seq for row in journal.read(select(PAYER_CHANNELS))] == [3]
    journal.close()
    engine = open_engine(location)
    with engine.begin() as connection:  # an archive may take what lies before
        connection.execute(text("DELETE FROM attempts WHERE seq < 3"))
    engine.dispose()
    journal = SqlJournal(location)
    found = PayerLedger(journal, CHAIN_ID).channels[CHANNEL_ID][1]
    assert (found.next_seq, found.booked_ahead) == (4, {5, 6})
    journal.close()
