"""What an hour may bring, as a range: nobody knows tomorrow's demand. Pure.

The range goes from a machine that is busy one minute in twenty to one that is busy one in five.
Chat is reckoned with three units in for each unit out; both assumptions are in the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from inferpool.market.cost import HOUR_MS, PPM, MachineCost

LOW_PPM: Final = 50_000
HIGH_PPM: Final = 200_000
IN_PER_OUT: Final = 3


@dataclass(frozen=True, slots=True)
class Work:
    """One model: prices in pico-USD per unit, paces in units an hour of full work.

    A model without units out (tensors) has no price and no pace for them.
    """

    price_in: int
    price_out: int
    in_per_hour: int
    out_per_hour: int = 0

    def busy_hour(self) -> int:
        """Income of an hour of nothing but this, in pico-USD, rounded down."""
        assert self.in_per_hour > 0, "a pace was measured"
        if self.out_per_hour == 0:
            return self.price_in * self.in_per_hour
        # One unit out takes 1/out hours and its units in 3/in; so many of both fit into an hour.
        both = self.in_per_hour * self.out_per_hour
        answers = self.price_out + IN_PER_OUT * self.price_in
        return answers * both // (self.in_per_hour + IN_PER_OUT * self.out_per_hour)


@dataclass(frozen=True, slots=True)
class HourForecast:
    """One end of the range, in pico-USD an hour."""

    busy_ppm: int
    gross: int
    energy: int
    wear: int

    @property
    def net(self) -> int:
        """What is left; may be below zero."""
        return self.gross - self.energy - self.wear


def forecast(work: Iterable[Work], cost: MachineCost) -> tuple[HourForecast, HourForecast]:
    """The range: the poorest model at the low share, the best one at the high share."""
    incomes = [item.busy_hour() for item in work]
    assert incomes, "there is something to sell"
    return (_at(LOW_PPM, min(incomes), cost), _at(HIGH_PPM, max(incomes), cost))


def _at(busy_ppm: int, income: int, cost: MachineCost) -> HourForecast:
    hour = cost.hour(busy_ppm)
    return HourForecast(busy_ppm, income * busy_ppm // PPM, hour.energy, hour.wear)


def per_hour(units: int, ms: float) -> int:
    """A pace in units an hour from a measurement, at least 1."""
    assert units > 0, "something was measured"
    return max(1, int(units * HOUR_MS / max(ms, 0.001)))
