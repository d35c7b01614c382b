"""Several gateway processes over one book: lanes, budgets and rates that none of them exceeds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update

from inferpool.clock import SystemClock
from inferpool.daemon.shared import adopt
from inferpool.daemon.workers import Worker
from inferpool.gateway.admission import Caller
from inferpool.home import Home
from inferpool.payments.access import Access
from inferpool.payments.budget import Account
from inferpool.payments.database import Location, steady_ms
from inferpool.payments.journal import SqlJournal
from inferpool.payments.key_book import KeyBook
from inferpool.payments.lanes import Lane, living
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.payments.schema import LANES, RESERVED
from inferpool.payments.shared_book import SharedBook
from inferpool.protocol.errors import BadRequest, RateLimited, Refused, Unavailable
from tests.payments.parts import CHAIN_ID, NODE, payer_channel

ONE = 1_000_000  # pico-USD


@dataclass
class Side:
    """One process's side of the book, here one of several in the test's own process."""

    location: Location
    lane: str
    place: str = "here"
    lost: list[str] = field(default_factory=list)
    journal: SqlJournal = field(init=False)
    keys: KeyBook = field(init=False)
    book: SharedBook = field(init=False)

    def __post_init__(self) -> None:
        self.journal = SqlJournal(self.location)
        self.keys = KeyBook(self.journal, self.lane)
        engine = self.journal.engine
        lane = Lane(engine, self.lane, self.place, lambda: self.lost.append(self.lane))
        self.book = SharedBook(lane, self.keys)
        self.access = Access(self.keys, SystemClock().now_ms)

    def start(self) -> float:
        wait_s = self.book.lane.take()
        if not wait_s:
            self.journal.fence = self.book.lane.fence()
            self.book.start()
        return wait_s

    async def account(self, name: str) -> Account:
        await self.keys.refresh()
        return self.keys.named(name)[1]

    async def die(self) -> None:
        """kill -9, as far as others can see."""
        for task in self.book._tasks:
            task.cancel()
        await asyncio.gather(*self.book._tasks, return_exceptions=True)
        self.book._tasks = []
        self.journal.close()

    async def spend(self, account: Account, client: str, pico_usd: int) -> None:
        """What a request's bill does."""
        account.at(SystemClock().now_ms())
        account.hold(client.encode(), pico_usd)
        account.spend(client.encode(), pico_usd)
        saved = self.journal.write(self.keys.spending(account.owner))
        self.keys.spent(account.owner, saved)
        account.release(client.encode())
        self.book.release(account, client)
        await saved


@asynccontextmanager
async def sides(location: Location, count: int = 3) -> AsyncIterator[list[Side]]:
    made = [Side(location, f"lane-{number}") for number in range(count)]
    for side in made:
        assert side.start() == 0
    try:
        yield made
    finally:
        for side in made:
            if side.book._tasks:
                await side.book.close()
                side.journal.close()


@pytest.mark.parametrize("of", ["key", "team"])
@pytest.mark.parametrize("limit", ["budget_usd", "budget_month_usd", "budget_day_usd"])
async def test_of_100_at_once_a_budget_for_10_admits_exactly_10(
    location: Location, limit: str, of: str
) -> None:
    async with sides(location) as made:
        names = ["web", "bot"] if of == "team" else ["web", "web"]
        rules = {limit: "0.00001"}  # ten times ONE
        if of == "team":
            await made[0].access.create_team({"name": "both", **rules})
            for name in names:
                await made[0].access.create({"name": name, "team": "both"})
        else:
            await made[0].access.create({"name": "web", **rules})
        known = [[await side.account(name) for name in names] for side in made]
        granted = await asyncio.gather(
            *(made[i % 3].book.reserve(known[i % 3][i % 2], f"req_{i}", ONE) for i in range(100))
        )
        assert sum(granted) == 10
        # Half of them are billed, half end without a charge: five are free again, and no more.
        passed = [i for i in range(100) if granted[i]]
        for i in passed[:5]:
            await made[i % 3].spend(known[i % 3][i % 2], f"req_{i}", ONE)
        for i in passed[5:]:
            made[i % 3].book.release(known[i % 3][i % 2], f"req_{i}")
        await asyncio.gather(*(side.book.read(known[at][0]) for at, side in enumerate(made)))
        again = await asyncio.gather(
            *(made[i % 3].book.reserve(known[i % 3][i % 2], f"more_{i}", ONE) for i in range(60))
        )
        assert sum(again) == 5


