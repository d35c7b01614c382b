"""Giving out API keys and making teams: what the command line and the admin API both do.

Answers are JSON objects, amounts in decimal USD. A new key is in the answer that made it and
nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inferpool.payments.budget import Account, Purse, Team
from inferpool.payments.database import is_double
from inferpool.payments.expiry import NEVER, expiry_ms, span_ms
from inferpool.payments.key_book import ApiKey, KeyBook
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
        """A new key: `name`, `team`, `expires` and rules. Raises BadRequest."""
        given, now = _members(value), self.now_ms()
        name = _name(given.pop("name", None))
        if name in self.book.by_name:
            raise _taken(name)
        team = self._team(given.pop("team", None) or "")
        expires_ms = expiry_ms(given.pop("expires", None), now)
        rules = NO_RULES.changed(given)
        account = Account(name, rules.total_pico_usd)
        key = self._key()
        account_id = sha256(key.encode())
        added = self.book.add_account(key, account, now, expires_ms)
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
        now = self.now_ms()
        account.at(now)
        keys = self.book.keys_of(account_id)
        valid = [key for key in keys if not key.ended(now)]
        return {
            "name": name,
            "team": account.team.name if account.team is not None else None,
            "keys": [_shown(key, now) for key in keys],
            "revoked": all(key.revoked_ms for key in keys),
            "expired": not valid and not all(key.revoked_ms for key in keys),
            "expires_ms": _last_end(valid or keys),
            **_money(account),
            "running": account.rate.running + account.rate.running_elsewhere,
            "rules": account.rules.to_wire(),
        }

    async def limit(self, name: str, value: object) -> dict[str, object]:
        """Change `team`, rules, and when its key ends (`expires`); null takes one away.

        Raises BadRequest.
        """
        account_id, account = self.book.named(name)
        given = _members(value)
        team = account.team.name if account.team is not None else ""
        if "team" in given:
            team = self._team(given.pop("team") or "")
        now = self.now_ms()
        ends = [expiry_ms(given.pop("expires"), now)] if "expires" in given else []
        rules = account.rules.changed(given)
        saved = [self.book.set_expiry(account_id, expires_ms) for expires_ms in ends]
        await asyncio.gather(self.book.set_account(account_id, rules, team, now), *saved)
        return self.show(name)

    async def revoke(self, name: str) -> dict[str, object]:
        """End every key of an account; what it spent stays in the book."""
        await self.book.revoke(self.book.named(name)[0], self.now_ms())
        return self.show(name)

    async def rotate(self, name: str, value: object) -> dict[str, object]:
        """A new key of the same account. Budget and usage go on.

        The old ones end now, or after `keep_old`, a time such as 24h: so clients change theirs
        one after the other. The new one ends at `expires`; where that is not given, after as long
        a time as the newest old one had. Raises BadRequest.
        """
        account_id, _ = self.book.named(name)
        given, now = _members(value), self.now_ms()
        keep = given.pop("keep_old", None)
        old_until_ms = now if keep is None else now + span_ms(keep, "keep_old")
        if "expires" in given:
            expires_ms = expiry_ms(given.pop("expires"), now)
        else:
            newest = self.book.keys_of(account_id)[-1]
            life_ms = newest.expires_ms - newest.created_ms
            expires_ms = now + life_ms if newest.expires_ms else NEVER
        if given:
            name = next(iter(given))
            raise BadRequest(f"Unknown: {name[:64]!r}.", param=name[:64])
        key = self._key()
        await self.book.replace(key, account_id, now, expires_ms, old_until_ms)
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


def _shown(key: ApiKey, now_ms: int) -> dict[str, object]:
    return {
        "shown": key.shown,
        "created_ms": key.created_ms,
        "expires_ms": key.expires_ms or None,
        "expired": key.expired(now_ms),
        "revoked": bool(key.revoked_ms),
    }


def _last_end(keys: list[ApiKey]) -> int | None:
    """When the last of these ends; None where one never does."""
    ends = [key.expires_ms for key in keys if not key.revoked_ms]
    return max(ends) if ends and all(ends) else None


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
