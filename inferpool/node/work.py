"""One paid piece of work on the node: admitted, metered, and ended by exactly one receipt.

`Work` is a context: entering it holds the maximum on the payer's channel; leaving it without a
receipt releases the hold. The order that keeps both sides whole: the voucher is durable before
the first byte leaves, the receipt is durable before it leaves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from inferpool.clock import Clock
from inferpool.identity.signing import Key
from inferpool.payments.chains import ReceiptChain
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol.evidence import NO_EVIDENCE, Evidence
from inferpool.protocol.offer import Offer, Service
from inferpool.protocol.price import exact_pico_usd
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from inferpool.protocol.usage import Usage


@dataclass(slots=True)
class Work:
    """One attempt, seen from the node. Amounts in pico-USD, times in UNIX ms."""

    request_id: bytes
    request_hash: bytes
    offer: Offer
    offer_hash: bytes
    service: Service
    maximum_usage: Usage
    channel: PayeeChannel
    seed: int
    own: bool  # our own payer: receipts inside the stream, exact charge at the end
    started_ms: int
    chained: bool = False  # the payer takes a chained receipt, where the answer comes whole
    answer_hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    prompt_units: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    counted: int = 0  # output units where there are no ids
    signed: SignedReceipt | None = None
    short: ChainedReceipt | None = None  # of a chained receipt, which has no signature of its own
    reported: int = 0  # base units told to the payer for this request

    @property
    def usage(self) -> Usage:
        """What the work used so far."""
        return Usage(self.prompt_units, len(self.ids) or self.counted)

    @property
    def charged_usage(self) -> Usage:
        """The same within the maximum: what the receipt counts."""
        most = self.maximum_usage
        return Usage(
            min(self.prompt_units, most.prompt_units),
            min(len(self.ids) or self.counted, most.output_units),
        )

    def evidence(self) -> Evidence | None:
        """Token ids and log-probabilities, for text."""
        if not self.ids:
            return None
        return Evidence(self.prompt_units, tuple(self.ids), tuple(self.logprobs))


async def sign_receipt(
    work: Work,
    key: Key,
    ledger: PayeeLedger,
    clock: Clock,
    outcome: Outcome,
    chain: ReceiptChain | None = None,
) -> SignedReceipt:
    """Charge what was used, sign the receipt, or take it into the chain, and make it durable.

    The units never pass the maximum that both sides computed: a tokenizer that normalises text can
    make more tokens than there were bytes, and the node forfeits those. There is no await between
    the charge and the queueing of the write, so that receipts reach the ledger in the order of
    their numbers.
    """
    assert work.signed is None, "one receipt for a request id"
    used = work.charged_usage
    charge = exact_pico_usd(used, work.service)
    channel, evidence = work.channel, work.evidence()
    work.reported += channel.charge(work.request_id, charge)
    receipt = Receipt(
        request_id=work.request_id,
        request_hash=work.request_hash,
        response_hash=work.answer_hash.digest(),
        evidence_hash=evidence.hash() if evidence else NO_EVIDENCE,
        manifest=work.service.manifest,
        engine_class=work.service.engine_class,
        offer_hash=work.offer_hash,
        service=work.offer.index(work.service),
        channel_id=channel.channel_id,
        seq=channel.seq,
        prompt_units=used.prompt_units,
        output_units=used.output_units,
        charge_pico_usd=charge,
        charged_total_pico_usd=channel.total_pico_usd,
        seed=work.seed,
        started_ms=work.started_ms,
        ended_ms=clock.now_ms(),
        outcome=outcome,
    )
    if chain is None:
        work.signed = SignedReceipt(receipt, key.sign(receipt.digest(channel.chain_id)))
    else:
        work.short = chain.append(receipt, key, channel.chain_id, receipt.ended_ms)
        work.signed = SignedReceipt(receipt, b"")
    await ledger.save_receipt(channel, work.signed, work.service.model)
    return work.signed
