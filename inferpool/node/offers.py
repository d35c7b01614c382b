"""The node's offers: signed here, renewed in time, and remembered while they are valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from inferpool.clock import Clock
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import PaymentRequired
from inferpool.protocol.limits import CLOCK_SKEW_MS, OFFER_RENEW_MS, OFFER_VALID_MS
from inferpool.protocol.offer import Endpoint, Offer, Service, SignedOffer, Terms


class OfferBook:
    """Signs offers for what `services` tells now. `epoch` must grow at each start."""

    def __init__(
        self,
        key: Key,
        owner: bytes,
        owner_signature: bytes,
        owner_valid_until_ms: int,
        endpoints: Sequence[Endpoint],
        terms: Terms,
        services: Callable[[], Sequence[Service]],
        clock: Clock,
        epoch: int,
    ) -> None:
        self._key, self._owner = key, owner
        self._vouched = (owner_signature, owner_valid_until_ms)
        self._endpoints, self.terms = tuple(endpoints), terms
        self._services, self._clock = services, clock
        self.epoch, self.sequence = epoch, 0
        self._signed: SignedOffer | None = None
        self.digest = b""  # of the offer that was signed last
        self._signed_ms = 0
        self._recent: dict[bytes, Offer] = {}
        self._sold: dict[tuple[bytes, str], Service] = {}  # of those, as they were asked for

    def current(self) -> SignedOffer:
        """The offer to show now; a new one is signed when services changed or time is due."""
        now = self._clock.now_ms()
        services = tuple(self._services())
        signed = self._signed
        if (
            signed is None
            or signed.offer.services != services
            or signed.offer.terms != self.terms
            or now - self._signed_ms >= OFFER_RENEW_MS
        ):
            signed = self._sign(services, now)
        return signed

    def _sign(self, services: tuple[Service, ...], now_ms: int) -> SignedOffer:
        self.sequence += 1
        offer = Offer(
            owner=self._owner,
            node=self._key.address,
            epoch=self.epoch,
            sequence=self.sequence,
            valid_until_ms=now_ms + OFFER_VALID_MS,
            endpoints=self._endpoints,
            services=services,
            terms=self.terms,
        )
        self.digest = digest = offer.digest()
        signed = SignedOffer(offer, self._key.sign(digest), *self._vouched)
        more = signed.parameters_digest()
        if more is not None:
            signed = replace(signed, parameters_signature=self._key.sign(more))
        self._signed = signed
        self._signed_ms = now_ms
        self._recent = {
            known: old
            for known, old in self._recent.items()
            if old.valid_until_ms + CLOCK_SKEW_MS >= now_ms
        }
        self._recent[digest] = offer
        self._sold.clear()
        return self._signed

    def accepted(self, offer_hash: bytes) -> Offer:
        """The offer that a payer took. Raises PaymentRequired(payment_terms) where it ended."""
        offer = self._recent.get(offer_hash)
        if offer is None or offer.valid_until_ms + CLOCK_SKEW_MS < self._clock.now_ms():
            raise PaymentRequired(
                f"The offer {to_hex(offer_hash)} is not valid here;"
                " fetch /.well-known/inferpool/offer.",
                code="payment_terms",
            )
        return offer

    def sold(self, offer: Offer, offer_hash: bytes, model: str) -> Service | None:
        """The service of an offer of ours that a model's name or id asks for."""
        key = (offer_hash, model)
        if key not in self._sold:
            found = offer.service(model)
            if found is None:  # a name that is none of ours is not kept
                return None
            self._sold[key] = found
        return self._sold[key]
