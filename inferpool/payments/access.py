"""Giving out API keys and making teams: what the command line and the admin API both do.

Answers are JSON objects, amounts in decimal USD. A new key is in the answer that made it and
nowhere else.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inferpool.payments.budget import Account, Purse, Team
from inferpool.payments.database import is_double
from inferpool.payments.key_book import KeyBook
from inferpool.payments.rules import NO_RULES
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.units import format_usd

PREFIX: Final = "sk-inferpool-"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_KEY_BYTES: Final = 32


@dataclass(slots=True)
class Access:
    """Changes a book of keys. `now_ms` is the clock, `random` gives bytes."""

    book: KeyBook
    now_ms: Callable[[], int]
    random: Callable[[int], bytes] = secrets.token_bytes

    async def create(self, value: object) -> dict[str, object]:
        """A new key: `name`, `team` and rules. Raises BadRequest."""
        given = _members(value)
        name = _name(given.pop("name", None))
        if name in self.book.by_name:
            raise _taken(name)
        team = self._team(given.pop("team", None) or "")
        rules = NO_RULES.changed(given)
        account = Account(name, rules.total_pico_usd)
        key, now = self._key(), self.now_ms()
        account_id = sha256(key.encode())
        added = self.book.add_account(key, account, now)
        changed = self.book.set_account(account_id, rules, team, now)
        try:
            await added
        except Exception as error:
            self.book.forget(account_id)
            if not is_double(error):
                raise
            raise _taken(name) from None
        await changed
        return {"key": key, **self.show(name)}

    def _key(self) -> str:
        return PREFIX + self.random(_KEY_BYTES).hex()

    def _team(self, name: object) -> str:
        if not isinstance(name, str):
            raise BadRequest("team must be a name.", param="team")
        if name and name not in self.book.teams:
            raise BadRequest(f"There is no team {name[:64]!r}.", code="not_found", param="team")
        return name

    def keys(self) -> list[dict[str, object]]:
        """Every account, by name."""
        return [self.show(name) for name in sorted(a.name for a in self.book.accounts.values())]

    def show(self, name: str) -> dict[str, object]:
        """One account with its keys, as far as they are kept. Raises BadRequest(not_found)."""
        account_id, account = self.book.named(name)
        account.at(self.now_ms())
        keys = self.book.keys_of(account_id)
        return {
            "name": name,
            "team": account.team.name if account.team is not None else None,
            "keys": [
                {"shown": key.shown, "created_ms": key.created_ms, "revoked": bool(key.revoked_ms)}
                for key in keys
            ],
            "revoked": all(key.revoked_ms for key in keys),
            **_money(account),
            "running": account.rate.running + account.rate.running_elsewhere,
            "rules": account.rules.to_wire(),
        }

    async def limit(self, name: str, value: object) -> dict[str, object]:
        """Change `team` and rules; null takes one away. Raises BadRequest."""
        account_id, account = self.book.named(name)
        given = _members(value)
        team = account.team.name if account.team is not None else ""
        if "team" in given:
            team = self._team(given.pop("team") or "")
        rules = account.rules.changed(given)
        await self.book.set_account(account_id, rules, team, self.now_ms())
        return self.show(name)

    async def revoke(self, name: str) -> dict[str, object]:
        """End every key of an account; what it spent stays in the book."""
        await self.book.revoke(self.book.named(name)[0], self.now_ms())
        return self.show(name)

    async def rotate(self, name: str) -> dict[str, object]:
        """A new key of the same account; the old ones end. Budget and usage go on."""
        account_id, _ = self.book.named(name)
        key, now = self._key(), self.now_ms()
        added = self.book.add_key(key, account_id, now)
        await self.book.revoke(account_id, now, keep=sha256(key.encode()))
        await added
        return {"key": key, **self.show(name)}

    # -- teams ----------------------------------------------------------------------------------

    def teams(self) -> list[dict[str, object]]:
        """Every team, by name."""
        return [self.show_team(name) for name in sorted(self.book.teams)]

    def show_team(self, name: str) -> dict[str, object]:
        """One team with the names of its keys. Raises BadRequest(not_found)."""
        team = self.book.teams.get(name)
        if team is None:
            raise BadRequest(f"There is no team {name[:64]!r}.", code="not_found")
        mine = [account for account in self.book.accounts.values() if account.team is team]
        for account in mine:
            account.at(self.now_ms())
        return {
            "name": name,
            "keys": sorted(account.name for account in mine),
            **_money(team),
            "running": team.rate.running + team.rate.running_elsewhere,
            "rules": team.rules.to_wire(),
        }

    async def create_team(self, value: object) -> dict[str, object]:
        """A new team: `name` and rules. Raises BadRequest."""
        given = _members(value)
        name = _name(given.pop("name", None))
        if name in self.book.teams:
            raise _taken(name)
        await self.book.set_team(name, NO_RULES.changed(given), self.now_ms())
        return self.show_team(name)

    async def limit_team(self, name: str, value: object) -> dict[str, object]:
        """Change a team's rules. Raises BadRequest."""
        self.show_team(name)
        team: Team = self.book.teams[name]
        await self.book.set_team(name, team.rules.changed(_members(value)), self.now_ms())
        return self.show_team(name)


def _taken(name: str) -> BadRequest:
    return BadRequest(f"The name {name!r} is taken.", param="name")


def _members(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRequest("The body must be a JSON object.")
    return dict(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadRequest(
            "A name has 1 to 64 letters, digits or . _ @ - and begins with a letter or digit.",
            param="name",
        )
    return value


def _money(purse: Purse) -> dict[str, object]:
    total, month, today = (format_usd(amount).removeprefix("$") for amount in purse.spent_now())
    held = purse.held_pico_usd + purse.held_elsewhere_pico_usd
    return {
        "spent_usd": total,
        "spent_month_usd": month,
        "spent_day_usd": today,
        "held_usd": format_usd(held).removeprefix("$"),
    }
