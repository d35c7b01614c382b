"""What a gateway remembers of a node: how often it fails, how fast it is, how much it takes. Pure.

Two speeds: a fast memory that a few calls fill and half a minute empties, a slow one that takes
a hundred calls and an hour. The worse of the two counts, so that a node that turns bad is felt
at once and one that was bad for long is not forgiven for one good answer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from inferpool.protocol.lease import Lease

FAST: Final = 0.3  # weight of the last call
SLOW: Final = 0.02
FAST_HALF_MS: Final = 30_000  # without a call, half of it is forgotten in that time
SLOW_HALF_MS: Final = 3_600_000
STRAIN_MAX: Final = 100.0
LINE_WEIGHT_MAX: Final = 50.0  # calls that a line remembers
LINE_CALLS: Final = 4  # before which a line says nothing about strain
LATE_UNKNOWN: Final = 3.0
LATE_STEP: Final = 0.2  # a quantile is followed by unequal steps, up and down
LEASE_WEIGHT: Final = 2.0  # calls that the node's own word counts for
UNKNOWN_FIRST_MS: Final = 200
CLASSES_MAX: Final = 128  # of calls at one node: services x tasks, the latest used
CAP_MAX: Final = 1024.0

CallClass = tuple[bytes, str]  # manifest and task: a tensor call is not a chat


def _left(since_ms: int, half_ms: int) -> float:
    return 1.0 if since_ms <= 0 else float(0.5 ** (since_ms / half_ms))


@dataclass(slots=True)
class TwoSpeed:
    """A share from 0 to 1 that is remembered at both speeds."""

    fast: float = 0.0
    slow: float = 0.0
    at_ms: int = 0
    calls: int = 0

    def add(self, share: float, now_ms: int) -> None:
        """One more call."""
        if self.slow or share:  # else there is nothing to forget, as long as all goes well
            since_ms = now_ms - self.at_ms
            self.fast *= _left(since_ms, FAST_HALF_MS)
            self.slow *= _left(since_ms, SLOW_HALF_MS)
            self.fast += FAST * (share - self.fast)
            self.slow += SLOW * (share - self.slow)
        self.at_ms = max(self.at_ms, now_ms)
        self.calls += 1

    def now(self, now_ms: int) -> float:
        """The worse of both memories now."""
        if not self.fast:
            return 0.0
        since_ms = now_ms - self.at_ms
        fast = self.fast * _left(since_ms, FAST_HALF_MS)
        return max(fast, self.slow * _left(since_ms, SLOW_HALF_MS))


@dataclass(slots=True)
class Latency:
    """One line: first_ms = base + slope x units in; then `unit_us` for each unit out.

    Least squares over decayed sums. `strain` is the fast memory: how many times slower than the
    line the last calls were; it jumps up and falls slowly.
    """

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    out_weight: float = 0.0
    out_us: float = 0.0
    strain: float = 1.0
    at_ms: int = 0
    late: float = LATE_UNKNOWN  # 95 of 100 calls take at most this times the line
    base: float = 0.0  # of the line, as the sums have it
    slope: float = 0.0

    def observe(self, units_in: int, first_ms: float, now_ms: int) -> None:
        """The first unit of a call came after `first_ms`."""
        known = self.weight >= LINE_CALLS
        expected = self.base + self.slope * units_in if known else first_ms
        ratio = min(STRAIN_MAX, first_ms / max(1.0, expected))
        self.late += LATE_STEP * self.late * (0.95 if ratio > self.late else -0.05)
        self.late = max(1.0, self.late)
        self.strain = self._strain(now_ms)
        self.strain += (0.5 if ratio > self.strain else 0.2) * (ratio - self.strain)
        self.at_ms = now_ms
        keep = min(1.0, (LINE_WEIGHT_MAX - 1) / self.weight) if self.weight else 1.0
        self.weight = keep * self.weight + 1
        self.x = keep * self.x + units_in
        self.y = keep * self.y + first_ms
        self.xx = keep * self.xx + units_in * units_in
        self.xy = keep * self.xy + units_in * first_ms
        self.fit()

    def fit(self) -> None:
        """Draw the line through what the sums say; they hold a call at least."""
        spread = self.weight * self.xx - self.x * self.x
        self.slope = 0.0
        if spread > 1e-6 * self.weight * self.xx:
            self.slope = max(0.0, (self.weight * self.xy - self.x * self.y) / spread)
        self.base = max(0.0, (self.y - self.slope * self.x) / self.weight)

    def observe_pace(self, units_out: int, after_first_ms: float) -> None:
        """`units_out` more units took that long."""
        if units_out > 0:
            self.out_weight = min(self.out_weight + 1, LINE_WEIGHT_MAX)
            share = 1 / self.out_weight
            self.out_us += share * (1000 * after_first_ms / units_out - self.out_us)

    def _strain(self, now_ms: int) -> float:
        return 1.0 + (self.strain - 1.0) * _left(now_ms - self.at_ms, FAST_HALF_MS)

    def first_ms(self, units_in: int, lease: Lease | None, now_ms: int) -> float:
        """Expected time to the first unit, without any queue."""
        said = (lease.first_unit_ms if lease else 0) or UNKNOWN_FIRST_MS
        if not self.weight:
            return float(said)
        known = self.base + self.slope * units_in
        if self.strain > 1.0:
            known *= self._strain(now_ms)
        return (self.weight * known + LEASE_WEIGHT * said) / (self.weight + LEASE_WEIGHT)

    def unit_us(self, lease: Lease | None) -> float:
        """Expected time for each further unit out, in microseconds."""
        said = lease.unit_us if lease else 0
        if not self.out_weight:
            return float(said)
        weight = LEASE_WEIGHT if said else 0.0
        return (self.out_weight * self.out_us + weight * said) / (self.out_weight + weight)

    def prefill_ms(self, units: int) -> float:
        """What the line says that many units in cost: what a warm prefix saves."""
        return self.slope * units if self.weight >= 2 else 0.0


_UNSEEN: Final = Latency()


@dataclass(slots=True)
class NodeMemory:
    """Everything that is remembered of one node."""

    failures: TwoSpeed = field(default_factory=TwoSpeed)
    cap: float = CAP_MAX  # calls at once that it took without a 429: cut by one, grows slowly
    misses: float = 0.0  # recent calls whose prompt it did not know; decays
    misses_ms: int = 0
    served: int = 0  # calls that ended with a receipt
    classes: OrderedDict[CallClass, Latency] = field(default_factory=OrderedDict)

    def latency(self, call: CallClass) -> Latency:
        """The line of a class of calls; an empty one where there was no call yet."""
        return self.classes.get(call, _UNSEEN)

    def learn(
        self,
        call: CallClass,
        units_in: int,
        first_ms: float,
        units_out: int,
        after_first_ms: float,
        now_ms: int,
    ) -> None:
        """A call ended well."""
        line = self.classes.get(call)
        if line is None:
            line = self.classes[call] = Latency()
            if len(self.classes) > CLASSES_MAX:
                self.classes.popitem(last=False)
        line.observe(units_in, first_ms, now_ms)
        line.observe_pace(units_out, after_first_ms)
        self.served += 1
        if self.cap < CAP_MAX:
            self.cap += 1 / self.cap

    def overloaded(self, in_flight: int) -> None:
        """It refused one more: it takes fewer at once."""
        self.cap = max(1.0, 0.7 * min(self.cap, max(1, in_flight)))

    def missed(self, now_ms: int) -> None:
        """It was given a prompt that it does not know."""
        self.misses = self.recent_misses(now_ms) + 1
        self.misses_ms = now_ms

    def recent_misses(self, now_ms: int) -> float:
        """Cold prompts of the last seconds."""
        return self.misses * _left(now_ms - self.misses_ms, 5_000) if self.misses else 0.0
