"""What a payer checks of a receipt before anything is booked. Pure."""

from __future__ import annotations

from inferpool.identity.signing import verify
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.job import Task
from inferpool.protocol.price import maximum_units, price_pico_usd
from inferpool.protocol.receipt import Receipt, SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt


class ReceiptInvalid(InferpoolError):
    """A receipt that is not this attempt's, or says other than what crossed the wire."""

    default = "receipt_invalid"


_MEMBERS = (
    *("request id", "request hash", "manifest", "class"),
    *("offer", "service", "channel", "response hash"),
)


def check_receipt(
    signed: SignedReceipt,
    attempt: Attempt,
    *,
    request_hash: bytes,
    response_hash: bytes,
    output_units: int,
) -> None:
    """Raise ReceiptInvalid unless the receipt fits the attempt and the answer that was received.

    `response_hash` and `output_units` are what the payer saw itself: token ids; of a text service
    that is not audited, and so tells no ids, the chunks that had text.
    """
    receipt, service = signed.receipt, attempt.service
    found = (
        receipt.request_id,
        receipt.request_hash,
        receipt.manifest,
        receipt.engine_class,
        receipt.offer_hash,
        receipt.service,
        receipt.channel_id,
        receipt.response_hash,
    )
    wanted = (
        attempt.request_id,
        request_hash,
        service.manifest,
        service.engine_class,
        attempt.offer_hash,
        attempt.offer.index(service),
        attempt.channel_id,
        response_hash,
    )
    if found != wanted:
        name = next(n for n, f, w in zip(_MEMBERS, found, wanted, strict=True) if f != w)
        raise ReceiptInvalid(f"The node's receipt is for another {name}.")
    _check_output(receipt.output_units, output_units, attempt)
    _check_charge(receipt, attempt)
    _check_signature(signed, attempt)


def _check_output(claimed: int, seen: int, attempt: Attempt) -> None:
    """Where ids crossed the wire, and where nothing can be left to count, both sides count alike.

    An unaudited text service fronts a server that keeps its token ids to itself. A chunk with text
    holds at least one token and may hold several; tokens without text (an end, a thought that is
    not shown) come in no chunk. So the chunks are the least that an honest count can be, and the
    maximum that the payer agreed to is the most; `_check_charge` holds every receipt below it.
    Whoever buys from such a service takes its word in between, and pays at most the maximum.
    """
    service = attempt.service
    if service.task in (Task.CHAT, Task.COMPLETION) and not service.audited:
        _, most = maximum_units(attempt.job, service)
        if claimed < min(seen, most):
            raise ReceiptInvalid("The node's receipt counts fewer units than chunks that came.")
    elif claimed != seen:
        raise ReceiptInvalid("The node's receipt is for another output units.")


def check_chained(
    short: ChainedReceipt,
    attempt: Attempt,
    *,
    request_hash: bytes,
    response_hash: bytes,
    output_units: int,
) -> Receipt:
    """The receipt that a chained one stands for. Raises ReceiptInvalid where its units or its
    charge are not those of the answer that was received.

    Every other member is the payer's own word; where the node's differs, no signature of its will
    ever cover what the payer has.
    """
    receipt = short.receipt(attempt, request_hash, response_hash)
    _check_output(receipt.output_units, output_units, attempt)
    _check_charge(receipt, attempt)
    return receipt


def check_late_receipt(signed: SignedReceipt, attempt: Attempt) -> None:
    """The same for a receipt fetched after the pipe was cut: the node may have sent more than
    arrived, so hash and count of the answer stay unchecked; the maximum still bounds the charge."""
    receipt, service = signed.receipt, attempt.service
    if receipt.request_id != attempt.request_id or receipt.channel_id != attempt.channel_id:
        raise ReceiptInvalid("The node's receipt is for another request.")
    if (receipt.manifest, receipt.engine_class) != (service.manifest, service.engine_class):
        raise ReceiptInvalid("The node's receipt is for another manifest or class.")
    if receipt.offer_hash != attempt.offer_hash:
        raise ReceiptInvalid("The node's receipt is under another offer.")
    _check_charge(receipt, attempt)
    _check_signature(signed, attempt)


def _check_charge(receipt: Receipt, attempt: Attempt) -> None:
    service, prompt, output = attempt.service, receipt.prompt_units, receipt.output_units
    most_prompt, most_output = maximum_units(attempt.job, service)
    if prompt > most_prompt or output > most_output:
        raise ReceiptInvalid("The node's receipt counts more units than the request can use.")
    exact = price_pico_usd(prompt, output, service)
    if receipt.charge_pico_usd > min(exact, attempt.maximum_pico_usd):
        raise ReceiptInvalid("The node's receipt charges more than units times price.")


def _check_signature(signed: SignedReceipt, attempt: Attempt) -> None:
    digest = signed.receipt.digest(attempt.offer.terms.chain_id)
    try:
        verify(digest, signed.signature, attempt.offer.node)
    except Refused as error:
        raise ReceiptInvalid(f"The node's receipt is not signed by it: {error.message}.") from None
