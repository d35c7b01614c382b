"""A client's preferences, applied: which nodes may serve it, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.offer_index import NEWCOMER_CALLS
from inferpool.gateway.router import Allows, Candidate
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Job
from inferpool.protocol.offer import Service
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences
from inferpool.protocol.price import maximum_pico_usd

# What a second is worth to somebody who sorts by speed: a dollar decides against every price.
_HASTE_PICO_USD_PER_S: Final = 10**12


def value_of_time(preferences: RoutePreferences, usual_pico_usd_per_s: int) -> int:
    """What a second is worth in this choice."""
    if preferences.value_of_time_pico_usd_per_s is not None:
        return preferences.value_of_time_pico_usd_per_s
    if not preferences.sort:
        return usual_pico_usd_per_s
    return 0 if preferences.sort == "price" else _HASTE_PICO_USD_PER_S


def allows(preferences: RoutePreferences, job: Job, now_ms: int) -> Allows | None:
    """Why a service is ruled out, "" where it is not; None where nothing is."""
    if preferences is NO_PREFERENCES or preferences == NO_PREFERENCES:
        return None
    return lambda node, service: _why_not(preferences, job, now_ms, node, service)


def _why_not(
    wanted: RoutePreferences, job: Job, now_ms: int, node: KnownNode, service: Service
) -> str:
    names = {node.address, node.offer.owner}
    most_in, most_out = wanted.max_in_pico_usd_per_unit, wanted.max_out_pico_usd_per_unit
    reasons = (
        (bool(wanted.only) and not names & wanted.only, "not among provider.only"),
        (bool(names & wanted.ignore), "in provider.ignore"),
        (wanted.private, "promises nothing about data"),
        (
            bool(wanted.quantizations) and quantization(service) not in wanted.quantizations,
            "another quantization",
        ),
        (
            (most_in is not None and service.price_in_pico_usd_per_unit > most_in)
            or (most_out is not None and service.price_out_pico_usd_per_unit > most_out),
            "over max_price",
        ),
        (_over(wanted.max_request_pico_usd, job, service), "over max_price.request"),
        (trust(node, now_ms) < wanted.min_trust, "under min_trust"),
    )
    return next((reason for failed, reason in reasons if failed), "")


def _over(most_pico_usd: int | None, job: Job, service: Service) -> bool:
    if most_pico_usd is None:
        return False
    try:
        return maximum_pico_usd(job, service) > most_pico_usd
    except BadRequest:
        return False  # it has no maximum there: the router says so


def trust(node: KnownNode, now_ms: int) -> float:
    """From 0, a stranger, to 1: it has delivered often to us, and does not fail."""
    known = min(1.0, node.memory.served / NEWCOMER_CALLS)
    return known * (1.0 - node.memory.failures.now(now_ms))


def quantization(service: Service) -> str:
    """The middle part of a class: llamacpp@2026.10/q4_1/cpu-avx2 -> q4_1."""
    return service.engine_class.split("/")[1].lower()


def arrange(candidates: Iterable[Candidate], wanted: RoutePreferences) -> list[Candidate]:
    """The candidates as the client wants them tried; what it left open, the router decided."""
    found = list(candidates)
    if wanted is NO_PREFERENCES or wanted == NO_PREFERENCES:
        return found
    place = {address: i for i, address in enumerate(wanted.order)}
    last = len(place)

    def rank(candidate: Candidate) -> tuple[bool, int, bool, float]:
        node = candidate.node
        named = min(place.get(node.address, last), place.get(node.offer.owner, last))
        return (
            bool(candidate.held_back),
            named,
            not _preferred(candidate, wanted),
            _by(candidate, wanted.sort),
        )

    found.sort(key=rank)
    if wanted.allow_fallbacks:
        return found
    return [c for c in found if rank(c)[1] < last] if place else found[:1]


def _preferred(candidate: Candidate, wanted: RoutePreferences) -> bool:
    fast = _unit_us(candidate) * wanted.min_units_per_s <= 1e6
    return fast and candidate.first_ms <= wanted.max_first_ms


def _by(candidate: Candidate, sort: str) -> float:
    if sort == "price":
        return candidate.price_pico_usd
    if sort == "latency":
        return candidate.first_ms
    return _unit_us(candidate) if sort == "throughput" else 0.0


def _unit_us(candidate: Candidate) -> float:
    line = candidate.node.memory.latency(candidate.service.call_class)
    return line.unit_us(candidate.node.lease)
