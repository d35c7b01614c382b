"""What a node earned, by day, model and payer, and what is left of it. Pure; amounts in pico-USD.

Everything comes from the receipts that the node signed. Energy is what the CPU's counters measured
while work ran; where they cannot be read, the rated power for as long as any receipt's work ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_WEI_PER_TOKEN: Final = 10**18
_MICROJOULES_PER_KWH: Final = 3_600_000 * 1_000_000
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Earned:
    """One receipt. Times in UNIX ms."""

    model: str
    payer: str  # address
    charge: int
    prompt_units: int
    output_units: int
    started_ms: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One round of claims: base units of the token, wei."""

    claimed_ms: int
    claimed: int
    fee_wei: int


@dataclass(frozen=True, slots=True)
class EnergyRow:
    """Energy measured in one hour while work ran."""

    hour_ms: int
    microjoules: int


@dataclass(frozen=True, slots=True)
class Rates:
    """What turns energy and gas into money; a price of gas that nobody gave is None."""

    busy_milliwatts: int
    tariff_pico_usd_per_kwh: int
    gas_token_pico_usd: int | None = None


@dataclass(slots=True)
class Line:
    """One group of receipts."""

    receipts: int = 0
    prompt_units: int = 0
    output_units: int = 0
    earned: int = 0

    def add(self, item: Earned) -> None:
        """Count one receipt."""
        self.receipts += 1
        self.prompt_units += item.prompt_units
        self.output_units += item.output_units
        self.earned += item.charge

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "receipts": self.receipts,
            "prompt_units": self.prompt_units,
            "output_units": self.output_units,
            "earned_pico_usd": self.earned,
        }


@dataclass(frozen=True, slots=True)
class Earnings:
    """The whole report. `energy_measured_ms` of `busy_ms` were measured, the rest is rated."""

    total: Line
    by_day: dict[str, Line]
    by_model: dict[str, Line]
    by_payer: dict[str, Line]
    claimed: int
    gas_wei: int
    gas: int | None
    busy_ms: int
    energy_source: str
    energy: int

    @property
    def unclaimed(self) -> int:
        """Earned and not claimed on chain."""
        return self.total.earned - self.claimed

    @property
    def net(self) -> int:
        """Earned, less energy and less gas where its price is known."""
        return self.total.earned - self.energy - (self.gas or 0)

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "total": self.total.to_wire(),
            "by_day": {name: line.to_wire() for name, line in sorted(self.by_day.items())},
            "by_model": {name: line.to_wire() for name, line in sorted(self.by_model.items())},
            "by_payer": {name: line.to_wire() for name, line in sorted(self.by_payer.items())},
            "claimed_pico_usd": self.claimed,
            "unclaimed_pico_usd": self.unclaimed,
            "gas_wei": str(self.gas_wei),
            "gas_pico_usd": self.gas,
            "busy_ms": self.busy_ms,
            "energy_source": self.energy_source,
            "energy_pico_usd": self.energy,
            "net_pico_usd": self.net,
        }


def report(
    earned: Sequence[Earned],
    claims: Iterable[ClaimRow],
    energy: Iterable[EnergyRow],
    rates: Rates,
    pico_usd_per_base_unit: int,
) -> Earnings:
    """Add it up."""
    claims = list(claims)
    total = Line()
    for item in earned:
        total.add(item)
    gas_wei = sum(item.fee_wei for item in claims)
    busy = busy_spans(earned)
    microjoules, source = _energy(busy, {row.hour_ms: row.microjoules for row in energy}, rates)
    price = rates.gas_token_pico_usd
    return Earnings(
        total=total,
        by_day=_grouped(earned, lambda item: day(item.ended_ms)),
        by_model=_grouped(earned, lambda item: item.model),
        by_payer=_grouped(earned, lambda item: item.payer),
        claimed=sum(item.claimed for item in claims) * pico_usd_per_base_unit,
        gas_wei=gas_wei,
        gas=None if price is None else -(-gas_wei * price // _WEI_PER_TOKEN),
        busy_ms=sum(end - begin for begin, end in busy),
        energy_source=source,
        energy=-(-microjoules * rates.tariff_pico_usd_per_kwh // _MICROJOULES_PER_KWH),
    )


def day(time_ms: int) -> str:
    """The day of a time, in UTC: 2026-07-31."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()


def busy_spans(earned: Iterable[Earned]) -> list[tuple[int, int]]:
    """The times in which any work ran; work side by side counts once."""
    spans: list[tuple[int, int]] = []
    for begin, end in sorted((item.started_ms, item.ended_ms) for item in earned):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((begin, max(begin, end)))
    return spans


def _energy(
    busy: Iterable[tuple[int, int]], measured: dict[int, int], rates: Rates
) -> tuple[int, str]:
    """Microjoules, hour by hour: measured where there is a row, else rated."""
    rated_ms = 0
    for begin, end in busy:
        while begin < end:
            hour = begin - begin % _HOUR_MS
            until = min(end, hour + _HOUR_MS)
            rated_ms += 0 if hour in measured else until - begin
            begin = until
    total = sum(measured.values()) + rated_ms * rates.busy_milliwatts
    if not measured:
        return total, "rated"
    return total, "measured, partly rated" if rated_ms else "measured"


def _grouped(earned: Iterable[Earned], name: Callable[[Earned], str]) -> dict[str, Line]:
    groups: dict[str, Line] = {}
    for item in earned:
        groups.setdefault(name(item), Line()).add(item)
    return groups
