"""Cases for the court: whether what a node signed proves a lie, and how the contract is told.

Pure. The rules are those of `contracts/Disputes.vy`, which says why they are these; nobody who
keeps to them is ever caught. Strings go to the contract as their hashes, offers with one service
opened and the others as hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from inferpool.identity.signing import recover
from inferpool.protocol.eip712 import array, keccak256, string
from inferpool.protocol.errors import Refused
from inferpool.protocol.offer import Offer, Service, SignedOffer
from inferpool.protocol.price import exact_pico_usd
from inferpool.protocol.receipt import Receipt, SignedReceipt

Struct = tuple[Any, ...]

_NO_HASH: Final = bytes(32)
_NO_SERVICE: Final[Struct] = (*(4 * (_NO_HASH,)), *(6 * (0,)), False, False)


class Rule(IntEnum):
    """What a case proves; the number is that of the event `Judged`."""

    TWO_RECEIPTS = 1
    OVERCHARGE = 2
    OTHER_MANIFEST = 3


@dataclass(frozen=True, slots=True)
class Case:
    """Something that the court would punish: the node key that signed, the receipt, and the
    other receipt or the offer that proves it wrong."""

    rule: Rule
    node: bytes
    receipt: SignedReceipt
    other: SignedReceipt | SignedOffer

    def call(self) -> tuple[str, Struct]:
        """The contract's function and its arguments."""
        if isinstance(self.other, SignedReceipt):
            arguments = (signed_receipt_struct(self.receipt), signed_receipt_struct(self.other))
            return "report_two_receipts", arguments
        is_overcharge = self.rule is Rule.OVERCHARGE
        function = "report_overcharge" if is_overcharge else "report_other_manifest"
        return function, (exhibit_struct(self.receipt, self.other),)


def find_case(
    receipts: Iterable[SignedReceipt], offers: Iterable[SignedOffer], chain_id: int
) -> Case | None:
    """The first case that receipts and offers of any nodes make, or None."""
    return next(find_cases(receipts, offers, chain_id), None)


def find_cases(
    receipts: Iterable[SignedReceipt], offers: Iterable[SignedOffer], chain_id: int
) -> Iterator[Case]:
    """All cases: of each receipt alone, and of it with the first one in its place. Signatures
    that prove nothing are passed over, here as in court."""
    known = {
        signed.offer.digest(): signed
        for signed in offers
        if signed.offer.terms.chain_id == chain_id
    }
    seen: dict[tuple[object, ...], tuple[bytes, SignedReceipt]] = {}
    for signed in receipts:
        receipt, digest = signed.receipt, signed.receipt.digest(chain_id)
        node = signer(digest, signed.signature)
        if node is None:
            continue
        found = set()
        for place in _places(node, receipt):
            first_digest, first = seen.setdefault(place, (digest, signed))
            if first_digest != digest and first_digest not in found:
                found.add(first_digest)
                yield Case(Rule.TWO_RECEIPTS, node, first, signed)
        offer = known.get(receipt.offer_hash)
        if offer is None or not is_offer_of(offer, node):
            continue
        if is_overcharged(receipt, offer.offer):
            yield Case(Rule.OVERCHARGE, node, signed, offer)
        if is_other_manifest(receipt, offer.offer):
            yield Case(Rule.OTHER_MANIFEST, node, signed, offer)


def _places(node: bytes, receipt: Receipt) -> tuple[tuple[object, ...], ...]:
    """The two places of which each holds one receipt."""
    return (
        (node, receipt.channel_id, "id", receipt.request_id),
        (node, receipt.channel_id, "seq", receipt.seq),
    )


def signer(digest: bytes, signature: bytes) -> bytes | None:
    """The key that signed a digest, or None for a signature that proves nothing."""
    try:
        return recover(digest, signature)
    except Refused:
        return None


def is_in_one_place(first: Receipt, second: Receipt) -> bool:
    """Whether two receipts of one channel have one request id or one number."""
    return first.request_id == second.request_id or first.seq == second.seq


def is_offer_of(signed: SignedOffer, node: bytes) -> bool:
    """Whether a node key signed an offer that names it."""
    return signed.offer.node == node == signer(signed.offer.digest(), signed.signature)


def opened(receipt: Receipt, offer: Offer) -> Service | None:
    """The service that a receipt names in its offer, or None where there is none."""
    return offer.services[receipt.service] if receipt.service < len(offer.services) else None


def is_overcharged(receipt: Receipt, offer: Offer) -> bool:
    """Whether a receipt charges more than its units cost."""
    service = opened(receipt, offer)
    return service is not None and receipt.charge_pico_usd > exact_pico_usd(receipt.usage, service)


def is_other_manifest(receipt: Receipt, offer: Offer) -> bool:
    """Whether a receipt is not of the service that it names, or of none that its offer has."""
    service = opened(receipt, offer)
    return service is None or (receipt.manifest, receipt.engine_class) != (
        service.manifest,
        service.engine_class,
    )


# -- the contract's structs, in the order of their members


def receipt_struct(receipt: Receipt) -> Struct:
    """`Receipt`: the class by its hash."""
    return (
        receipt.request_id,
        receipt.request_hash,
        receipt.response_hash,
        receipt.evidence_hash,
        receipt.manifest,
        string(receipt.engine_class),
        receipt.offer_hash,
        receipt.service,
        receipt.channel_id,
        receipt.seq,
        receipt.prompt_units,
        receipt.output_units,
        receipt.charge_pico_usd,
        receipt.charged_total_pico_usd,
        receipt.seed,
        receipt.started_ms,
        receipt.ended_ms,
        int(receipt.outcome),
    )


def signed_receipt_struct(signed: SignedReceipt) -> Struct:
    """`SignedReceipt`."""
    return (receipt_struct(signed.receipt), signed.signature)


def service_struct(service: Service) -> Struct:
    """`Service`: its names by their hashes."""
    return (
        service.manifest,
        string(service.model),
        string(service.task),
        string(service.engine_class),
        service.price_in_pico_usd_per_unit,
        service.price_out_pico_usd_per_unit,
        service.context,
        service.default_max_output,
        service.template_overhead,
        service.message_overhead,
        service.resume,
        service.audited,
    )


def offer_struct(offer: Offer) -> Struct:
    """`Offer`: endpoints, services and terms by their hashes."""
    return (
        offer.owner,
        offer.node,
        offer.epoch,
        offer.sequence,
        offer.valid_until_ms,
        array(endpoint.struct_hash() for endpoint in offer.endpoints),
        [service.struct_hash() for service in offer.services],
        offer.terms.struct_hash(),
    )


def exhibit_struct(receipt: SignedReceipt, offer: SignedOffer) -> Struct:
    """`Exhibit`: receipt and offer, with the service opened that the receipt names."""
    service = opened(receipt.receipt, offer.offer)
    return (
        *signed_receipt_struct(receipt),
        offer_struct(offer.offer),
        offer.signature,
        service_struct(service) if service is not None else _NO_SERVICE,
    )


def offence(node: bytes, first: bytes, second: bytes = _NO_HASH) -> bytes:
    """The contract's key of an offence: of one receipt's digest, or of two, the lower one first."""
    return keccak256(node.rjust(32, b"\0") + first + second)
