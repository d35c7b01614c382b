"""What this machine can do, measured in less than two seconds: memory, arithmetic, power.

A copy through memory bounds the tokens of one stream, a matrix product those of many. Power comes
from the CPU's own energy counters where this user may read them; elsewhere it is rated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")
_BUDGET_S: Final = 0.5  # for each of the two
_COPY_BYTES: Final = 64 * 1024 * 1024  # above any cache of one socket's share
_SIDE: Final = 768


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes a second through memory (read and written), FLOP a second, milliwatts (0: unknown)."""

    memory_bytes_per_s: int
    flop_per_s: int
    busy_milliwatts: int
    took_ms: int

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "flop_per_s": self.flop_per_s,
            "busy_milliwatts": self.busy_milliwatts or None,
            "took_ms": self.took_ms,
        }


class EnergyCounters:
    """The packages' energy counters (RAPL); none where they cannot be read."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[tuple[Path, int]] = []
        for zone in sorted(root.glob("*-rapl:*")):
            # intel-rapl:0 is a package; intel-rapl:0:1 is a part of it and counted in it.
            most = _whole(zone / "max_energy_range_uj")
            if zone.name.count(":") == 1 and _whole(zone / "energy_uj") is not None and most:
                self._zones.append((zone / "energy_uj", most))
        self._last = [self._read(path) for path, _ in self._zones]

    @property
    def readable(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._zones)

    def spent(self) -> int:
        """Microjoules since the last call, or since the start; 0 where nothing is readable."""
        now = [self._read(path) for path, _ in self._zones]
        total = 0
        for before, after, (_, most) in zip(self._last, now, self._zones, strict=True):
            total += after - before if after >= before else after + most - before  # it wrapped
        self._last = now
        return total

    @staticmethod
    def _read(path: Path) -> int:
        return _whole(path) or 0


def measure(counters: EnergyCounters | None = None) -> Measured:
    """Measure; raises ImportError where numpy is missing."""
    import numpy as np

    begun = time.perf_counter()
    source = np.ones(_COPY_BYTES // 8)
    target = np.empty_like(source)
    copied = _rate(lambda: np.copyto(target, source), 2 * _COPY_BYTES)
    left = np.ones((_SIDE, _SIDE), dtype=np.float32)
    product = np.empty_like(left)
    counters = counters or EnergyCounters()
    counters.spent()
    warm = time.perf_counter()
    flops = _rate(lambda: np.matmul(left, left, out=product), 2 * _SIDE**3)
    spent_s, microjoules = time.perf_counter() - warm, counters.spent()
    return Measured(
        copied,
        flops,
        int(microjoules / spent_s / 1000),
        int(1000 * (time.perf_counter() - begun)),
    )


def _rate(run: Callable[[], object], amount: int) -> int:
    """Amount a second of the fastest run within the budget; the first warms up."""
    run()
    best, end = float("inf"), time.perf_counter() + _BUDGET_S
    while True:
        begun = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - begun)
        if now >= end:
            return int(amount / max(best, 1e-9))


def _whole(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
