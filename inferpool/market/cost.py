"""What an hour of a machine, and a unit of its work, costs its owner: energy and wear.

    an hour = (busy share x busy power + idle share x idle power) x tariff + price / life
    a unit  = an hour / (measured units an hour x busy share)

Power in milliwatts, shares in parts per million, money in pico-USD; a cost is rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PPM: Final = 1_000_000
HOURS_PER_YEAR: Final = 8_766
HOUR_MS: Final = 3_600_000
_MICROJOULES_PER_KWH: Final = 3_600_000 * 1_000_000


def energy_pico_usd(microjoules: int, tariff_pico_usd_per_kwh: int) -> int:
    """The price of an amount of energy, rounded up. A milliwatt for a millisecond is 1 uJ."""
    assert min(microjoules, tariff_pico_usd_per_kwh) >= 0, "energy and tariff are never negative"
    return -(-microjoules * tariff_pico_usd_per_kwh // _MICROJOULES_PER_KWH)


@dataclass(frozen=True, slots=True)
class HourCost:
    """One hour, in pico-USD."""

    energy: int
    wear: int

    @property
    def total(self) -> int:
        """Both."""
        return self.energy + self.wear


@dataclass(frozen=True, slots=True)
class MachineCost:
    """A machine as its owner pays for it."""

    busy_milliwatts: int
    idle_milliwatts: int
    price_pico_usd: int
    life_hours: int
    tariff_pico_usd_per_kwh: int

    def __post_init__(self) -> None:
        assert 0 <= self.idle_milliwatts <= self.busy_milliwatts, "idle power is the lower one"
        assert self.life_hours > 0, "a machine lives"
        assert min(self.price_pico_usd, self.tariff_pico_usd_per_kwh) >= 0, "no negative price"

    def hour(self, busy_ppm: int) -> HourCost:
        """An hour of which `busy_ppm` parts per million are work."""
        assert 0 <= busy_ppm <= PPM, "a share"
        share = busy_ppm * self.busy_milliwatts + (PPM - busy_ppm) * self.idle_milliwatts
        microjoules = -(-share * HOUR_MS // PPM)
        return HourCost(
            energy_pico_usd(microjoules, self.tariff_pico_usd_per_kwh),
            -(-self.price_pico_usd // self.life_hours),
        )

    def unit(self, units_per_hour: int, busy_ppm: int) -> int:
        """A unit of work, at a measured pace of full work, busy for that share of the time."""
        assert units_per_hour > 0, "a pace was measured"
        assert 0 < busy_ppm <= PPM, "somebody works"
        return -(-self.hour(busy_ppm).total * PPM // (units_per_hour * busy_ppm))
