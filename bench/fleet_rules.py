"""Rules that choose a node in the simulated fleet: the gateway's own router, and others' rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.offer_index import OfferIndex
from inferpool.gateway.router import Wanted, choose
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.offer import Endpoint, Offer, Service, Terms

if TYPE_CHECKING:
    from bench.fleet import Machine

EPOCH_MS: Final = 1_800_000_000_000
TYPICAL_IN: Final = 1000  # tokens of the prompt that a lease's first-token time is told for
ALIVE_MS: Final = 10**12


class Rule(Protocol):
    """What the fleet asks and tells."""

    def choose(self, now_s: float, tokens_in: int, tried: set[int]) -> Machine | None:
        """The next node to try."""
        ...

    def began(self, machine: Machine) -> None:
        """A call is taken."""
        ...

    def succeeded(
        self, machine: Machine, tokens_in: int, first_s: float, tokens_out: int, rest_s: float,
        now_s: float,
    ) -> None:  # fmt: skip
        """A call ended well."""
        ...

    def failed(self, machine: Machine, why: str, begun: bool, now_s: float) -> None:
        """A call failed, after it was taken or not."""
        ...

    def gone(self, machine: Machine) -> None:
        """A death became known."""
        ...


class Plain(ABC):
    """What the simple rules have in common: who lives, and how much is in flight."""

    def __init__(self, machines: list[Machine], random: Random) -> None:
        self._machines, self._random = machines, random
        self._flying = np.zeros(len(machines))
        self._dead = np.zeros(len(machines), dtype=bool)
        self._noise = np.random.default_rng(random.getrandbits(32))

    def choose(self, now_s: float, tokens_in: int, tried: set[int]) -> Machine | None:
        """The lowest mark of those that live and were not tried."""
        marks = self._marks(now_s, tokens_in)
        marks[self._dead] = np.inf
        if tried:
            marks[list(tried)] = np.inf
        best = int(np.argmin(marks))
        return None if marks[best] == np.inf else self._machines[best]

    @abstractmethod
    def _marks(self, now_s: float, tokens_in: int) -> Any:
        """A mark for each machine."""

    def began(self, machine: Machine) -> None:
        """See Rule."""
        self._flying[machine.number] += 1

    def succeeded(
        self, machine: Machine, tokens_in: int, first_s: float, tokens_out: int, rest_s: float,
        now_s: float,
    ) -> None:  # fmt: skip
        """See Rule."""
        self._flying[machine.number] -= 1

    def failed(self, machine: Machine, why: str, begun: bool, now_s: float) -> None:
        """See Rule."""
        self._flying[machine.number] -= begun

    def gone(self, machine: Machine) -> None:
        """See Rule."""
        self._dead[machine.number] = True


class AtRandom(Plain):
    """Any that lives."""

    def _marks(self, now_s: float, tokens_in: int) -> Any:
        return self._noise.random(len(self._machines))


class LeastConnections(Plain):
    """The one with the least in flight, ties at random."""

    def _marks(self, now_s: float, tokens_in: int) -> Any:
        return self._flying + 0.5 * self._noise.random(len(self._machines))


class TwoChoices(Plain):
    """Of two at random the one with less in flight."""

    def _marks(self, now_s: float, tokens_in: int) -> Any:
        order = self._noise.random(len(self._machines))
        order[self._dead] += 1
        two = np.argpartition(order, 2)[:2]
        order[two] = -1 / (1 + self._flying[two])
        return order


class CheapestFirst(Plain):
    """The cheapest with a free slot; without any, the cheapest."""

    def __init__(self, machines: list[Machine], random: Random) -> None:
        super().__init__(machines, random)
        self._price = np.array([float(m.price_out) for m in machines])
        self._slots = np.array([m.slots for m in machines])

    def _marks(self, now_s: float, tokens_in: int) -> Any:
        return self._price + 1e12 * (self._flying >= self._slots)


class TheGraph(Plain):
    """The Graph's indexer selection, for one node a query: success**7 x latency / fee.

    Its latency curve and its two memories (fast 80 %, slow 20 %) are the published ones; stake and
    freshness are equal here. The fee is a share of the dearest, at least 0.01.
    """

    def __init__(self, machines: list[Machine], random: Random) -> None:
        super().__init__(machines, random)
        price = np.array([float(m.price_out) for m in machines])
        self._fee = np.maximum(0.01, price / price.max())
        self._rates = np.full((2, len(machines)), 0.99)
        self._ms = np.zeros((2, len(machines)))

    def _marks(self, now_s: float, tokens_in: int) -> Any:
        success = np.minimum(0.99, 0.8 * self._rates[0] + 0.2 * self._rates[1])
        ms = 0.8 * self._ms[0] + 0.2 * self._ms[1]
        curve = np.maximum(
            1e-3, (1 + np.exp(-4 / 3)) / (1 + np.exp((np.minimum(ms, 1e5) - 400) / 300))
        )
        score = np.maximum(1e-8, success**7) * curve / self._fee
        return -score * (1 + 1e-6 * self._noise.random(len(self._machines)))

    def _learn(self, number: int, success: float, ms: float | None) -> None:
        for row, weight in enumerate((0.05, 0.001)):
            self._rates[row, number] += weight * (success - self._rates[row, number])
            if ms is not None:
                self._ms[row, number] += weight * (ms - self._ms[row, number])

    def succeeded(
        self, machine: Machine, tokens_in: int, first_s: float, tokens_out: int, rest_s: float,
        now_s: float,
    ) -> None:  # fmt: skip
        """See Rule."""
        super().succeeded(machine, tokens_in, first_s, tokens_out, rest_s, now_s)
        self._learn(machine.number, 1.0, 1000 * first_s)

    def failed(self, machine: Machine, why: str, begun: bool, now_s: float) -> None:
        """See Rule."""
        super().failed(machine, why, begun, now_s)
        self._learn(machine.number, 0.0, None)


class Ours:
    """The gateway's router, index and memory, as they are."""

    def __init__(self, machines: list[Machine], random: Random, *, usd_per_hour: float) -> None:
        self._machines, self._random = machines, random
        self._value = int(usd_per_hour * 1e12 / 3600)
        self._nodes = [_known(machine) for machine in machines]
        self._by_address = {node.address: m for node, m in zip(self._nodes, machines, strict=True)}
        self._index = OfferIndex.of(self._nodes)

    def choose(self, now_s: float, tokens_in: int, tried: set[int]) -> Machine | None:
        """See Rule."""
        job = Job(Task.CHAT, "m", prompt_bytes=4 * tokens_in)
        wanted = Wanted(_ms(now_s), self._value)
        try:
            found = choose(job, self._index, wanted, self._random).candidates
        except Unavailable:
            return None
        for candidate in found:
            machine = self._by_address[candidate.node.address]
            if machine.number not in tried:
                return machine
        return None

    def began(self, machine: Machine) -> None:
        """See Rule."""
        self._nodes[machine.number].began()

    def succeeded(
        self, machine: Machine, tokens_in: int, first_s: float, tokens_out: int, rest_s: float,
        now_s: float,
    ) -> None:  # fmt: skip
        """See Rule."""
        node, now = self._nodes[machine.number], _ms(now_s)
        node.succeeded(now)
        node.memory.learn(
            node.offer.services[0].call_class, tokens_in, 1000 * first_s, tokens_out - 1,
            1000 * rest_s, now,
        )  # fmt: skip
        node.ended()
        self._index.touch(node.address)

    def failed(self, machine: Machine, why: str, begun: bool, now_s: float) -> None:
        """See Rule."""
        node = self._nodes[machine.number]
        node.failed(_ms(now_s), why)
        if begun:
            node.ended()
        self._index.touch(node.address)

    def gone(self, machine: Machine) -> None:
        """See Rule."""
        self._nodes[machine.number].lease_ms = 0