async def test_every_process_ends_a_key_at_its_time_and_takes_the_next(location: Location) -> None:
    async with sides(location, 2) as made:
        one, two = made
        old = str((await one.access.create({"name": "web", "expires": "1h"}))["key"])
        await two.keys.refresh()
        now = SystemClock().now_ms()
        assert two.keys.account(old, now) is not None
        assert two.keys.account(old, now + 3_700_000) is None
        assert two.keys.expired_ms(old, now + 3_700_000) > now
        new = str((await two.access.rotate("web", {"keep_old": "10m"}))["key"])
        await one.keys.refresh()
        for at_ms, expected in ((now, [True, True]), (now + 700_000, [False, True])):
            assert [one.keys.account(key, at_ms) is not None for key in (old, new)] == expected
        again = KeyBook(one.journal)
        assert again.keys == one.keys.keys, "as on disk"


@pytest.mark.parametrize("step_s", [3600, -3600])
async def test_a_clock_that_is_set_frees_nothing_that_others_hold(
    location: Location, step_s: int
) -> None:
    """SQLite has this machine's clock alone: a step of it ends no lane, and keeps no dead one."""
    set_by_ns = 0

    def now(connection: Connection) -> int:
        return steady_ms(connection, lambda: time.time_ns() + set_by_ns)

    async with sides(location, 2) as made:
        for side in made:
            side.book.lane.now = now
        await made[0].access.create({"name": "web", "budget_usd": "0.000001"})
        one, two = await made[0].account("web"), await made[1].account("web")
        assert await made[0].book.reserve(one, "req_1", ONE)
        set_by_ns = step_s * 10**9
        assert not await made[1].book.reserve(two, "req_2", 1), "the other still holds all of it"
        with made[1].journal.engine.connect() as connection:
            assert living(connection, now(connection)) == {"lane-0", "lane-1"}
            assert living(connection, now(connection) + 16_000) == set(), "and lanes do end"


