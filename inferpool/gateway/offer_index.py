"""Offers by what is asked for, and in the order of what they cost: no choice looks at all nodes.

A market is all services under one name for one task. Its rankings are sorted lists by the cost
of a typical call, one for each shape of call (how long in, how long out, what a second is worth),
built when such a call first comes and kept up as nodes change. Exact costs are computed for the
few that are drawn; a ranking that is a little old costs a slightly worse draw, nothing more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Final

from inferpool.gateway.memory import CallClass
from inferpool.gateway.nodes import KnownNode
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.job import Task
from inferpool.protocol.offer import Service

RANKINGS_MAX: Final = 6  # shapes of call that are ranked in one market, the latest used
EDGE: Final = 4.0  # dearer than this times the cheapest: drawn only where nothing else is left
TRIES: Final = 6  # draws for each place
REFRESHED: Final = 2  # changed nodes that one choice brings up to date
NEWCOMER_CALLS: Final = 10  # with fewer a node is a newcomer
_MS_PER_S: Final = 1000

Accept = Callable[["Entry"], bool]


@dataclass(slots=True, eq=False)
class Entry:
    """A node's service in one market."""

    node: KnownNode
    service: Service
    call_class: CallClass = field(init=False)

    def __post_init__(self) -> None:
        self.call_class = self.service.call_class


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of call: units in and out, and pico-USD for a second, each a power of 16."""

    units_in: int
    units_out: int
    pico_usd_per_s: int

    @classmethod
    def of(cls, units_in: int, units_out: int, pico_usd_per_s: int) -> Shape:
        """The kind that a call belongs to."""
        return cls(_power(units_in), _power(units_out), _power(pico_usd_per_s))

    def cost(self, entry: Entry) -> float:
        """What a call of this kind costs at a node that has nothing else to do."""
        service, node = entry.service, entry.node
        price = (
            self.units_in * service.price_in_pico_usd_per_unit
            + self.units_out * service.price_out_pico_usd_per_unit
        )
        line = node.memory.latency(entry.call_class)
        time_ms = line.first_ms(self.units_in, node.lease, 0)
        time_ms += self.units_out * line.unit_us(node.lease) / _MS_PER_S
        whole = price + self.pico_usd_per_s * time_ms / _MS_PER_S
        return 1.0 + whole * (1 + node.memory.failures.slow)


def _power(number: int) -> int:
    return 0 if number < 1 else int(16 ** ((int(number).bit_length() + 1) // 4))


class Ranking:
    """Entries by cost, least first."""

    def __init__(self, shape: Shape, entries: Iterable[Entry]) -> None:
        self._shape = shape
        self._cost: dict[bytes, float] = {}
        self._entries: dict[bytes, Entry] = {}
        rows = []
        for entry in entries:
            address = entry.node.address
            self._cost[address] = cost = shape.cost(entry)
            self._entries[address] = entry
            rows.append((cost, address))
        rows.sort()
        self._rows = rows

    def put(self, entry: Entry) -> None:
        """An entry is new or has changed."""
        address, cost = entry.node.address, self._shape.cost(entry)
        self._entries[address] = entry
        if self._cost.get(address) != cost:
            self._remove(address)
            self._cost[address] = cost
            insort(self._rows, (cost, address))

    def drop(self, address: bytes) -> None:
        """An entry is gone."""
        self._remove(address)
        self._entries.pop(address, None)

    def _remove(self, address: bytes) -> None:
        cost = self._cost.pop(address, None)
        if cost is not None:
            del self._rows[bisect_left(self._rows, (cost, address))]

    def draw(
        self, count: int, accept: Accept, random: Random, walk: int | None = None
    ) -> list[Entry]:
        """Up to `count` different entries, drawn with weight cost**-2 among those within the edge;
        where too few of them are accepted, on from the cheapest in order, `walk` of them at most.
        """
        rows, entries = self._rows, self._entries
        if not rows:
            return []
        least = rows[0][0]
        edge = bisect_right(rows, (least * EDGE, b"\xff" * 20))
        found: dict[bytes, Entry] = {}
        for _ in range(TRIES * count):
            cost, address = rows[int(random.random() * edge)]
            if random.random() * cost * cost > least * least or address in found:
                continue
            entry = entries[address]
            if accept(entry):
                found[address] = entry
                if len(found) == count:
                    return list(found.values())
        for _, address in islice(rows, walk):
            if address not in found and accept(entries[address]):
                found[address] = entries[address]
                if len(found) == count:
                    break
        return list(found.values())


@dataclass(slots=True)
class Market:
    """All services under one name for one task. `_first_ranking` is told when one begins."""

    _first_ranking: Callable[[], None] = lambda: None
    entries: dict[bytes, Entry] = field(default_factory=dict)
    newcomers: OrderedDict[bytes, Entry] = field(default_factory=OrderedDict)
    _rankings: OrderedDict[Shape, Ranking] = field(default_factory=OrderedDict)
    _changed: dict[bytes, None] = field(default_factory=dict)

    def put(self, node: KnownNode, service: Service) -> None:
        """A node offers this, anew or still."""
        address = node.address
        entry = self.entries.get(address)
        if entry is None or entry.node is not node:
            self.drop(address)
            entry = self.entries[address] = Entry(node, service)
        # In place: rankings hold the entry.
        entry.service, entry.call_class = service, service.call_class
        if node.memory.served < NEWCOMER_CALLS:
            self.newcomers[address] = entry
        if self._rankings:
            self._changed[address] = None

    def drop(self, address: bytes) -> None:
        """A node offers it no more."""
        self.entries.pop(address, None)
        self.newcomers.pop(address, None)
        self._changed.pop(address, None)
        for ranking in self._rankings.values():
            ranking.drop(address)

    @property
    def ranked(self) -> bool:
        """Whether any ranking depends on its nodes."""
        return bool(self._rankings)

    def touch(self, address: bytes) -> None:
        """A node's speed or failures changed."""
        if address in self.entries and self._rankings:
            self._changed[address] = None

    def ranking(self, shape: Shape) -> Ranking:
        """The ranking for a shape of call; a few changed nodes are brought up to date first."""
        for _ in range(min(REFRESHED, len(self._changed))):
            address = next(iter(self._changed))
            del self._changed[address]
            for ranking in self._rankings.values():
                ranking.put(self.entries[address])
        found = self._rankings.get(shape)
        if found is None:
            if not self._rankings:
                self._first_ranking()
            found = self._rankings[shape] = Ranking(shape, self.entries.values())
            if len(self._rankings) > RANKINGS_MAX:
                self._rankings.popitem(last=False)
        else:
            self._rankings.move_to_end(shape)
        return found

    def newcomer(self, accept: Accept) -> Entry | None:
        """The newcomer whose turn it is."""
        for _ in range(min(TRIES, len(self.newcomers))):
            address, entry = next(iter(self.newcomers.items()))
            if entry.node.memory.served >= NEWCOMER_CALLS:
                del self.newcomers[address]
                continue
            self.newcomers.move_to_end(address)
            if accept(entry):
                return entry
        return None


