"""One node as this gateway knows it: its offer, its lease, how it did, what it is owed."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferpool.protocol.lease import Lease
from inferpool.protocol.limits import LEASE_VALID_MS
from inferpool.protocol.offer import Offer
from inferpool.transport.base import Transport
from inferpool.transport.tls import NO_TLS

_SMOOTHING = 0.2


@dataclass(slots=True)
class KnownNode:
    """A node whose offer was checked. Times in UNIX ms."""

    offer: Offer
    offer_hash: bytes
    url: str  # the endpoint that gave the offer
    transport: Transport
    lease: Lease | None = None
    lease_ms: int = 0
    in_flight: int = 0
    failures: float = 0.0  # running share of attempts that failed, 0 to 1
    blocked_until_ms: int = 0
    block_ms: int = 0
    tls_spki: bytes = NO_TLS  # the key that `transport` is pinned to
    reasons: dict[str, int] = field(default_factory=dict)
    asked: int = 0  # choices in which it was a candidate, since the start
    chosen: int = 0
    lost: dict[str, int] = field(default_factory=dict)  # to what it lost the others

    @property
    def address(self) -> bytes:
        """The node key's address."""
        return self.offer.node

    def alive(self, now_ms: int) -> bool:
        """Whether offer and lease are valid."""
        return self.offer.valid_until_ms > now_ms and self.lease_ms + LEASE_VALID_MS > now_ms

    def blocked(self, now_ms: int) -> bool:
        """Whether its last failures keep it back: tried only where there is no other."""
        return self.blocked_until_ms > now_ms

    def succeeded(self) -> None:
        """An attempt ended with a receipt."""
        self.failures *= 1 - _SMOOTHING
        self.block_ms = 0

    def failed(self, now_ms: int, reason: str) -> None:
        """An attempt failed by the node's fault: each failure in a row doubles the pause."""
        self.failures += _SMOOTHING * (1 - self.failures)
        self.block_ms = min(60_000, max(500, 2 * self.block_ms))
        self.blocked_until_ms = now_ms + self.block_ms
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
