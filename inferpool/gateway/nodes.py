"""One node as this gateway knows it: its offer, its lease, how it did, what holds it back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from inferpool.gateway.memory import NodeMemory
from inferpool.protocol.lease import Lease
from inferpool.protocol.limits import LEASE_VALID_MS
from inferpool.protocol.offer import Endpoint, Offer
from inferpool.transport.base import Transport
from inferpool.transport.tls import NO_TLS

BLOCK_FIRST_MS: Final = 500
BLOCK_MAX_MS: Final = 60_000
EJECT_SHARE: Final = 0.5  # of the last calls failed: an outlier, however often it succeeds between
EJECT_CALLS: Final = 8  # none is judged on fewer
EJECT_FIRST_MS: Final = 30_000
EJECT_MAX_MS: Final = 600_000
OVERLOADED: Final = "overloaded"


@dataclass(slots=True)
class KnownNode:
    """A node whose offer was checked. Times in UNIX ms."""

    offer: Offer
    offer_hash: bytes
    url: str  # the endpoint that gave the offer
    transport: Transport
    lease: Lease | None = None
    lease_ms: int = 0
    lease_in_flight: int = 0  # of ours, when the lease came
    slots: int = 1  # the most that were seen free and ours at once
    in_flight: int = 0
    memory: NodeMemory = field(default_factory=NodeMemory)
    blocked_until_ms: int = 0
    block_ms: int = 0
    probing: bool = False  # one call finds out whether it is well again
    ejected_until_ms: int = 0
    eject_ms: int = 0
    ways: tuple[Endpoint, ...] = ()  # the endpoints by which `transport` leads
    reasons: dict[str, int] = field(default_factory=dict)
    asked: int = 0  # choices in which it was a candidate, since the start
    chosen: int = 0
    lost: dict[str, int] = field(default_factory=dict)  # to what it lost the others
    address: bytes = field(init=False)  # the node key's: that of every offer it makes

    def __post_init__(self) -> None:
        self.address = self.offer.node

    @property
    def pipe_is_own(self) -> bool:
        """Whether its pipe is pinned to its key; else all nodes at that URL share one."""
        return any(endpoint.tls_spki != NO_TLS for endpoint in self.ways)

    @property
    def failures(self) -> float:
        """Share of the last calls that failed, 0 to 1."""
        return max(self.memory.failures.fast, self.memory.failures.slow)

    def alive(self, now_ms: int) -> bool:
        """Whether offer and lease are valid."""
        return self.offer.valid_until_ms > now_ms and self.lease_ms + LEASE_VALID_MS > now_ms

    def renew(self, lease: Lease, now_ms: int) -> None:
        """A lease came."""
        self.lease, self.lease_ms, self.lease_in_flight = lease, now_ms, self.in_flight
        self.slots = max(1, lease.free_slots + self.in_flight)

    def room(self) -> int:
        """Slots that are free now, as far as we know; below 1 a call would queue."""
        free = self.lease.free_slots if self.lease else 1
        return free - (self.in_flight - self.lease_in_flight)

    def held_back(self, now_ms: int) -> str:
        """Why it is tried only where there is no other; '' where nothing is against it."""
        if self.blocked_until_ms > now_ms or self.probing:
            return "failed before"
        if self.ejected_until_ms > now_ms:
            return "fails too often"
        if self.in_flight >= self.memory.cap:
            return "full"
        return ""

    def blocked(self, now_ms: int) -> bool:
        """Whether something holds it back."""
        return bool(self.held_back(now_ms))

    def began(self) -> None:
        """A call goes to it; after a pause the first one is a probe, and goes alone."""
        self.in_flight += 1
        if self.block_ms:
            self.probing = True

    def ended(self) -> None:
        """A call is over, however it ended."""
        self.in_flight -= 1
        self.probing = False

    def succeeded(self, now_ms: int) -> None:
        """A call ended with a receipt."""
        self.memory.failures.add(0.0, now_ms)
        self.block_ms = 0

    def failed(self, now_ms: int, reason: str) -> None:
        """A call failed by the node's fault: each failure in a row doubles the pause.

        A node that is full only takes fewer of ours at once for a while.
        """
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if reason == OVERLOADED:
            self.memory.overloaded(self.in_flight)
            self.blocked_until_ms = max(self.blocked_until_ms, now_ms + BLOCK_FIRST_MS)
            return
        failures = self.memory.failures
        failures.add(1.0, now_ms)
        self.block_ms = min(BLOCK_MAX_MS, max(BLOCK_FIRST_MS, 2 * self.block_ms))
        self.blocked_until_ms = now_ms + self.block_ms
        if failures.calls >= EJECT_CALLS and failures.fast >= EJECT_SHARE:
            self.eject_ms = min(EJECT_MAX_MS, max(EJECT_FIRST_MS, 2 * self.eject_ms))
            self.ejected_until_ms = now_ms + self.eject_ms
