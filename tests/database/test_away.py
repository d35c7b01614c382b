"""A database that is away for a while: nothing is lost, nothing is doubled, callers hear so."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import insert, select

from inferpool.payments.database import open_engine
from inferpool.payments.journal import SqlJournal
from inferpool.payments.schema import ACCOUNTS
from inferpool.protocol.errors import Unavailable
from tests.database.server import Server
from tests.database.test_contract import account_write, seen_elsewhere

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120)]


async def until_refused(journal: SqlJournal) -> Unavailable:
    deadline = time.monotonic() + 30
    while True:
        try:
            journal.check()
        except Unavailable as refused:
            return refused
        assert time.monotonic() < deadline, "the journal does not notice"
        await asyncio.sleep(0.02)


async def test_what_was_written_meanwhile_is_durable_in_the_end(server: Server) -> None:
    url = server.new_database()
    journal = SqlJournal(url)
    statement = journal.compile(insert(ACCOUNTS))
    futures = [journal.write([account_write(statement, number)]) for number in range(100)]
    await futures[0]  # in the middle of it
    server.kill()
    order: list[int] = []
    for number in range(100, 200):
        future = journal.write([account_write(statement, number)])
        future.add_done_callback(lambda _, number=number: order.append(number))
        futures.append(future)
    refused = await until_refused(journal)
    assert (refused.code, refused.status) == ("ledger_unavailable", 503)
    assert refused.retry_after_s
    assert not futures[-1].done()
    for ask in (lambda: journal.read(select(ACCOUNTS)), lambda: open_engine(url)):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.code == "ledger_unavailable"
    with pytest.raises(Unavailable):
        await journal.ask(select(ACCOUNTS))
    server.start()
    # Every commit that was cut came again: of a plain insert the second one is told to be double.
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert order == list(range(100, 200))
    assert results[100:] == [None] * 100
    assert seen_elsewhere(url) == list(range(200))
    journal.check()
    journal.close()


async def test_a_process_that_ends_meanwhile_does_not_hang(server: Server) -> None:
    url = server.new_database()
    journal = SqlJournal(url)
    statement = journal.compile(insert(ACCOUNTS))
    await journal.write([account_write(statement, 1)])
    server.kill()
    last = journal.write([account_write(statement, 2)])
    await until_refused(journal)
    began = time.monotonic()
    await asyncio.to_thread(journal.close)
    assert time.monotonic() - began < 10
    with pytest.raises(Unavailable):
        await last
    server.start()
    assert seen_elsewhere(url) == [1]