async def test_an_overloaded_journal_keeps_no_reservation(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sides(location, 2) as made:
        await made[0].access.create({"name": "web", "budget_usd": "0.000002"})
        one, two = await made[0].account("web"), await made[1].account("web")
        assert await made[0].book.reserve(one, "req_1", 2 * ONE)
        one.at(SystemClock().now_ms())
        one.hold(b"req_1", 2 * ONE)
        one.spend(b"req_1", ONE)
        saved = made[0].journal.write(made[0].keys.spending(one.owner))
        made[0].keys.spent(one.owner, saved)
        monkeypatch.setattr("inferpool.payments.journal.QUEUE_MAX", -1)
        with pytest.raises(Unavailable):
            made[0].journal.write([])
        one.release(b"req_1")
        made[0].book.release(one, "req_1")
        monkeypatch.undo()
        await saved
        await made[0].book.read(one)
        assert await made[1].book.reserve(two, "req_2", ONE), "what was not spent is free again"
        assert not await made[1].book.reserve(two, "req_3", 1)


async def test_requests_tokens_and_those_at_once_are_counted_together(location: Location) -> None:
    async with sides(location) as made:
        await made[0].access.create({"name": "often", "requests_per_minute": 10})
        await made[0].access.create({"name": "long", "tokens_per_minute": 100})
        await made[0].access.create({"name": "wide", "concurrent": 4})
        names = ("often", "long", "wide")
        known = [{name: await side.account(name) for name in names} for side in made]

        async def tried(name: str, i: int) -> bool:
            side, account = made[i % 3], known[i % 3][name]
            try:
                if name == "long":
                    await side.book.take_tokens(account, 25)
                else:
                    await side.book.begin(account)
            except RateLimited as error:
                assert error.retry_after_s
                return False
            return True

        for name, most in (("often", 10), ("long", 4), ("wide", 4)):
            assert sum(await asyncio.gather(*(tried(name, i) for i in range(30)))) == most
        for _ in range(4):  # it does not matter whose request ended, but who says so
            for at, side in enumerate(made):
                if side.book._running.get(known[at]["wide"].owner):
                    side.book.end(known[at]["wide"].purses)
                    await side.book.read(known[at]["wide"])
        assert sum(await asyncio.gather(*(tried("wide", i) for i in range(30)))) == 4
        made[1].book.correct_tokens(known[1]["long"], -50)
        await made[1].book.read(known[1]["long"])
        assert sum(await asyncio.gather(*(tried("long", i) for i in range(30)))) == 2


async def test_a_caller_that_leaves_while_it_asks_keeps_nothing(location: Location) -> None:
    async with sides(location, 2) as made:
        await made[0].access.create({"name": "web", "budget_usd": "0.000001", "concurrent": 1})
        account = await made[0].account("web")
        for _ in range(20):
            asks = [
                asyncio.create_task(made[0].book.reserve(account, "req", ONE)),
                asyncio.create_task(made[0].book.begin(account)),
            ]
            await asyncio.sleep(0)
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        for side in made:
            await side.book.read(await side.account("web"))
        await made[0].book.read(account)
        there = await made[1].account("web")
        assert await made[1].book.reserve(there, "other", ONE)
        await made[1].book.begin(there)


async def test_keys_made_or_revoked_elsewhere_are_known_here(location: Location) -> None:
    async with sides(location, 2) as made:
        key = str((await made[0].access.create({"name": "web"}))["key"])
        assert made[1].keys.account(key, 0) is None
        await made[1].keys.refresh()
        assert made[1].keys.account(key, 0) is not None
        with pytest.raises(BadRequest, match="taken"):
            await made[1].access.create({"name": "web"})
        await made[0].access.limit("web", {"concurrent": 3})
        await made[0].access.revoke("web")
        await made[1].keys.refresh()
        assert made[1].keys.account(key, 0) is None
        assert made[1].keys.named("web")[1].rules.concurrent == 3


async def test_a_key_that_was_made_a_moment_ago_is_known_to_all_who_ask(
    location: Location,
) -> None:
    """Also right after a reading, and to each of many at once: none is told that it is unknown."""
    async with sides(location, 2) as (one, other):
        for number in range(5):
            made = await one.access.create({"name": f"web-{number}"})
            early = asyncio.create_task(other.book.catch_up())
            for _ in range(3):
                await other.book.catch_up()
                assert other.keys.knows(made["key"])
            await early


async def test_two_processes_cannot_make_one_name_at_once(location: Location) -> None:
    async with sides(location, 2) as made:
        asked = (side.access.create({"name": "web"}) for side in made)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(item, dict) for item in results) == 1, results
        (refused,) = [item for item in results if isinstance(item, Exception)]
        assert isinstance(refused, BadRequest)
        for side in made:
            await side.keys.refresh()
            assert [item["name"] for item in Access.keys(side.access)] == ["web"]
            assert len(side.keys.keys) == 1


# -- lanes ---------------------------------------------------------------------------------------


async def test_a_lane_is_one_processs_and_a_second_one_waits_for_its_end(
    location: Location,
) -> None:
    async with sides(location, 1) as made:
        thief = Side(location, "lane-0", place="elsewhere")
        assert 10 < thief.start() <= 15
        assert made[0].book.lane.held
        await made[0].book.close()
        assert not made[0].book.lane.held
        assert thief.start() == 0, "an orderly end frees it at once"
        with pytest.raises(Refused, match="place"):
            await made[0].access.create({"name": "late"})
        await thief.book.close()
        thief.journal.close()
        made[0].journal.close()