@dataclass(slots=True)
class OfferIndex:
    """Every market. `put` a node when its offer came, `drop` it when it is gone."""

    _markets: dict[tuple[str, Task], Market] = field(default_factory=dict)
    _listed: dict[bytes, dict[tuple[str, Task], Service]] = field(default_factory=dict)
    # Of the nodes that were touched: their markets that have a ranking, as long as none begins or
    # ends to have one, and the node lists the same.
    _ranked: dict[bytes, list[Market]] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[KnownNode]) -> OfferIndex:
        """An index of these nodes."""
        index = cls()
        for node in nodes:
            index.put(node)
        return index

    def put(self, node: KnownNode) -> None:
        """A node's offer is new or has changed."""
        self._ranked.pop(node.address, None)
        wanted = dict(_services(node))
        for key in self._listed.get(node.address, {}).keys() - wanted.keys():
            self._unlist(key, node.address)
        for key, service in wanted.items():
            market = self._markets.get(key)
            if market is None:
                market = self._markets[key] = Market(self._ranked.clear)
            market.put(node, service)
        self._listed[node.address] = wanted

    def drop(self, address: bytes) -> None:
        """A node is forgotten."""
        self._ranked.pop(address, None)
        for key in self._listed.pop(address, {}):
            self._unlist(key, address)

    def _unlist(self, key: tuple[str, Task], address: bytes) -> None:
        market = self._markets[key]
        market.drop(address)
        if not market.entries:
            del self._markets[key]

    def touch(self, address: bytes) -> None:
        """A node's speed or failures changed."""
        ranked = self._ranked.get(address)
        if ranked is None:
            listed = self._listed.get(address, ())
            found = [self._markets[key] for key in listed]
            ranked = self._ranked[address] = [market for market in found if market.ranked]
        for market in ranked:
            market.touch(address)

    def market(self, model: str, task: Task) -> Market | None:
        """The services under a model's name or manifest id (0x hex) that do a task."""
        return self._markets.get((model, task))


def _services(node: KnownNode) -> Iterator[tuple[tuple[str, Task], Service]]:
    """What a node is listed under; ids come last and win, so that no service can take another's
    id for its name, and of two services of one name the first is meant."""
    tasks = tuple(Task)
    for service in reversed(node.offer.services):
        for task in tasks:
            if service.task.serves(task):
                yield (service.model, task), service
    for service in reversed(node.offer.services):
        for task in tasks:
            if service.task.serves(task):
                yield (to_hex(service.manifest), task), service
