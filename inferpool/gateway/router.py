"""Which node serves a request: the least expected cost in USD (design D15). Pure.

    cost = price x expected units + value of time x expected time + P(fail) x cost of a retry

Two candidates are drawn with weight cost**-2 and the one with less in flight is taken; the rest
follow by cost, for retries. Every factor is in the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from inferpool.gateway.nodes import KnownNode
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.protocol.offer import Service
from inferpool.protocol.price import exact_pico_usd, maximum_pico_usd, maximum_usage
from inferpool.protocol.usage import Usage

BYTES_PER_TOKEN: Final = 4  # English prose; only an expectation, never a bound
DEFAULT_OUTPUT: Final = 128
UNKNOWN_FIRST_MS: Final = 200


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that can take the job, with the factors of its cost in pico-USD."""

    node: KnownNode
    service: Service
    price_pico_usd: int
    time_pico_usd: int
    risk_pico_usd: int
    maximum_pico_usd: int

    @property
    def cost_pico_usd(self) -> int:
        """The expected cost."""
        return self.price_pico_usd + self.time_pico_usd + self.risk_pico_usd

    def trace(self) -> dict[str, object]:
        """For the stored trace."""
        return {
            "node": to_hex(self.node.address),
            "price_pico_usd": self.price_pico_usd,
            "time_pico_usd": self.time_pico_usd,
            "risk_pico_usd": self.risk_pico_usd,
            "in_flight": self.node.in_flight,
        }


def choose(
    job: Job,
    nodes: Iterable[KnownNode],
    *,
    now_ms: int,
    value_of_time_pico_usd_per_s: int,
    random: Random,
) -> list[Candidate]:
    """Candidates in the order to try. Raises BadRequest(model_not_found), Unavailable(no_node)."""
    found, known = [], False
    refused: BadRequest | None = None
    for node in nodes:
        service = node.offer.service(job.model)
        if service is None or not service.task.serves(job.task):
            continue
        known = True
        if node.alive(now_ms):
            try:
                found.append(_candidate(job, node, service, value_of_time_pico_usd_per_s))
            except BadRequest as error:  # no maximum under this offer; others may have one
                refused = error
    if not known:
        raise BadRequest(
            f"No node offers the model {job.model!r} for {job.task.value};"
            " GET /v1/models lists what there is.",
            code="model_not_found",
            param="model",
        )
    if not found and refused is not None:
        raise refused
    if not found:
        raise Unavailable(
            f"Every node with {job.model!r} is silent or failing now; try again.",
            code="no_node",
            retry_after_s=5,
        )
    free = [candidate for candidate in found if not candidate.node.blocked(now_ms)]
    held_back = [candidate for candidate in found if candidate.node.blocked(now_ms)]
    held_back.sort(key=lambda c: (c.node.blocked_until_ms, c.node.address))
    return [*_ordered(free, random), *held_back]


def _candidate(
    job: Job, node: KnownNode, service: Service, value_of_time_pico_usd_per_s: int
) -> Candidate:
    usage = expected_usage(job, service)
    price = exact_pico_usd(usage, service)
    time_ms = _expected_ms(node, usage)
    time_cost = value_of_time_pico_usd_per_s * time_ms // 1000
    risk = int(node.failures * (price + time_cost))
    return Candidate(node, service, price, time_cost, risk, maximum_pico_usd(job, service))


def expected_usage(job: Job, service: Service) -> Usage:
    """What a job will probably use."""
    if job.task in (Task.CHAT, Task.COMPLETION):
        prompt = job.prompt_bytes // BYTES_PER_TOKEN + service.message_overhead * job.messages
        most = job.max_output or service.default_max_output
        return Usage(prompt + job.resume_units, job.choices * min(most, DEFAULT_OUTPUT))
    if job.task is Task.EMBEDDING:
        overhead = service.message_overhead * job.messages
        return Usage(job.prompt_bytes // BYTES_PER_TOKEN + overhead, 0)
    return maximum_usage(job, service)  # of rows, seconds and steps the maximum is what is used


def _expected_ms(node: KnownNode, usage: Usage) -> int:
    lease = node.lease
    first_ms = (lease.first_unit_ms if lease else 0) or UNKNOWN_FIRST_MS
    wait_ms = lease.expected_wait_ms if lease else 0
    unit_us = lease.unit_us if lease else 0
    return wait_ms + first_ms * (1 + node.in_flight) + usage.output_units * unit_us // 1000


def _ordered(found: Sequence[Candidate], random: Random) -> list[Candidate]:
    by_cost = sorted(found, key=lambda c: (c.cost_pico_usd, c.node.address))
    if len(by_cost) < 2:
        return by_cost
    weights = [1.0 / (1 + candidate.cost_pico_usd) ** 2 for candidate in by_cost]
    drawn = random.choices(by_cost, weights, k=2)
    first = min(drawn, key=lambda c: (1 + c.node.in_flight) * (1 + c.cost_pico_usd))
    return [first, *(candidate for candidate in by_cost if candidate is not first)]