async def test_how_a_process_is_reached_is_known_at_once(location: Location) -> None:
    """Not by its next renewal: until then a retry would be billed again by who does not know it."""
    async with sides(location, 2) as (one, other):
        one.book.lane.url = "http://127.0.0.1:1"
        one.book.lane.announce()
        assert [found.url for found in other.book.lane.neighbours()] == ["http://127.0.0.1:1"]
        thief = Lane(one.journal.engine, "lane-0", "here", lambda: None)
        assert thief.take() == 0
        one.book.lane.announce()
        assert not one.book.lane.held
        assert one.lost == ["lane-0"]


async def test_who_was_followed_writes_nothing_any_more(location: Location) -> None:
    async with sides(location, 1) as made:
        before = made[0]
        await before.access.create({"name": "web"})
        after = Side(location, "lane-0")
        assert after.start() == 0, "the same home: its lock says that the other is dead"
        with pytest.raises(Refused, match="place"):
            await before.access.create({"name": "late"})
        assert before.lost
        await asyncio.to_thread(before.book._renew)
        assert not before.book.lane.held
        with pytest.raises(Unavailable):
            before.book.lane.check()
        await after.keys.refresh()
        assert list(after.keys.by_name) == ["web"]
        await after.book.close()
        after.journal.close()


async def test_what_a_dead_process_had_reserved_is_free_when_its_lane_is_over(
    location: Location,
) -> None:
    async with sides(location, 2) as made:
        await made[0].access.create({"name": "web", "budget_usd": "0.000003", "concurrent": 2})
        dead, living = await made[0].account("web"), await made[1].account("web")
        await made[0].book.begin(dead)
        await made[0].book.begin(dead)
        assert await made[0].book.reserve(dead, "req_1", 2 * ONE)
        await made[0].die()
        assert not await made[1].book.reserve(living, "req_2", 2 * ONE)
        with pytest.raises(RateLimited):
            await made[1].book.begin(living)
        with made[1].journal.engine.begin() as connection:  # its time passes
            connection.execute(update(LANES).where(LANES.c.lane == "lane-0").values(until_ms=1))
        assert await made[1].book.reserve(living, "req_3", 2 * ONE)
        await made[1].book.begin(living)


async def test_who_takes_a_lane_again_holds_nothing_of_the_dead_one(location: Location) -> None:
    async with sides(location, 2) as made:
        await made[0].access.create({"name": "web", "budget_usd": "0.000003"})
        account = await made[0].account("web")
        assert await made[0].book.reserve(account, "req_1", 2 * ONE)
        await made[0].spend(account, "req_1", ONE)
        assert await made[0].book.reserve(account, "req_2", 2 * ONE)
        await made[0].die()
        again = made[0] = Side(location, "lane-0")
        assert again.start() == 0
        found = await again.account("web")
        assert found.spent_pico_usd == ONE
        assert await again.book.reserve(found, "req_3", 2 * ONE)
        assert not await made[1].book.reserve(await made[1].account("web"), "req_4", 1)
        rows = again.journal.read(select(RESERVED))
        assert {row.lane: row.held for row in rows} == {"lane-0": str(2 * ONE), "lane-1": "0"}


async def test_a_key_that_changed_its_team_while_its_request_came_in_leaves_nothing_running(
    location: Location,
) -> None:
    """Between the headers of a request and the end of its body there may be minutes."""
    async with sides(location, 2) as made:
        for name in ("old", "new"):
            await made[0].access.create_team({"name": name, "concurrent": 1})
        for name, team in (("web", "old"), ("bot", "old"), ("app", "new")):
            await made[0].access.create({"name": name, "team": team})
        caller = Caller(b"", await made[0].account("web"))
        await made[0].access.limit("web", {"team": "new"})
        await made[0].book.begin(await made[0].account("bot"))
        await caller.begin(0, made[0].book)
        caller.end()
        await made[0].book.read(caller.account)
        with pytest.raises(RateLimited):  # its place in the old team is not given away
            await made[1].book.begin(await made[1].account("bot"))
        await made[1].book.begin(await made[1].account("app"))


