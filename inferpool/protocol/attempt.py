"""The attempt: the unit of everything. One request of a client becomes one or more of them."""

from __future__ import annotations

from inferpool.protocol.job import Job
from inferpool.protocol.offer import Offer, Service
from inferpool.protocol.value import value


@value
class Attempt:
    """One try at one node under one offer, with one maximum and at most one receipt.

    `request_id`: 32 bytes that its payer chose, never twice. `maximum_pico_usd` is the price that
    both sides compute from job and offer; `maximum_units` the same in base units, rounded up.
    """

    request_id: bytes
    offer: Offer
    offer_hash: bytes
    service: Service
    job: Job
    maximum_pico_usd: int
    maximum_units: int
    channel_id: bytes
    seed: int
    started_ms: int