def _ms(now_s: float) -> int:
    return EPOCH_MS + int(1000 * now_s)


def _known(machine: Machine) -> KnownNode:
    """A machine as the gateway knows it: what it says of itself, true or not."""
    service = Service(
        manifest=sha256(b"m"),
        model="m",
        task=Task.CHAT,
        engine_class="fake@1/none/none",
        price_in_pico_usd_per_unit=machine.price_in,
        price_out_pico_usd_per_unit=machine.price_out,
        context=32_768,
        default_max_output=1024,
        template_overhead=0,
        message_overhead=0,
        resume=True,
        audited=True,
    )
    url = f"http://{machine.number}.test"
    terms = Terms(1, bytes(20), "D", "1", 6, bytes(20), bytes(20), 0, 900)
    address = sha256(b"node %d" % machine.number)[:20]
    offer = Offer(
        bytes(20), address, 1, 1, EPOCH_MS + ALIVE_MS, (Endpoint(url),), (service,), terms
    )
    nobody: Any = None
    node = KnownNode(offer, bytes(32), url, nobody)
    first_ms = int(1000 * TYPICAL_IN / machine.prefill_per_s / machine.boast)
    lease = Lease(1, 1, machine.slots, 0, first_ms, int(1e6 / machine.decode_per_s / machine.boast))
    node.renew(lease, EPOCH_MS + ALIVE_MS)
    return node


Make = Callable[["list[Machine]", Random], Rule]
RULES: Final[dict[str, Make]] = {
    "ours, an hour worth $0": partial(Ours, usd_per_hour=0.0),
    "ours, an hour worth $0.10 (default)": partial(Ours, usd_per_hour=0.1),
    "ours, an hour worth $1": partial(Ours, usd_per_hour=1.0),
    "ours, an hour worth $10": partial(Ours, usd_per_hour=10.0),
    "least connections": LeastConnections,
    "cheapest with a free slot": CheapestFirst,
    "random": AtRandom,
    "two random choices": TwoChoices,
    "The Graph's": TheGraph,
}
