"""What was used and paid, by key, model, node and day (UTC): read from the attempts on disk.

Amounts are summed by the database in two exact parts and leave as decimal USD.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, cast, func, select

from inferpool.payments.expiry import DAY_MS, day_ms
from inferpool.payments.journal import Journal
from inferpool.payments.schema import ATTEMPTS
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.units import format_usd

_PART: Final = 10**9
_AMOUNTS: Final = ("billed_pico_usd", "fee_pico_usd", "charge_pico_usd")
# What each row shows: units, then money. `price` + `fee` = `total`; `charge` is what nodes got.
MONEY: Final = ("price_usd", "fee_usd", "total_usd", "charge_usd")


@dataclass(frozen=True, slots=True)
class Window:
    """From the first to before the last, in UNIX ms."""

    since_ms: int = 0
    until_ms: int = 2**62


def window_of(since: str, until: str) -> Window:
    """Days as 2026-11-24, both included; empty: no bound. Raises BadRequest."""
    return Window(
        _day_ms(since, "since") if since else 0,
        _day_ms(until, "until") + DAY_MS if until else 2**62,
    )


def _day_ms(text: str, param: str) -> int:
    try:
        return day_ms(text)
    except ValueError:
        raise BadRequest(f"{param} must be a day such as 2026-11-24.", param=param) from None


def _groups() -> dict[str, ColumnElement[Any]]:
    return {
        "key": ATTEMPTS.c.account,
        "model": ATTEMPTS.c.model,
        "node": ATTEMPTS.c.node,
        "day": ATTEMPTS.c.started_ms // DAY_MS,
    }


async def usage_of(journal: Journal, by: str, window: Window) -> dict[str, object]:
    """Rows by some of key, model, node, day, and the totals. Raises BadRequest."""
    groups, names = _groups(), [name for name in by.split(",") if name]
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise BadRequest(f"by: {unknown[0][:64]!r} is none of {', '.join(groups)}.", param="by")
    rows = [
        {**_named(names, row), **_sums(row)}
        for row in await journal.ask(_query([groups[name] for name in names], window))
    ]
    rows.sort(key=lambda row: tuple(str(row[name]) for name in names))
    (all_,) = await journal.ask(_query([], window))
    return {"by": names, "rows": rows if names else [], "total": _sums(all_)}


def _query(groups: list[ColumnElement[Any]], window: Window) -> Any:
    columns: list[ColumnElement[Any]] = [
        func.count().label("attempts"),
        func.count(ATTEMPTS.c.client_request_id.distinct()).label("requests"),
        func.sum(ATTEMPTS.c.prompt_units).label("units_in"),
        func.sum(ATTEMPTS.c.output_units).label("units_out"),
    ]
    for name in _AMOUNTS:
        whole = cast(ATTEMPTS.c[name], BigInteger)
        columns += [
            func.sum(whole // _PART).label(f"{name}_high"),
            func.sum(whole % _PART).label(f"{name}_low"),
        ]
    names = [f"group_{i}" for i in range(len(groups))]
    named = [group.label(name) for name, group in zip(names, groups, strict=True)]
    return (
        select(*named, *columns)
        .where(
            ATTEMPTS.c.state == "settled",
            ATTEMPTS.c.started_ms >= window.since_ms,
            ATTEMPTS.c.started_ms < window.until_ms,
        )
        .group_by(*names)  # by name: PostgreSQL takes a repeated expression for another one
    )


def _named(names: list[str], row: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for i, name in enumerate(names):
        value = getattr(row, f"group_{i}")
        if name == "day":
            value = datetime.fromtimestamp(int(value) * DAY_MS // 1000, UTC).date().isoformat()
        found[name] = to_hex(value) if isinstance(value, bytes) else value
    return found


def _sums(row: Any) -> dict[str, object]:
    price, fee, charge = (
        int(getattr(row, f"{name}_high") or 0) * _PART + int(getattr(row, f"{name}_low") or 0)
        for name in _AMOUNTS
    )
    amounts = (price, fee, price + fee, charge)
    return {
        "requests": row.requests,
        "attempts": row.attempts,
        "units_in": int(row.units_in or 0),
        "units_out": int(row.units_out or 0),
        **{name: _usd(amount) for name, amount in zip(MONEY, amounts, strict=True)},
    }


def _usd(pico_usd: int) -> str:
    return format_usd(pico_usd).removeprefix("$")
