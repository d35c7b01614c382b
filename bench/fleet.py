"""A simulated fleet of 1,000 nodes under a published trace of arrivals: our rule against others.

`python -m bench.fleet` prints a table; `--picture FILE` draws it. The arrivals are those of
`bench.trace`, at 40 times their pace. The nodes are drawn from one seed: prices and speeds
log-normal over an order of magnitude, 2 to 16 slots, one in twenty fails a third of its calls,
one in ten claims to be five times as fast as it is, one in fifty dies (half of these in silence).
Every rule has the same knowledge of who lives, four tries for a request, and goes on after a
death from the tokens that were delivered. Time is virtual; `ours` is the gateway's own router.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from bench.fleet_picture import draw
from bench.fleet_rules import RULES, Rule
from bench.trace import Arrival, load

NODES: Final = 1000
PACE: Final = 40.0
TRIES: Final = 4
QUEUE: Final = 64
SILENCE_S: Final = 3.0
REFUSED_S: Final = 0.005
SEED: Final = 1


@dataclass(slots=True)
class Machine:
    """The truth about a node. Prices in pico-USD per token."""

    number: int
    price_in: int
    price_out: int
    prefill_per_s: float
    decode_per_s: float
    slots: int
    fails: float
    boast: float  # how many times faster it says it is
    dies_s: float = math.inf
    silent: bool = False  # its death is seen only by silence
    free_s: list[float] = field(default_factory=list)  # when each slot is free, a heap
    in_flight: int = 0


def machines(random: Random, count: int, until_s: float) -> list[Machine]:
    """A mixed fleet."""
    found = []
    for number in range(count):
        decode = 30 * math.exp(random.gauss(0, 0.6))
        price_out = 600_000 * math.exp(random.gauss(0, 0.5)) * (decode / 30) ** 0.3
        slots = random.choice((2, 4, 8, 16))
        machine = Machine(
            number,
            int(price_out / 4),
            int(price_out),
            decode * 60 * math.exp(random.gauss(0, 0.3)),
            decode,
            slots,
            0.33 if random.random() < 0.05 else 0.002,
            5.0 if random.random() < 0.1 else 1.0,
        )
        if random.random() < 0.02:
            machine.dies_s = random.uniform(0, until_s)
            machine.silent = random.random() < 0.5
        machine.free_s = [0.0] * slots
        found.append(machine)
    return found


@dataclass(slots=True)
class Call:
    """One request on its way."""

    begun_s: float
    tokens_in: int
    tokens_out: int
    done: int = 0
    first_s: float = -1.0
    pico_usd: int = 0
    legs: int = 0
    tried: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Outcome:
    """What one rule did with all requests. Times in seconds, money in USD."""

    name: str
    whole_s: Any
    first_s: Any
    usd: Any
    failed: int
    legs: int
    used: int

    def row(self) -> tuple[float, float, float, float, float]:
        """USD per 1,000 requests, median and p99 of the whole, p99 of the first token, and USD per
        1,000 with an hour of waiting at one dollar."""
        usd = 1000 * float(self.usd.mean())
        whole = self.whole_s
        first = float(np.percentile(self.first_s, 99))
        hour = usd + 1000 * float(whole.mean()) / 3600
        return usd, float(np.median(whole)), float(np.percentile(whole, 99)), first, hour


class Fleet:
    """One run of one rule."""

    def __init__(self, rule: Callable[[list[Machine], Random], Rule], seed: int, count: int,
                 arrivals: list[Arrival]) -> None:  # fmt: skip
        self._arrivals = arrivals
        self._machines = machines(Random(seed), count, arrivals[-1].at_s)
        self._random = Random(seed + 1)
        self._rule = rule(self._machines, Random(seed + 2))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._now = 0.0
        self._calls: list[Call] = []
        self._failed = 0

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, what))

    def run(self, name: str) -> Outcome:
        """All arrivals to their end."""
        for arrival in self._arrivals:
            call = Call(arrival.at_s, arrival.tokens_in, max(1, arrival.tokens_out))
            self._calls.append(call)
            self._at(arrival.at_s, lambda call=call: self._try(call))  # type: ignore[misc]
        for machine in self._machines:
            if machine.dies_s < math.inf:
                seen_s = machine.dies_s + (30.0 if machine.silent else 0.0)
                self._at(seen_s, lambda m=machine: self._rule.gone(m))  # type: ignore[misc]
        ends: dict[int, float] = {}
        self._ends = ends
        while self._events:
            self._now, _, what = heapq.heappop(self._events)
            what()
        whole = [c for c in self._calls if id(c) in ends]
        return Outcome(
            name,
            np.array([ends[id(c)] - c.begun_s for c in whole]),
            np.array([c.first_s - c.begun_s for c in whole]),
            np.array([c.pico_usd for c in whole]) / 1e12,
            self._failed,
            sum(c.legs for c in self._calls),
            len({m.number for m in self._machines if m.free_s != [0.0] * m.slots}),
        )

    def _try(self, call: Call) -> None:
        """The next node for a request, by the rule."""
        if call.legs >= TRIES:
            self._failed += 1
            return
        machine = self._rule.choose(self._now, call.tokens_in + call.done, call.tried)
        if machine is None:
            self._failed += 1
            return
        call.legs += 1
        call.tried.add(machine.number)
        if self._now >= machine.dies_s:
            wait_s = SILENCE_S if machine.silent else REFUSED_S
            self._fails(call, machine, self._now + wait_s, "node_failed", begun=False)
        elif machine.in_flight >= machine.slots + QUEUE:
            self._fails(call, machine, self._now + REFUSED_S, "overloaded", begun=False)
        else:
            self._serve(call, machine)

    def _serve(self, call: Call, machine: Machine) -> None:
        machine.in_flight += 1
        self._rule.began(machine)
        start = max(self._now, heapq.heappop(machine.free_s))
        tokens_in, left = call.tokens_in + call.done, call.tokens_out - call.done
        first = start + tokens_in / machine.prefill_per_s
        end = first + (left - 1) / machine.decode_per_s
        breaks = machine.dies_s
        if self._random.random() < machine.fails:
            breaks = min(breaks, start + self._random.random() * (end - start))
        heapq.heappush(machine.free_s, min(end, breaks) if breaks > start else start)
        if end <= breaks:
            self._at(first, lambda: self._first(call))
            begun = self._now
            self._at(end, lambda: self._ends_well(call, machine, begun, first, tokens_in, left))
            return
        if first <= breaks:
            self._at(first, lambda: self._first(call))
            call.done += min(left - 1, 1 + int((breaks - first) * machine.decode_per_s))
        seen = breaks + (SILENCE_S if machine.silent and breaks == machine.dies_s else 0.0)
        self._fails(call, machine, seen, "node_failed", begun=True)

    def _first(self, call: Call) -> None:
        if call.first_s < 0:
            call.first_s = self._now

    def _ends_well(
        self, call: Call, machine: Machine, begun: float, first: float, tokens_in: int, left: int
    ) -> None:
        machine.in_flight -= 1
        call.pico_usd += tokens_in * machine.price_in + left * machine.price_out
        self._ends[id(call)] = self._now
        self._rule.succeeded(machine, tokens_in, first - begun, left, self._now - first, self._now)

    def _fails(self, call: Call, machine: Machine, when_s: float, why: str, *, begun: bool) -> None:
        def failed() -> None:
            if begun:
                machine.in_flight -= 1
            self._rule.failed(machine, why, begun, self._now)
            self._try(call)

        self._at(max(when_s, self._now), failed)


def main() -> None:
    """Run every rule over the same fleet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--pace", type=float, default=PACE)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    arrivals = [a._replace(at_s=a.at_s / given.pace) for a in load()]
    print(f"{len(arrivals)} requests in {arrivals[-1].at_s:.0f} s to {given.nodes} nodes")
    print("| rule | USD per 1,000 | and $1 an hour of waiting | whole answer: median, s | p99, s |"
          " first token p99, s | tries each | not served |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    points = []
    for name, rule in RULES.items():
        if given.only and given.only not in name:
            continue
        found = Fleet(rule, given.seed, given.nodes, arrivals).run(name)
        usd, median, late, first, hour = found.row()
        tries = found.legs / len(arrivals)
        print(f"| {name} | {usd:.3f} | {hour:.2f} | {median:.1f} | {late:.1f} | {first:.2f} |"
              f" {tries:.3f} | {found.failed} |", flush=True)  # fmt: skip
        points.append((name, usd, late))
    if given.picture:
        given.picture.write_text(draw(points))


if __name__ == "__main__":
    main()
