"""What to ask for a unit: one's own cost and a margin, within what the pool asks. Pure.

Never below one's own cost; where the pool asks more than cost and margin, the pool's least price
is asked, since a lower one gives money away; where it asks less, its highest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRICE_MAX: Final = 10**12  # a USD a unit: above it something is wrong with the measurement


@dataclass(frozen=True, slots=True)
class Asked:
    """What the pool's nodes ask for a unit now, in pico-USD."""

    least: int
    most: int

    def __post_init__(self) -> None:
        assert 0 <= self.least <= self.most, "least is the lower one"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A price in pico-USD per unit, the cost behind it, and the reason in a few words."""

    price: int
    cost: int
    why: str


def propose(cost: int, margin_percent: int, asked: Asked | None) -> Proposal:
    """Propose a price for a unit that costs `cost`."""
    assert cost >= 0, "a cost is never negative"
    assert margin_percent >= 0, "a margin is never negative"
    own = max(1, -(-cost * (100 + margin_percent) // 100))
    if asked is None or asked.most == 0:
        return Proposal(min(own, PRICE_MAX), cost, f"cost + {margin_percent} %")
    if own < asked.least:
        return Proposal(asked.least, cost, "the pool's least price, above cost and margin")
    if own <= asked.most:
        return Proposal(own, cost, f"cost + {margin_percent} %, within the pool's prices")
    if cost <= asked.most:
        return Proposal(asked.most, cost, "the pool's highest price: less than the margin asked")
    return Proposal(min(max(1, cost), PRICE_MAX), cost, "cost: above all that the pool asks")
