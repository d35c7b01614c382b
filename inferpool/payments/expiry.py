"""When an API key ends: a span from now, or a day. Pure; times in UNIX ms, 0 for never."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Final

from inferpool.protocol.errors import BadRequest

NEVER: Final = 0
DAY_MS: Final = 86_400_000
_FAR_MS: Final = 36_500 * DAY_MS
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}


def span_ms(value: object, param: str) -> int:
    """`30d`, `12h`, `90m` or `45s` in ms. Raises BadRequest that names `param`."""
    found = _SPAN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise BadRequest(f"{param} must be a time such as 30d, 12h, 90m or 45s.", param=param)
    return int(found[1]) * _UNIT_MS[found[2]]


def day_ms(text: str) -> int:
    """The first ms of a day such as 2026-11-24, UTC. Raises ValueError."""
    day = date.fromisoformat(text)
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def expiry_ms(value: object, now_ms: int, param: str = "expires") -> int:
    """The end that a caller names: a span from now, or the end of a day (UTC); null for never.

    Raises BadRequest for anything else, and for what is over already.
    """
    if value is None:
        return NEVER
    if not isinstance(value, str) or not _SPAN.fullmatch(value):
        try:
            ends_ms = day_ms(value) + DAY_MS if isinstance(value, str) else 0
        except (ValueError, OverflowError):
            ends_ms = 0
        if not ends_ms:
            message = f"{param} must be a time such as 30d or 12h, or a day such as 2027-01-31."
            raise BadRequest(message, param=param)
    else:
        ends_ms = now_ms + span_ms(value, param)
    if ends_ms > now_ms + _FAR_MS:
        raise BadRequest(f"{param} is more than a hundred years away.", param=param)
    if ends_ms <= now_ms:
        raise BadRequest(f"{param} is over already.", param=param)
    return ends_ms


def told_time(at_ms: int) -> str:
    """A time as people read it, to the minute, UTC."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
