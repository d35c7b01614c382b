"""Budgets and rate limits that several gateway processes keep together, exactly.

A request of a limited key is admitted in one transaction, under a lock of its key's and team's
rows: what every lane has spent and reserved is added up, and only then is more reserved. So of
100 requests on a budget for 10 exactly 10 pass, whichever processes they come to. Requests that
come together share a transaction. What a process that died had reserved counts for as long as its
lane does. A key without any limit asks nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.engine import Connection

from inferpool.payments.budget import Account, Purse, Spent, Team, day_of, month_of
from inferpool.payments.database import away, begin_writing, insert, insert_or_update, now_ms
from inferpool.payments.key_book import KeyBook, together
from inferpool.payments.lanes import Lane, living
from inferpool.payments.rates import Bucket, Rate, concurrent_reached, late
from inferpool.payments.schema import BUCKETS, RESERVED, SPENDING
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.limits import KEYS_REFRESH_MS, LANE_RENEW_MS, SHARED_ASKS_MAX

_LOG = logging.getLogger("inferpool.shared")
_PASSED: Final = ""
_CATCH_UP_S: Final = 0.05
Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one key or team, as they are when it asks."""

    owner: bytes
    total: int | None
    month: int | None
    day: int | None
    before: int  # spent before lanes were counted
    requests: int | None  # a minute
    tokens: int | None  # a minute
    concurrent: int | None


@dataclass(slots=True)
class Ask:
    """What one request wants of each of its purses. All of it is granted, or nothing."""

    limits: list[Limits]
    pico_usd: int = 0
    requests: int = 0
    tokens: int = 0
    refused: str = _PASSED  # by what: requests, tokens, concurrent, budget
    by: int = 0  # which of the purses refused
    wait_ms: int = 0
    told: list[Standing] = field(default_factory=list)


@dataclass(slots=True)
class Standing:
    """How one purse stands in the common book after a transaction."""

    elsewhere: Spent
    held_elsewhere: int
    running_elsewhere: int
    requests: Bucket
    tokens: Bucket


@dataclass(slots=True)
class _Row:
    """One owner within a transaction."""

    requests: Bucket
    tokens: Bucket
    spent: list[tuple[str, Spent]]  # by lane
    held_elsewhere: int = 0
    running_elsewhere: int = 0


