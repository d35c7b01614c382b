"""The gateway's own fee, in hundredths of a percent of what an answer costs; amounts in pico-USD.

A maximum is reserved with the fee rounded up; a charge is billed with the fee rounded down.
"""

from __future__ import annotations

from typing import Final

BPS: Final = 10_000


def fee_up(pico_usd: int, bps: int) -> int:
    """The fee to reserve beside a maximum."""
    return -(-pico_usd * bps // BPS)


def fee_down(pico_usd: int, bps: int) -> int:
    """The fee to bill beside a charge."""
    return pico_usd * bps // BPS


def without_fee(pico_usd: int, bps: int) -> int:
    """The most that may cost so much together with its fee."""
    return pico_usd * BPS // (BPS + bps)
