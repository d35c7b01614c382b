"""API keys, their accounts and teams, as they are on disk and in memory.

Of a key only its SHA-256 is kept: 256 random bits need no slow hash. An account's id is the hash
of its first key, which outlives the key itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Select, func, literal_column, select
from sqlalchemy.engine import Row

from inferpool.payments.budget import Account, Purse, Spent, Team
from inferpool.payments.database import insert
from inferpool.payments.expiry import NEVER
from inferpool.payments.journal import Journal, Write, upsert
from inferpool.payments.rules import NO_RULES, Rules
from inferpool.payments.schema import (
    ACCOUNTS,
    API_KEYS,
    LANES,
    RESERVED,
    RULES,
    SPENDING,
    VERSIONS,
)
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import KEYS_MAX, LANE_VALID_MS

_SHOWN_START, _SHOWN_END = 12, 4
_TEAM = b"team:"
_VERSION: Final = "keys"
Rows = dict[str, Sequence[Row[Any]]]
# In this order: whoever reads while another writes sees an account's team before the account.
_READ: Final[dict[str, Select[Any]]] = {
    "rules": select(RULES),
    "accounts": select(ACCOUNTS),
    "keys": select(API_KEYS),
    "spending": select(SPENDING),
    # Of lanes that live: each is renewed again and again, so that the last one tells the time.
    "reserved": select(RESERVED)
    .join(LANES, LANES.c.lane == RESERVED.c.lane)
    .where(LANES.c.until_ms > select(func.max(LANES.c.until_ms)).scalar_subquery() - LANE_VALID_MS),
}


@dataclass(slots=True)
class ApiKey:
    """One key. `shown` has no more of it than its owner needs to tell it from others."""

    key_hash: bytes
    account_id: bytes
    shown: str
    created_ms: int
    revoked_ms: int = 0
    expires_ms: int = NEVER

    def ended(self, now_ms: int) -> bool:
        """Whether it opens no door now."""
        return bool(self.revoked_ms) or self.expired(now_ms)

    def expired(self, now_ms: int) -> bool:
        """Whether its time is over."""
        return self.expires_ms != NEVER and now_ms >= self.expires_ms


def shown(key: str) -> str:
    """The few characters of a key that are kept; none of a short one."""
    if len(key) < 4 * (_SHOWN_START + _SHOWN_END) // 2:
        return "..."
    return f"{key[:_SHOWN_START]}...{key[-_SHOWN_END:]}"


_SPENDING_ROW = ("owner", "lane", "total", "month", "in_month", "day", "on_day")


class KeyBook:
    """Accounts by id, teams by name, keys by hash. `lane`: whose spending this process writes."""

    def __init__(self, journal: Journal, lane: str = "") -> None:
        self._journal, self._lane = journal, lane
        self._save_account = upsert(journal, ACCOUNTS, "key_hash")
        self._save_key = upsert(journal, API_KEYS, "key_hash")
        self._save_rules = upsert(journal, RULES, "owner")
        self._save_spending = upsert(journal, SPENDING, "owner", "lane")
        assert self._save_spending.names == _SPENDING_ROW, "rows are written by position"
        raised = insert(journal.dialect, VERSIONS).on_conflict_do_update(
            index_elements=["name"], set_={"number": VERSIONS.c.number + literal_column("1")}
        )
        self._raise_version = journal.compile(raised)
        self._version, self._writes = 0, 0
        self._refreshing: asyncio.Task[None] | None = None
        self._unsaved: dict[bytes, asyncio.Future[None]] = {}  # the last spending on its way
        self.accounts: dict[bytes, Account] = {}
        self.by_name: dict[str, bytes] = {}  # ids of accounts
        self.created_ms: dict[bytes, int] = {}  # of accounts, and of teams by their owner's name
        self.teams: dict[str, Team] = {}
        self.keys: dict[bytes, ApiKey] = {}
        self._version = self._number(journal.read(select(VERSIONS)))
        self._take({name: journal.read(query) for name, query in _READ.items()}, first=True)

    # -- what is on disk ------------------------------------------------------------------------

    @staticmethod
    def _number(rows: Sequence[Row[Any]]) -> int:
        return next((int(row.number) for row in rows if row.name == _VERSION), 0)

    async def refresh(self, *, always: bool = False) -> None:
        """Read what other processes changed; those who ask before it begins wait for one reading.

        `always`: also where no key changed, for what the others spent.
        """
        await self.rest()  # one that is under way may have read too early
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(always=always), name="keys")
        task = self._refreshing
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and self._refreshing is task:
                self._refreshing = None

    async def rest(self) -> None:
        """Wait for a reading that is under way."""
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing])

    async def _refresh(self, *, always: bool) -> None:
        while True:
            writes = self._writes
            number = self._number(await self._journal.ask(select(VERSIONS)))
            if number == self._version and not always:
                return
            rows = {name: await self._journal.ask(query) for name, query in _READ.items()}
            if self._writes == writes:  # else this process wrote meanwhile: read that too
                self._version = number
                self._take(rows)
                return

    def _take(self, rows: Rows, *, first: bool = False) -> None:
        """What changed on disk, or everything the first time; what is in flight stays."""
        rules = {row.owner: row for row in rows["rules"]}
        for owner, row in rules.items():
            if owner.startswith(_TEAM):
                name = owner[len(_TEAM) :].decode()
                team = self.teams.setdefault(name, Team(name, None, owner=owner))
                self._apply(team, NO_RULES.changed(orjson.loads(row.data)))
                self.created_ms[owner] = row.created_ms
        for row in rows["accounts"]:
            limit = None if row.limit_pico_usd is None else int(row.limit_pico_usd)
            account = self.accounts.get(row.key_hash)
            if account is None:
                account = Account(row.name, limit, int(row.spent_pico_usd))
                self._add(row.key_hash, account, row.created_ms)
            found = rules.get(row.key_hash)
            if found is not None:
                team_now = self.teams.get(found.team)
                if account.team is not team_now:
                    _move(account, team_now)
                self._apply(account, NO_RULES.changed(orjson.loads(found.data)))
        self.keys.update(
            {
                row.key_hash: ApiKey(
                    row.key_hash,
                    row.account,
                    row.shown,
                    row.created_ms,
                    row.revoked_ms,
                    row.expires_ms,
                )
                for row in rows["keys"]
            }
        )
        for key_hash, created_ms in self.created_ms.items():
            if key_hash in self.accounts and key_hash not in self.keys:  # of an earlier version
                self.keys[key_hash] = ApiKey(key_hash, key_hash, "...", created_ms)
        self._take_spending(rows["spending"], rows["reserved"], first=first)

    def _add(self, account_id: bytes, account: Account, created_ms: int) -> None:
        account.owner = account_id
        self.accounts[account_id] = account
        self.by_name[account.name] = account_id
        self.created_ms[account_id] = created_ms

    def _take_spending(
        self, rows: Sequence[Row[Any]], reserved: Sequence[Row[Any]], *, first: bool
    ) -> None:
        purses: dict[bytes, Purse] = {**self.accounts}
        purses |= {_TEAM + name.encode(): team for name, team in self.teams.items()}
        others: dict[bytes, list[Spent]] = {}
        for row in rows:
            spent = Spent(int(row.total), row.month, int(row.in_month), row.day, int(row.on_day))
            purse = purses.get(row.owner)
            if purse is None:
                continue
            if row.lane != self._lane:
                others.setdefault(row.owner, []).append(spent)
            elif first:  # later memory is ahead of the disk
                purse.own = spent
        for owner, found in others.items():
            purses[owner].elsewhere = together(found)
        if not first:
            self._take_reserved(purses, reserved)

    def _take_reserved(self, purses: dict[bytes, Purse], rows: Sequence[Row[Any]]) -> None:
        held, running = Counter[bytes](), Counter[bytes]()
        for row in rows:
            if row.lane != self._lane:
                held[row.owner] += int(row.held)
                running[row.owner] += row.running
        for owner, purse in purses.items():
            purse.held_elsewhere_pico_usd = held[owner]
            if isinstance(purse, Account | Team):
                purse.rate.running_elsewhere = running[owner]

    def _apply(self, purse: Account | Team, rules: Rules) -> None:
        purse.rules, purse.limit_pico_usd = rules, rules.total_pico_usd
        purse.rate.set(rules, purse.rate.requests.at_ms)

    # -- asking ---------------------------------------------------------------------------------

    def account(self, key: str, now_ms: int) -> tuple[bytes, Account] | None:
        """The account of an API key that is valid now, with its id."""
        found = self.keys.get(sha256(key.encode()))
        if found is None or found.ended(now_ms):
            return None
        return found.account_id, self.accounts[found.account_id]

    def expired_ms(self, key: str, now_ms: int) -> int:
        """When a key's time was over, for one that was not revoked; else 0."""
        found = self.keys.get(sha256(key.encode()))
        if found is None or found.revoked_ms or not found.expired(now_ms):
            return NEVER
        return found.expires_ms

    def knows(self, key: str) -> bool:
        """Whether a key was ever added, even where it was revoked since."""
        return sha256(key.encode()) in self.keys

    def named(self, name: str) -> tuple[bytes, Account]:
        """The account of a name. Raises BadRequest(not_found)."""
        account_id = self.by_name.get(name)
        if account_id is not None:
            return account_id, self.accounts[account_id]
        raise BadRequest(f"No API key has the name {name[:64]!r}.", code="not_found")

    def keys_of(self, account_id: bytes) -> list[ApiKey]:
        """An account's keys, oldest first."""
        mine = [key for key in self.keys.values() if key.account_id == account_id]
        return sorted(mine, key=lambda key: key.created_ms)

    # -- writing --------------------------------------------------------------------------------

    def add_account(
        self, key: str, account: Account, created_ms: int, expires_ms: int = NEVER
    ) -> asyncio.Future[None]:
        """Store an account with its first key."""
        account_id = sha256(key.encode())
        writes = self._new_key(key, account_id, created_ms, expires_ms)
        self._add(account_id, account, created_ms)
        return self._write([*writes, *self._account_writes(account_id)])

    def forget(self, account_id: bytes) -> None:
        """Take back what `add_account` put into memory, where the disk refused it."""
        del self.by_name[self.accounts.pop(account_id).name]
        del self.created_ms[account_id]
        for key in self.keys_of(account_id):
            del self.keys[key.key_hash]

    def _write(self, writes: list[Write]) -> asyncio.Future[None]:
        """Keys or rules, with the number by which other processes see that they changed."""
        self._writes += 1
        raised = Write(self._raise_version, {"name": _VERSION, "number": 1})
        return self._journal.write([*writes, raised])

    def add_key(self, key: str, account_id: bytes, created_ms: int) -> asyncio.Future[None]:
        """One more key of an account."""
        return self._write(self._new_key(key, account_id, created_ms))

    def _new_key(
        self, key: str, account_id: bytes, created_ms: int, expires_ms: int = NEVER
    ) -> list[Write]:
        if len(self.keys) >= KEYS_MAX:
            raise BadRequest(f"There are {KEYS_MAX} keys already, the most that are kept.")
        key_hash = sha256(key.encode())
        made = ApiKey(key_hash, account_id, shown(key), created_ms, expires_ms=expires_ms)
        self.keys[key_hash] = made
        return [self._key_write(made)]

    def revoke(self, account_id: bytes, now_ms: int) -> asyncio.Future[None]:
        """No key of an account opens the door any more. Its book stays."""
        return self._write(self._revoked(self.keys_of(account_id), now_ms))

    def _revoked(self, keys: Sequence[ApiKey], now_ms: int) -> list[Write]:
        valid = [key for key in keys if not key.revoked_ms]
        for key in valid:
            key.revoked_ms = now_ms
        return [self._key_write(key) for key in valid]

    def replace(
        self, key: str, account_id: bytes, now_ms: int, expires_ms: int, old_until_ms: int
    ) -> asyncio.Future[None]:
        """A new key of an account; its earlier ones end at `old_until_ms`, or before where they
        would have anyway: at once where that is now. In one write: no moment has neither."""
        earlier = self.keys_of(account_id)
        writes = self._new_key(key, account_id, now_ms, expires_ms)
        if old_until_ms <= now_ms:
            return self._write([*writes, *self._revoked(earlier, now_ms)])
        for old in earlier:
            if not old.revoked_ms and (old.expires_ms == NEVER or old.expires_ms > old_until_ms):
                old.expires_ms = old_until_ms
                writes.append(self._key_write(old))
        return self._write(writes)

    def set_expiry(self, account_id: bytes, expires_ms: int) -> asyncio.Future[None]:
        """Another end for an account's newest key that was not revoked.

        Raises BadRequest where all are.
        """
        valid = [key for key in self.keys_of(account_id) if not key.revoked_ms]
        if not valid:
            raise BadRequest("Its keys are revoked: `rotate` gives it a new one.", param="expires")
        valid[-1].expires_ms = expires_ms
        return self._write([self._key_write(valid[-1])])

    def set_account(
        self, account_id: bytes, rules: Rules, team: str, now_ms: int
    ) -> asyncio.Future[None]:
        """Other rules, or another team."""
        account = self.accounts[account_id]
        assert not team or team in self.teams, "the caller has looked"
        _move(account, self.teams.get(team))
        account.rate.requests.at_ms = max(account.rate.requests.at_ms, now_ms)
        self._apply(account, rules)
        return self._write(self._account_writes(account_id))

    def set_team(self, name: str, rules: Rules, now_ms: int) -> asyncio.Future[None]:
        """A new team, or other rules of one."""
        if name not in self.teams and len(self.teams) >= KEYS_MAX:
            raise BadRequest(f"There are {KEYS_MAX} teams already, the most that are kept.")
        owner = _TEAM + name.encode()
        team = self.teams.setdefault(name, Team(name, None, owner=owner))
        self.created_ms.setdefault(owner, now_ms)
        self._apply(team, rules)
        return self._write([self._rules_write(owner, team, "")])

    def spent(self, account_id: bytes, saved: asyncio.Future[None]) -> None:
        """An account's spending is on its way to the disk."""
        self._unsaved[account_id] = saved
        saved.add_done_callback(lambda _: self._saved(account_id, saved))

    def _saved(self, account_id: bytes, saved: asyncio.Future[None]) -> None:
        if self._unsaved.get(account_id) is saved:
            del self._unsaved[account_id]

    def when_spent(self, account: Account, then: Callable[[], None]) -> None:
        """Go on when all that an account has spent is on disk, where others see it.

        Writes nothing itself: a journal that is overloaded takes no more, and what was reserved
        would stay so. They reach the disk in their order.
        """
        saved = self._unsaved.get(account.owner)
        if saved is None:
            then()
        else:
            saved.add_done_callback(lambda _: then())

    def spending(self, account_id: bytes) -> list[Write]:
        """What an account, and its team, spent in this lane."""
        account = self.accounts[account_id]
        writes = [self._spending_write(account_id, account.own)]
        if account.team is not None:
            owner = _TEAM + account.team.name.encode()
            writes.append(self._spending_write(owner, account.team.own))
        return writes

    def _account_writes(self, account_id: bytes) -> list[Write]:
        account = self.accounts[account_id]
        limit = account.limit_pico_usd
        values: dict[str, object] = {
            "key_hash": account_id,
            "name": account.name,
            "limit_pico_usd": None if limit is None else str(limit),
            "spent_pico_usd": str(account.before_pico_usd),
            "created_ms": self.created_ms[account_id],
        }
        team = account.team.name if account.team is not None else ""
        rules = self._rules_write(account_id, account, team)
        return [Write(self._save_account, values), rules]

    def _rules_write(self, owner: bytes, purse: Purse, team: str) -> Write:
        values: dict[str, object] = {
            "owner": owner,
            "team": team,
            "data": orjson.dumps(purse.rules.to_wire()),
            "created_ms": self.created_ms[owner],
        }
        return Write(self._save_rules, values)

    def _key_write(self, key: ApiKey) -> Write:
        values: dict[str, object] = {
            "key_hash": key.key_hash,
            "account": key.account_id,
            "shown": key.shown,
            "created_ms": key.created_ms,
            "revoked_ms": key.revoked_ms,
            "expires_ms": key.expires_ms,
        }
        return Write(self._save_key, values)

    def _spending_write(self, owner: bytes, spent: Spent) -> Write:
        values = (
            owner,
            self._lane,
            str(spent.total),
            spent.month,
            str(spent.in_month),
            spent.day,
            str(spent.on_day),
        )
        return Write(self._save_spending, values, owner)


def together(found: list[Spent]) -> Spent:
    """Several lanes' spending as one, on the last day that any of them names."""
    last = Spent(day=max(item.day for item in found), month=max(item.month for item in found))
    for item in found:
        last.plus(item)
    return last


def _move(account: Account, team: Team | None) -> None:
    """Change the team; what is held now moves along, what was spent stays with the old one."""
    if account.team is not None:
        account.team.held_pico_usd -= account.held_pico_usd
    if team is not None:
        team.held_pico_usd += account.held_pico_usd
    account.team = team