@dataclass(slots=True)
class SharedBook:
    """One process's side. `threads` False: transactions run where they are asked for, as tests in
    virtual time want it."""

    lane: Lane
    keys: KeyBook
    threads: bool = True
    _asks: list[tuple[Ask, asyncio.Future[None]]] = field(default_factory=list)
    _backs: dict[bytes, Counter[str]] = field(default_factory=dict)  # to be given back
    _held: dict[bytes, int] = field(default_factory=dict)  # as this lane's rows say
    _running: dict[bytes, int] = field(default_factory=dict)
    # What was granted, by account and request. With the owners that it counts against: a key may
    # change its team meanwhile, and what the old one lent goes back to the old one.
    _mine: dict[tuple[bytes, str], list[tuple[list[bytes], int]]] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _works: set[asyncio.Future[None]] = field(default_factory=set)
    _lapsed: bool = False
    _caught_up_s: float = 0.0
    _next_reading: asyncio.Task[None] | None = None  # until it begins

    def start(self) -> None:
        """Begin to admit, to renew the lane, and to follow changes of keys."""
        self._tasks = [
            asyncio.create_task(self._admit(), name="admit"),
            asyncio.create_task(self._keep(), name="lane"),
        ]

    async def close(self) -> None:
        """Give everything back and end the lane."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._works, return_exceptions=True)
        await self.keys.rest()
        for _, future in self._asks:
            future.cancel()
        try:
            await self._run(self.lane.give_up)
        except Exception as error:  # the database is away: the lane ends by itself
            _LOG.warning("the lane was not given up: %s", error)

    # -- asking, on the loop ---------------------------------------------------------------------

    def concerns(self, account: Account) -> bool:
        """Whether any limit is set that others count against too."""
        purses = account.purses
        return any(purse.limited or purse.rules.rates for purse in purses)

    async def catch_up(self, *, spending: bool = False) -> None:
        """Read keys and rules that changed elsewhere; also what the others spent and hold.

        Strangers may try keys as they like: so whoever asks waits for the next reading, of which
        there is one in `_CATCH_UP_S`. One that began before may have read too early.
        """
        if spending:
            await self.keys.refresh(always=True)
            return
        if self._next_reading is None:
            self._next_reading = asyncio.create_task(self._read_keys(), name="catch up")
            self._works.add(self._next_reading)
            self._next_reading.add_done_callback(self._over)
        await asyncio.shield(self._next_reading)

    async def _read_keys(self) -> None:
        await asyncio.sleep(self._caught_up_s + _CATCH_UP_S - self.lane.monotonic())
        self._next_reading = None  # whoever asks from here on waits for another
        self._caught_up_s = self.lane.monotonic()
        await self.keys.refresh()

    def _over(self, reading: asyncio.Task[None]) -> None:
        self._works.discard(reading)
        if not reading.cancelled():
            reading.exception()  # those who waited were told, if they still do

    async def begin(self, account: Account) -> None:
        """One more request begins. Raises RateLimited, Unavailable."""
        ask = await self._asked(account, requests=1)
        if ask.refused:
            raise self._late(ask)

    def end(self, purses: Sequence[Purse]) -> None:
        """One that began on these ended."""
        self._give_back([purse.owner for purse in purses], running=1)

    async def read(self, account: Account) -> None:
        """Learn what the others spent and hold now."""
        await self._asked(account)

    async def reserve(self, account: Account, client_id: str, pico_usd: int) -> bool:
        """Reserve for a request; False where a limit forbids it. Learns as `read`."""
        ask = await self._asked(account, pico_usd=pico_usd)
        if ask.refused:
            return False
        key = (account.owner, client_id)
        self._mine.setdefault(key, []).append((_owners(ask), pico_usd))
        return True

    def release(self, account: Account, client_id: str) -> None:
        """What was reserved for a request is free again, once its bill is on disk."""
        granted = self._mine.pop((account.owner, client_id), None)
        if not granted:
            return

        def free() -> None:
            for owners, pico_usd in granted:
                self._give_back(owners, held=pico_usd)

        self.keys.when_spent(account, free)

    async def take_tokens(self, account: Account, units: int) -> None:
        """Count expected tokens. Raises RateLimited, Unavailable."""
        if all(purse.rules.tokens_per_minute is None for purse in account.purses):
            return
        ask = await self._asked(account, tokens=units)
        if ask.refused:
            raise self._late(ask)

    def correct_tokens(self, account: Account, units: int) -> None:
        """Count more, or fewer where negative."""
        self._give_back([purse.owner for purse in account.purses], tokens=-units)

    async def _asked(
        self, account: Account, pico_usd: int = 0, requests: int = 0, tokens: int = 0
    ) -> Ask:
        self.lane.check()
        purses = account.purses
        ask = Ask([_limits(purse) for purse in purses], pico_usd, requests, tokens)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asks.append((ask, future))
        self._news.set()
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:  # its caller left: what it is granted yet goes back
            future.add_done_callback(lambda done: self._undo(ask, done))
            raise
        for purse, standing in zip(purses, ask.told, strict=True):
            _learn(purse, standing)
        return ask

    def _undo(self, ask: Ask, done: asyncio.Future[None]) -> None:
        granted = not done.cancelled() and done.exception() is None and not ask.refused
        if granted:
            amounts = {"held": ask.pico_usd, "running": ask.requests, "tokens": ask.tokens}
            self._give_back(_owners(ask), **amounts)

    @staticmethod
    def _late(ask: Ask) -> InferpoolError:
        limits = ask.limits[ask.by]
        if ask.refused == "concurrent":
            return concurrent_reached(limits.concurrent or 0)
        most = limits.requests if ask.refused == "requests" else limits.tokens
        return late(f"{most} {ask.refused} a minute", ask.wait_ms)

    def _give_back(self, owners: Sequence[bytes], **amounts: int) -> None:
        for owner in owners:
            self._backs.setdefault(owner, Counter()).update(amounts)
        self._news.set()

    # -- the two tasks ---------------------------------------------------------------------------

    async def _admit(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._asks or self._backs:
                asked = self._asks[:SHARED_ASKS_MAX]
                del self._asks[:SHARED_ASKS_MAX]
                backs, self._backs = self._backs, {}
                error = await self._transacted([ask for ask, _ in asked], backs)
                for _, future in asked:
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(error)
                if error is not None:
                    break

    async def _transacted(
        self, asks: list[Ask], backs: dict[bytes, Counter[str]]
    ) -> Exception | None:
        try:
            await self._run(lambda: self._transact(asks, backs))
        except Exception as error:
            for owner, amounts in backs.items():  # they are owed all the same
                self._backs.setdefault(owner, Counter()).update(amounts)
            return error if isinstance(error, InferpoolError) else away(error)
        return None

    async def _keep(self) -> None:
        """Renew the lane and read changed keys."""
        renewed_s = 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                if loop.time() - renewed_s >= LANE_RENEW_MS / 1000:
                    await self._run(self._renew)
                    renewed_s = loop.time()
                await self.keys.refresh()
            except Exception as error:
                _LOG.warning("the database is away: %s", error)
            self._news.set()  # what was not given back while it was away
            await asyncio.sleep(KEYS_REFRESH_MS / 1000)

    def _renew(self) -> None:
        asked_s, lapsed = self.lane.monotonic(), not self.lane.held
        with self.lane.engine.connect() as connection:
            begin_writing(connection)
            if not self.lane.renew(connection):
                connection.rollback()
                return
            connection.commit()
        if lapsed:
            # All of us were away: the others, who hold too, get the time to come back first.
            _LOG.warning("lane %r had run out; it is held again", self.lane.name)
        self._lapsed, was = lapsed, self._lapsed
        if not lapsed or was:
            self.lane.renewed(asked_s)
            self._lapsed = False

    async def _run(self, work: Callable[[], None]) -> None:
        if not self.threads:
            work()
            return
        running = asyncio.ensure_future(asyncio.to_thread(work))
        self._works.add(running)  # a thread cannot be cancelled: `close` waits for it
        running.add_done_callback(self._works.discard)
        await asyncio.shield(running)

    # -- the transaction, in a thread ------------------------------------------------------------

    def _transact(self, asks: Sequence[Ask], backs: dict[bytes, Counter[str]]) -> None:
        owners = sorted({item.owner for ask in asks for item in ask.limits} | backs.keys())
        held, running = dict(self._held), dict(self._running)
        with self.lane.engine.connect() as connection:
            begin_writing(connection)
            rows = _lock(connection, owners)
            now = now_ms(connection)
            alive = living(connection, self.lane.now(connection))
            _add_up(connection, rows, self.lane.name, alive)
            for owner, amounts in backs.items():
                held[owner] = max(0, held.get(owner, 0) - amounts["held"])
                running[owner] = max(0, running.get(owner, 0) - amounts["running"])
                rows[owner].tokens.take(-amounts["tokens"])
            for ask in asks:
                self._decide(ask, rows, held, running, now)
            self._save(connection, rows, held, running)
            connection.commit()
        self._held = {owner: amount for owner, amount in held.items() if amount}
        self._running = {owner: count for owner, count in running.items() if count}

    def _decide(
        self,
        ask: Ask,
        rows: dict[bytes, _Row],
        held: dict[bytes, int],
        running: dict[bytes, int],
        now: int,
    ) -> None:
        for at, limits in enumerate(ask.limits):
            row, owner = rows[limits.owner], limits.owner
            row.requests.set(limits.requests, now)
            row.tokens.set(limits.tokens, now)
            if not ask.refused:
                ask.by = at
                ask.refused, ask.wait_ms = _refusal(
                    ask, limits, row, held.get(owner, 0), running.get(owner, 0), now
                )
        for limits in ask.limits:
            row, owner = rows[limits.owner], limits.owner
            if not ask.refused:
                held[owner] = held.get(owner, 0) + ask.pico_usd
                running[owner] = running.get(owner, 0) + ask.requests
                row.requests.take(ask.requests)
                row.tokens.take(ask.tokens)
            others = [spent for lane, spent in row.spent if lane != self.lane.name]
            ask.told.append(
                Standing(
                    together(others) if others else Spent(),
                    row.held_elsewhere,
                    row.running_elsewhere,
                    replace(row.requests),
                    replace(row.tokens),
                )
            )

    def _save(
        self,
        connection: Connection,
        rows: dict[bytes, _Row],
        held: dict[bytes, int],
        running: dict[bytes, int],
    ) -> None:
        dialect = connection.dialect.name
        reserved: list[Members] = [
            {
                "owner": owner,
                "lane": self.lane.name,
                "held": str(held.get(owner, 0)),
                "running": running.get(owner, 0),
            }
            for owner in rows
        ]
        buckets: list[Members] = [
            {
                "owner": owner,
                "requests_per_minute": row.requests.per_minute,
                "requests_level": row.requests.level,
                "requests_ms": row.requests.at_ms,
                "tokens_per_minute": row.tokens.per_minute,
                "tokens_level": row.tokens.level,
                "tokens_ms": row.tokens.at_ms,
            }
            for owner, row in rows.items()
        ]
        if rows:
            connection.execute(insert_or_update(dialect, RESERVED, ["owner", "lane"]), reserved)
            connection.execute(insert_or_update(dialect, BUCKETS, ["owner"]), buckets)


def _limits(purse: Purse) -> Limits:
    rules = purse.rules
    return Limits(
        owner=purse.owner,
        total=purse.limit_pico_usd,
        month=rules.month_pico_usd,
        day=rules.day_pico_usd,
        before=purse.before_pico_usd,
        requests=rules.requests_per_minute,
        tokens=rules.tokens_per_minute,
        concurrent=rules.concurrent,
    )


def _owners(ask: Ask) -> list[bytes]:
    return [limits.owner for limits in ask.limits]


def _learn(purse: Purse, standing: Standing) -> None:
    purse.elsewhere, purse.held_elsewhere_pico_usd = standing.elsewhere, standing.held_elsewhere
    assert isinstance(purse, Account | Team), "these are all"
    rate: Rate = purse.rate
    rate.requests, rate.tokens = standing.requests, standing.tokens
    rate.running_elsewhere = standing.running_elsewhere


def _lock(connection: Connection, owners: list[bytes]) -> dict[bytes, _Row]:
    """The owners' rows, locked in one order, so that no two processes wait for each other."""
    fresh: Members = dict.fromkeys(
        ("requests_level", "requests_ms", "tokens_level", "tokens_ms"), 0
    )
    made = insert(connection.dialect.name, BUCKETS).on_conflict_do_nothing(index_elements=["owner"])
    query = select(BUCKETS).where(BUCKETS.c.owner.in_(owners)).order_by(BUCKETS.c.owner)
    found = connection.execute(query.with_for_update()).all()
    missing = set(owners) - {row.owner for row in found}
    if missing:
        connection.execute(made, [{"owner": owner, **fresh} for owner in sorted(missing)])
        found = connection.execute(query.with_for_update()).all()
    return {
        row.owner: _Row(
            Bucket(row.requests_per_minute, row.requests_level, row.requests_ms),
            Bucket(row.tokens_per_minute, row.tokens_level, row.tokens_ms),
            [],
        )
        for row in found
    }