async def test_what_a_team_lent_comes_back_to_it_where_the_key_has_left_it(
    location: Location,
) -> None:
    async with sides(location, 2) as made:
        rules = {"budget_usd": "0.000003", "concurrent": 1}
        for name in ("old", "new"):
            await made[0].access.create_team({"name": name, **rules})
        for name, team in (("web", "old"), ("bot", "old"), ("app", "new")):
            await made[0].access.create({"name": name, "team": team})
        account, caller = await made[0].account("web"), Caller(b"", await made[0].account("web"))
        await caller.begin(0, made[0].book)
        assert await made[0].book.reserve(account, "req_1", 2 * ONE)
        await made[0].access.limit("web", {"team": "new"})
        # In the other team something runs too, and that is still counted at the end.
        assert await made[0].book.reserve(await made[0].account("app"), "req_2", 2 * ONE)
        await made[0].book.begin(await made[0].account("app"))
        caller.end()
        made[0].book.release(account, "req_1")
        await made[0].book.read(account)
        bot, app = await made[1].account("bot"), await made[1].account("app")
        assert await made[1].book.reserve(bot, "req_3", 3 * ONE)
        await made[1].book.begin(bot)
        assert not await made[1].book.reserve(app, "req_4", 2 * ONE)
        with pytest.raises(RateLimited):
            await made[1].book.begin(app)


# -- real processes ------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from pathlib import Path
from inferpool.payments.journal import SqlJournal
from inferpool.payments.key_book import KeyBook
from inferpool.payments.lanes import Lane
from inferpool.payments.shared_book import SharedBook

async def main(where, lane, count):
    journal = SqlJournal(where if "://" in where else Path(where))
    book = SharedBook(Lane(journal.engine, lane, lane, print), KeyBook(journal, lane))
    assert book.lane.take() == 0
    journal.fence = book.lane.fence()
    book.start()
    account = book.keys.named("web")[1]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    asks = (book.reserve(account, f"req_{i}", 1_000_000) for i in range(int(count)))
    print(sum(await asyncio.gather(*asks)), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await book.close()
    journal.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.timeout(120)
async def test_over_three_processes_too(location: Location) -> None:
    journal = SqlJournal(location)
    access = Access(KeyBook(journal), SystemClock().now_ms)
    await access.create({"name": "web", "budget_usd": "0.00001"})
    journal.close()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(location), f"lane-{at}", str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for at, count in enumerate((34, 33, 33))
    ]  # fmt: skip

    def said(child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        return child.stdout.readline().strip()

    def tell(child: subprocess.Popen[str]) -> None:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()

    try:
        assert [said(child) for child in children] == ["ready"] * 3
        for child in children:
            tell(child)
        assert sum(int(said(child)) for child in children) == 10
        for child in children:
            tell(child)
        assert [child.wait(30) for child in children] == [0] * 3
    finally:
        for child in children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


# -- fewer workers than before -------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
async def test_channels_of_workers_that_there_are_no_more_are_taken_over(
    location: Location, shared: bool, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    names = [Worker(number, 4).lane(home, shared=shared) for number in range(4)]
    assert len(set(names)) == 4
    journal = SqlJournal(location)
    for number, name in enumerate([*names, "another/3"]):
        ledger = PayerLedger(journal, CHAIN_ID, name)
        channel = replace(payer_channel(100), channel_id=bytes([number]) * 32)
        await ledger.save_channel(NODE.address, channel)
    living = Lane(journal.engine, names[3], "here", lambda: None)
    assert living.take() == 0
    assert adopt(journal.engine, Worker(0, 2), home, shared) == [names[2]]
    found = [PayerLedger(journal, CHAIN_ID, name).channels for name in names]
    assert [len(each) for each in found] == [2, 1, 0, 1]
    living.give_up()
    assert adopt(journal.engine, Worker(0, 1), home, shared) == sorted([names[1], names[3]])
    assert len(PayerLedger(journal, CHAIN_ID, names[0]).channels) == 4
    assert len(PayerLedger(journal, CHAIN_ID, "another/3").channels) == 1
    journal.close()
