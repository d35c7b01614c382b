"""Money and quantities. Money is integers of pico-USD (1e-12 USD); people see USD.

A price in pico-USD per unit is the same number as micro-USD per million units. Base units are
those of the payable token; only tokens declared 1:1 to USD with at most 12 decimals are payable.
"""

from __future__ import annotations

from typing import Final

PICO_USD_PER_USD: Final = 10**12
DECIMALS_MAX: Final = 12


def pico_usd_per_base_unit(decimals: int) -> int:
    """What one base unit of a token is worth: 10**6 pico-USD for six decimals."""
    if not 0 <= decimals <= DECIMALS_MAX:
        raise ValueError(f"a payable token has 0 to {DECIMALS_MAX} decimals, not {decimals}")
    return int(10 ** (DECIMALS_MAX - decimals))


_WORTH: Final = {decimals: 10 ** (DECIMALS_MAX - decimals) for decimals in range(DECIMALS_MAX + 1)}


def base_units_up(pico_usd: int, decimals: int) -> int:
    """The least base units that cover an amount: for holds, maxima and deposits."""
    assert pico_usd >= 0, "an amount is never negative"
    return -(-pico_usd // (_WORTH.get(decimals) or pico_usd_per_base_unit(decimals)))


def base_units_down(pico_usd: int, decimals: int) -> int:
    """The whole base units in an amount: for charges and claims."""
    assert pico_usd >= 0, "an amount is never negative"
    return pico_usd // (_WORTH.get(decimals) or pico_usd_per_base_unit(decimals))


def format_usd(pico_usd: int) -> str:
    """An exact amount for people, without trailing zeros: 1250000 -> '$0.00000125'."""
    sign = "-" if pico_usd < 0 else ""
    whole, fraction = divmod(abs(pico_usd), PICO_USD_PER_USD)
    digits = f"{fraction:012d}".rstrip("0")
    return f"{sign}${whole}.{digits}" if digits else f"{sign}${whole}"


def format_usd_per_million(price_pico_usd_per_unit: int, unit: str) -> str:
    """A price for people: 150000 -> '$0.15 per million tokens'."""
    return f"{format_usd(price_pico_usd_per_unit * 10**6)} per million {unit}s"


def parse_usd(text: str) -> int:
    """Pico-USD from a decimal number of USD such as '1.50'. Raises ValueError, never rounds."""
    whole, _, fraction = text.strip().removeprefix("$").partition(".")
    if not (whole or fraction) or not (whole + fraction).isascii() or len(fraction) > 12:
        raise ValueError(f"not an amount in USD with at most 12 decimals: {text!r}")
    if not (whole + fraction).isdigit():
        raise ValueError(f"not an amount in USD: {text!r}")
    return int(whole or "0") * PICO_USD_PER_USD + int(fraction.ljust(12, "0") or "0")