def _add_up(connection: Connection, rows: dict[bytes, _Row], lane: str, alive: set[str]) -> None:
    """What every lane spent, and what the other living ones reserved and run.

    Of its own spending this lane counts what is on disk: the rest is still held.
    """
    for found in connection.execute(select(SPENDING).where(SPENDING.c.owner.in_(list(rows)))):
        spent = Spent(
            int(found.total), found.month, int(found.in_month), found.day, int(found.on_day)
        )
        rows[found.owner].spent.append((found.lane, spent))
    query = select(RESERVED).where(RESERVED.c.owner.in_(list(rows)), RESERVED.c.lane != lane)
    for found in connection.execute(query):
        if found.lane in alive:
            rows[found.owner].held_elsewhere += int(found.held)
            rows[found.owner].running_elsewhere += found.running


def _refusal(
    ask: Ask, limits: Limits, row: _Row, held: int, running: int, now: int
) -> tuple[str, int]:
    """Which limit of one purse forbids it, and for how many ms."""
    running_all = running + row.running_elsewhere
    if ask.requests and limits.concurrent is not None and running_all >= limits.concurrent:
        return "concurrent", 0
    wait_ms = row.requests.wait_ms(ask.requests, now) if ask.requests else 0
    if wait_ms:
        return "requests", wait_ms
    wait_ms = row.tokens.wait_ms(ask.tokens, now) if ask.tokens else 0
    if wait_ms:
        return "tokens", wait_ms
    if ask.pico_usd:
        needed = held + row.held_elsewhere + ask.pico_usd
        day = day_of(now)
        spent = Spent(day=day, month=month_of(day))
        for _, each in row.spent:
            spent.plus(each)
        for limit, used in (
            (limits.total, limits.before + spent.total),
            (limits.month, spent.in_month),
            (limits.day, spent.on_day),
        ):
            if limit is not None and used + needed > limit:
                return "budget", 0
    return _PASSED, 0
