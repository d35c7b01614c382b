"""What one API key, or one team of keys, may do. Pure: read from JSON, written to JSON.

Amounts cross the wire as decimal USD in text, since people write them; here they are pico-USD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import MODELS_PER_KEY_MAX, TEXT_MAX
from inferpool.protocol.units import format_usd, parse_usd

COUNT_MAX: Final = 10**9
PERCENT: Final = 100
_AMOUNT_MAX: Final = 10**39  # a voucher has 128 bits


@dataclass(frozen=True, slots=True)
class Rules:
    """None, empty or 0: not bounded. Of a key with a team, both must allow a request."""

    total_pico_usd: int | None = None
    month_pico_usd: int | None = None
    day_pico_usd: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    models: tuple[str, ...] = ()
    max_in_pico_usd_per_unit: int | None = None
    max_out_pico_usd_per_unit: int | None = None
    max_request_pico_usd: int | None = None
    min_trust_percent: int = 0  # of a node, by this gateway's own experience with it

    @property
    def rates(self) -> bool:
        """Whether requests are counted: a minute's, its tokens, or those at once."""
        counts = (self.requests_per_minute, self.tokens_per_minute, self.concurrent)
        return any(count is not None for count in counts)

    def to_wire(self) -> dict[str, object]:
        """For answers and for the book."""
        found: dict[str, object] = {}
        for name, (member, kind) in _WIRE.items():
            value = getattr(self, member)
            found[name] = kind.write(value)
        return found

    def changed(self, value: object) -> Rules:
        """These rules with the members of a JSON object in place; null takes a bound away.

        Raises BadRequest that names the member.
        """
        if not isinstance(value, Mapping):
            raise BadRequest("The rules must be a JSON object.", param="rules")
        found: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, given in value.items():
            if name not in _WIRE:
                raise BadRequest(f"There is no rule {name!r}.", param=str(name)[:TEXT_MAX])
            member, kind = _WIRE[name]
            try:
                found[member] = kind.read(given)
            except ValueError as error:
                raise BadRequest(f"{name}: {error}", param=name) from None
        return Rules(**found)


class _Usd:
    """An amount in USD, or a price per million units, which is the same digits."""

    def __init__(self, per: int = 1) -> None:
        self._per = per

    def read(self, given: object) -> int | None:
        """Pico-USD."""
        if given is None:
            return None
        if not isinstance(given, str):
            raise ValueError('an amount in USD is text, such as "2.50"')
        amount = parse_usd(given)
        if amount % self._per:
            raise ValueError("USD per million units have at most 6 decimals")
        if amount >= _AMOUNT_MAX:
            raise ValueError("that is more than there is")
        return amount // self._per

    def write(self, value: int | None) -> str | None:
        """Decimal USD."""
        return None if value is None else format_usd(value * self._per).removeprefix("$")


class _Count:
    def read(self, given: object) -> int | None:
        """A positive number."""
        if given is None:
            return None
        if type(given) is not int or not 0 < given <= COUNT_MAX:
            raise ValueError(f"a whole number from 1 to {COUNT_MAX}")
        return given

    def write(self, value: int | None) -> int | None:
        """As it is."""
        return value


class _Percent:
    def read(self, given: object) -> int:
        """0 to 100."""
        if given is None:
            return 0
        if type(given) is not int or not 0 <= given <= PERCENT:
            raise ValueError("a whole number from 0 to 100")
        return given

    def write(self, value: int) -> int:
        """As it is."""
        return value


class _Names:
    def read(self, given: object) -> tuple[str, ...]:
        """Names of models."""
        if given is None:
            return ()
        if not isinstance(given, list) or len(given) > MODELS_PER_KEY_MAX:
            raise ValueError(f"a list of at most {MODELS_PER_KEY_MAX} models")
        if not all(isinstance(item, str) and 0 < len(item) <= TEXT_MAX for item in given):
            raise ValueError(f"names of at most {TEXT_MAX} characters")
        return tuple(given)

    def write(self, value: tuple[str, ...]) -> list[str]:
        """As a list."""
        return list(value)


_WIRE: Final[dict[str, tuple[str, Any]]] = {
    "budget_usd": ("total_pico_usd", _Usd()),
    "budget_month_usd": ("month_pico_usd", _Usd()),
    "budget_day_usd": ("day_pico_usd", _Usd()),
    "requests_per_minute": ("requests_per_minute", _Count()),
    "tokens_per_minute": ("tokens_per_minute", _Count()),
    "concurrent": ("concurrent", _Count()),
    "models": ("models", _Names()),
    "max_in_usd_per_million": ("max_in_pico_usd_per_unit", _Usd(10**6)),
    "max_out_usd_per_million": ("max_out_pico_usd_per_unit", _Usd(10**6)),
    "max_request_usd": ("max_request_pico_usd", _Usd()),
    "min_trust_percent": ("min_trust_percent", _Percent()),
}
NO_RULES: Final = Rules()
