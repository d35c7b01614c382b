"""Which node serves a request: the least expected cost in USD (design D15). Pure.

    cost = price x expected units + value of time x expected time
           + P(failure) x (price + time) + surcharge for a stranger

Few are drawn, with weight cost**-2, and of four draws the one that costs least now, its queue
included, is taken; nodes that have a free slot come before those that would queue it. A node that
knows the prompt's beginning competes too, with the time that it saves, unless it is crowded; now
and then a newcomer's turn comes first, so that an honest one gets work. The others follow by
cost, for retries. Every factor is in the trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from inferpool.gateway.affinity import Blocks, PrefixMap
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.offer_index import NEWCOMER_CALLS, Entry, Market, OfferIndex, Shape
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.protocol.offer import Service
from inferpool.protocol.price import maximum_pico_usd
from inferpool.protocol.value import value

# Why a service is ruled out -> the member that says so.
PREFERENCE: Final = {
    "not among provider.only": "provider.only",
    "in provider.ignore": "provider.ignore",
    "promises nothing about data": "provider.data_collection",
    "another quantization": "provider.quantizations",
    "over max_price": "provider.max_price",
    "over max_price.request": "provider.max_price.request",
    "under min_trust": "inferpool.min_trust",
}
Allows = Callable[[KnownNode, Service], str]
BYTES_PER_TOKEN: Final = 4  # English prose; only an expectation, never a bound
DEFAULT_OUTPUT: Final = 128
DRAWS: Final = 4  # that compete for the first place: with two, `bench.fleet` is 15 % dearer
WALK_MAX: Final = 2000  # entries that are looked at for a free slot, before any is taken
POOL: Final = 8  # that are priced exactly: the draws, and others for retries
EXPLORED: Final = 0.03  # of all choices go to a newcomer first
NEWCOMER_EDGE: Final = 4  # dearer than this times the best is nobody's try
STRANGER_SHARE: Final = 0.2  # of the price: what no receipt at all is held against a node
CROWD: Final = 1.25  # bounded load: at most this times the draws' mean, and one
MISS_SHARE: Final = 0.1  # of a first token's time, for each prompt that it was given cold lately
# Where time is worth nothing it still decides between equal prices: 0.00036 USD an hour.
LEAST_PICO_USD_PER_S: Final = 100_000


# A trace's members in the order in which they are stored.
CANDIDATE: Final = (
    *("node", "class", "price_pico_usd", "time_pico_usd", "risk_pico_usd", "trust_pico_usd"),
    *("maximum_pico_usd", "first_ms", "whole_ms", "late_ms", "wait_ms", "warm_units"),
    *("in_flight", "held_back", "how"),
)
COMPARED: Final = (*CANDIDATE, "cost_pico_usd", "why")
ROUTE: Final = (
    *("at_ms", "model", "task", "offers", "units_in", "units_out"),
    *("value_of_time_pico_usd_per_s", "passed", "candidates"),
)


@dataclass(slots=True, eq=False)
class Candidate:
    """A node that can take the job, with the factors of its cost in pico-USD."""

    node: KnownNode
    service: Service
    price_pico_usd: int
    time_pico_usd: int
    risk_pico_usd: int
    trust_pico_usd: int
    maximum_pico_usd: int
    first_ms: int  # expected, with the queue
    whole_ms: int
    late_ms: int  # 95 of 100 such calls are over by then
    wait_ms: int  # the queue's part
    warm_units: int  # of the prompt that it knows
    in_flight: int
    held_back: str
    how: str = "by cost"

    @property
    def cost_pico_usd(self) -> int:
        """The expected cost."""
        return self.price_pico_usd + self.time_pico_usd + self.risk_pico_usd + self.trust_pico_usd

    def packed(self) -> tuple[object, ...]:
        """For the stored trace: in the order of `CANDIDATE`."""
        return (
            to_hex(self.node.address),
            self.service.engine_class,
            self.price_pico_usd,
            self.time_pico_usd,
            self.risk_pico_usd,
            self.trust_pico_usd,
            self.maximum_pico_usd,
            self.first_ms,
            self.whole_ms,
            self.late_ms,
            self.wait_ms,
            self.warm_units,
            self.in_flight,
            self.held_back,
            self.how,
        )

    def trace(self) -> dict[str, object]:
        """By name."""
        return dict(zip(CANDIDATE, self.packed(), strict=True))


@value
class Wanted:
    """What is asked for beside the job, and what is known at this moment.

    `free_pico_usd`: what the account may still hold; dearer maxima are passed by. `allows` gives
    the reason why the caller's own preferences rule a service out, or ''.
    """

    now_ms: int
    value_of_time_pico_usd_per_s: int = 0
    free_pico_usd: int | None = None
    prompt: Blocks = ()
    allows: Allows | None = None
    named: tuple[bytes, ...] = ()  # addresses that are candidates wherever they may be


@dataclass(slots=True)
class Route:
    """Candidates in the order to try, and why it came so."""

    candidates: list[Candidate]
    model: str = ""
    task: str = ""
    offers: int = 0  # in the market
    units_in: int = 0
    units_out: int = 0
    pico_usd_per_s: int = 0
    at_ms: int = 0
    passed: dict[str, int] = field(default_factory=dict)  # why others were passed by

    def packed(self) -> tuple[object, ...]:
        """For the store, in the order of `ROUTE`: no text, only sizes, money, times and reasons."""
        found = self.candidates
        return (
            self.at_ms,
            self.model,
            self.task,
            self.offers,
            self.units_in,
            self.units_out,
            self.pico_usd_per_s,
            self.passed,
            [(*item.packed(), item.cost_pico_usd, why_not(item, found[0])) for item in found],
        )

    def trace(self) -> dict[str, object]:
        """By name, as it is shown."""
        return unpacked(self.packed())


def unpacked(packed: Sequence[Any]) -> dict[str, object]:
    """What `Route.packed` gave, by name."""
    route = dict(zip(ROUTE, packed, strict=True))
    route["candidates"] = [dict(zip(COMPARED, item, strict=True)) for item in packed[-1]]
    return route


def why_not(loser: Candidate, winner: Candidate) -> str:
    """Why a candidate is not the first: the factor in which it costs most more than the first."""
    if loser is winner:
        return ""
    if loser.held_back:
        return loser.held_back
    if winner.how == "newcomer":
        return "a newcomer's turn"
    factors = {
        "dearer": loser.price_pico_usd - winner.price_pico_usd,
        "slower": loser.time_pico_usd - winner.time_pico_usd,
        "less reliable": loser.risk_pico_usd - winner.risk_pico_usd,
        "a stranger": loser.trust_pico_usd - winner.trust_pico_usd,
    }
    if loser.cost_pico_usd <= winner.cost_pico_usd:
        return "the draw"
    return max(factors, key=lambda name: factors[name])


def choose(
    job: Job, index: OfferIndex, wanted: Wanted, random: Random, prefixes: PrefixMap | None = None
) -> Route:
    """Candidates in the order to try. Raises BadRequest(model_not_found), Unavailable(no_node)."""
    market = index.market(job.model, job.task)
    if market is None:
        raise BadRequest(
            f"No node offers the model {job.model!r} for {job.task.value};"
            " GET /v1/models lists what there is.",
            code="model_not_found",
            param="model",
        )
    return _Choice(job, market, wanted, random).route(
        prefixes.warm(wanted.prompt, wanted.now_ms) if wanted.prompt and prefixes else {}
    )


def _missing(job: Job, service: Service) -> str:
    """The first name that a job needs and a service does not take."""
    return next((name for name in job.needs if name not in service.parameters), "")


class _Choice:
    """One choice under way."""

    def __init__(self, job: Job, market: Market, wanted: Wanted, random: Random) -> None:
        self._job, self._market, self._wanted, self._random = job, market, wanted, random
        self._pico_per_s = max(LEAST_PICO_USD_PER_S, wanted.value_of_time_pico_usd_per_s)
        self._base_in, self._units_out = expected_units(job)
        self._maxima: dict[bytes, int] = {}
        self._passed: dict[str, int] = {}
        self._refused: BadRequest | None = None
        self._dear: list[Entry] = []
        self._ranked = False  # the pool was drawn by weight; else it is everybody

    def route(self, warm: dict[bytes, int]) -> Route:
        pool = self._pool()
        for address in (*warm, *self._wanted.named):
            entry = self._market.entries.get(address)
            if entry is not None and entry not in pool and self._accepts(entry):
                pool.append(entry)
        newcomer = None
        if self._random.random() < EXPLORED:
            newcomer = self._market.newcomer(self._accepts_free)
            if newcomer is not None and newcomer not in pool:
                pool.append(newcomer)
        if not pool:
            pool = self._none_left()
        found = [self._candidate(entry, warm.get(entry.node.address, 0)) for entry in pool]
        return Route(
            self._ordered(found, newcomer),
            self._job.model,
            self._job.task,
            len(self._market.entries),
            self._base_in,
            self._units_out,
            self._pico_per_s,
            self._wanted.now_ms,
            self._passed,
        )

    # -- who may -------------------------------------------------------------------------------

    def _pool(self) -> list[Entry]:
        entries = self._market.entries
        if len(entries) <= POOL:
            return [entry for entry in entries.values() if self._accepts(entry)]
        self._ranked = True
        ranking = self._market.ranking(Shape.of(self._base_in, self._units_out, self._pico_per_s))
        pool = ranking.draw(POOL, self._accepts_free, self._random, WALK_MAX)
        return pool or ranking.draw(POOL, self._accepts, self._random)

    def _accepts_free(self, entry: Entry) -> bool:
        if entry.node.held_back(self._wanted.now_ms):
            return self._pass("held back")
        if entry.node.room() < 1:
            return self._pass("no free slot")
        return self._accepts(entry)

    def _pass(self, why: str) -> bool:
        self._passed[why] = self._passed.get(why, 0) + 1
        return False

    def _accepts(self, entry: Entry) -> bool:
        """Whether a node may take the job at all; counts why not."""
        node, service, wanted = entry.node, entry.service, self._wanted
        if not node.alive(wanted.now_ms):
            return self._pass("silent")
        if self._job.needs and (missing := _missing(self._job, service)):
            return self._pass(f"does not take {missing}")
        if wanted.allows is not None and (why := wanted.allows(node, service)):
            return self._pass(why)
        try:
            most = maximum_pico_usd(self._job, service)
        except BadRequest as error:  # no maximum under this offer; others may have one
            self._refused = error
            return self._pass("no maximum")
        if wanted.free_pico_usd is not None and most > wanted.free_pico_usd:
            self._dear.append(entry)
            return self._pass("over the budget")
        self._maxima[node.address] = most
        return True

    def _none_left(self) -> list[Entry]:
        """Those that only the budget rules out, so that it is the budget that refuses."""
        if self._dear:
            for entry in self._dear:
                self._maxima[entry.node.address] = maximum_pico_usd(self._job, entry.service)
            return self._dear[:POOL]
        if self._refused is not None:
            raise self._refused
        self._raise_for_parameter()
        self._raise_for_preference()
        silent = self._passed.keys() <= {"silent", "held back"}
        raise Unavailable(
            f"Every node with {self._job.model!r} is silent or failing now; try again."
            if silent
            else f"No node with {self._job.model!r} fits:"
            f" {', '.join(sorted(self._passed.keys() - {'held back'}))}.",
            code="no_node",
            retry_after_s=5,
        )

    def _raise_for_parameter(self) -> None:
        """Raise BadRequest where a parameter is what no node of this model takes."""
        services = [entry.service for entry in self._market.entries.values()]
        for name in self._job.needs:
            if all(name not in service.parameters for service in services):
                raise BadRequest(
                    f"No node takes {name} for {self._job.model!r}; leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )

    def _raise_for_preference(self) -> None:
        """Raise BadRequest where what the caller prefers, or its key may, rules out every node,
        those that are silent now included: it would fail again."""
        allows, reasons = self._wanted.allows, Counter[str]()
        for entry in self._market.entries.values():
            why = allows(entry.node, entry.service) if allows is not None else ""
            if not why:
                return
            reasons[why] += 1
        if reasons:
            told = ", ".join(reason for reason, _ in reasons.most_common())
            raise BadRequest(
                f"Preferences rule out every node with {self._job.model!r}: {told}.",
                code="preferences_unmet",
                param=PREFERENCE.get(reasons.most_common(1)[0][0]),
            )

    # -- what it costs -------------------------------------------------------------------------

    def _candidate(self, entry: Entry, warm_bytes: int) -> Candidate:
        node, service, now = entry.node, entry.service, self._wanted.now_ms
        memory, lease = node.memory, node.lease
        units_in, units_out = self._base_in, self._units_out
        if self._job.messages:
            units_in += service.message_overhead * self._job.messages
        price = (
            units_in * service.price_in_pico_usd_per_unit
            + units_out * service.price_out_pico_usd_per_unit
        )
        line = memory.latency(entry.call_class)
        first_ms = line.first_ms(units_in, lease, now)
        warm = min(warm_bytes // BYTES_PER_TOKEN, units_in)
        if warm:
            first_ms -= min(0.9 * first_ms, line.prefill_ms(warm) or first_ms * warm / units_in)
        rest_ms = units_out * line.unit_us(lease) / 1000
        wait_ms = float(lease.expected_wait_ms if lease else 0)
        room = node.room()
        if room < 1:
            wait_ms += (1 - room) * (first_ms + rest_ms) / node.slots
        if memory.misses:
            first_ms += MISS_SHARE * memory.recent_misses(now) * first_ms
        first_ms += wait_ms
        whole_ms = first_ms + rest_ms
        time = int(self._pico_per_s * whole_ms / 1000)
        risk = int(memory.failures.now(now) * (price + time))
        new = max(0, NEWCOMER_CALLS - memory.served)
        return Candidate(
            node,
            service,
            price,
            time,
            risk,
            int(STRANGER_SHARE * price * new / NEWCOMER_CALLS),
            self._maxima[node.address],
            int(first_ms),
            int(whole_ms),
            int(whole_ms * line.late),
            int(wait_ms),
            warm,
            node.in_flight,
            node.held_back(now),
        )

    # -- in which order ------------------------------------------------------------------------

    def _ordered(self, found: list[Candidate], newcomer: Entry | None) -> list[Candidate]:
        if len(found) == 1:
            return found
        free = [candidate for candidate in found if not candidate.held_back]
        held = [candidate for candidate in found if candidate.held_back]
        held.sort(key=lambda c: (c.node.blocked_until_ms, c.node.address))
        if len(free) * 2 < len(found):
            # Where most are ejected, the pool is in trouble and not they: that counts no more.
            spared = [c for c in held if c.held_back == "fails too often"]
            free, held = free + spared, [c for c in held if c not in spared]
        at_once = [candidate for candidate in free if candidate.node.room() >= 1] or free
        drawn = at_once[:DRAWS] if self._ranked else self._draws(at_once)
        free.sort(key=lambda c: (c.cost_pico_usd, c.node.address))
        first = self._first(free, drawn, newcomer)
        rest = [candidate for candidate in free if candidate is not first]
        return [*([first] if first else []), *rest, *held]

    def _draws(self, free: Sequence[Candidate]) -> list[Candidate]:
        weights = [1.0 / (1 + candidate.cost_pico_usd) ** 2 for candidate in free]
        return self._random.choices(free, weights, k=DRAWS) if len(free) > 1 else list(free)

    def _first(
        self, free: Sequence[Candidate], drawn: list[Candidate], newcomer: Entry | None
    ) -> Candidate | None:
        if len(free) < 2:
            return free[0] if free else None
        if newcomer is not None:
            edge = NEWCOMER_EDGE * free[0].cost_pico_usd
            for candidate in free:
                if candidate.node is newcomer.node and candidate.cost_pico_usd <= edge:
                    candidate.how = "newcomer"
                    return candidate
        for candidate in drawn:
            candidate.how = "drawn"
        most = CROWD * (1 + sum(c.node.in_flight for c in free) / len(free))
        for candidate in free:
            if candidate.warm_units and candidate.node.in_flight + 1 <= most:
                candidate.how = "knows the prompt"
                drawn.append(candidate)
        return min(drawn, key=lambda c: c.cost_pico_usd)


def expected_units(job: Job) -> tuple[int, int]:
    """Units in, without what a template adds, and out, that a job will probably use."""
    if job.task in (Task.CHAT, Task.COMPLETION):
        most = DEFAULT_OUTPUT if job.max_output is None else min(job.max_output, DEFAULT_OUTPUT)
        return job.prompt_bytes // BYTES_PER_TOKEN + job.resume_units, job.choices * most
    if job.task is Task.EMBEDDING:
        return job.prompt_bytes // BYTES_PER_TOKEN, 0
    if job.task is Task.TENSOR:
        return job.rows, 0
    if job.task is Task.TRANSCRIPTION:
        return -(-job.audio_ms // 1000), 0
    return 0, job.steps * job.choices
