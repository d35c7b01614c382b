"""What a payer accepts as the output units of a service that tells no token ids."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferpool.identity.signing import Key
from inferpool.payments.checks import ReceiptInvalid, check_receipt
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.encoding import sha256
from inferpool.protocol.evidence import NO_EVIDENCE
from inferpool.protocol.job import Job, Task
from inferpool.protocol.offer import Endpoint, Offer, Service, Terms
from inferpool.protocol.price import exact_pico_usd, maximum, maximum_pico_usd
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.usage import Usage

NODE = Key(sha256(b"node"))
MOST = 20
TERMS = Terms(
    chain_id=1,
    asset=bytes(20),
    asset_name="Test Dollar",
    asset_version="1",
    asset_decimals=6,
    payee=NODE.address,
    receiver_authorizer=NODE.address,
    min_deposit=1,
    withdraw_delay_s=900,
)


def attempt_at(*, audited: bool, task: Task = Task.CHAT) -> Attempt:
    service = Service(
        manifest=sha256(b"m"),
        model="m",
        task=task,
        engine_class="openai@plain/none/remote",
        price_in_pico_usd_per_unit=3,
        price_out_pico_usd_per_unit=5,
        context=100,
        default_max_output=MOST,
        template_overhead=0,
        message_overhead=0,
        resume=audited,
        audited=audited,
    )
    offer = Offer(
        owner=NODE.address,
        node=NODE.address,
        epoch=1,
        sequence=1,
        valid_until_ms=10**12,
        endpoints=(Endpoint("http://127.0.0.1:1"),),
        services=(service,),
        terms=TERMS,
    )
    job = Job(task, "m", prompt_bytes=10, messages=1, rows=10, max_output=MOST)
    return Attempt(
        request_id=sha256(b"r"),
        offer=offer,
        offer_hash=offer.digest(),
        service=service,
        job=job,
        maximum_pico_usd=maximum_pico_usd(job, service),
        maximum_units=maximum(job, service, 6),
        channel_id=sha256(b"c"),
        seed=1,
        started_ms=1,
    )


def check(attempt: Attempt, claimed: int, seen: int) -> None:
    used = Usage(4, claimed)
    charge = exact_pico_usd(used, attempt.service)
    receipt = Receipt(
        request_id=attempt.request_id,
        request_hash=sha256(b"q"),
        response_hash=sha256(b"a"),
        evidence_hash=NO_EVIDENCE,
        manifest=attempt.service.manifest,
        engine_class=attempt.service.engine_class,
        offer_hash=attempt.offer_hash,
        service=0,
        channel_id=attempt.channel_id,
        seq=1,
        prompt_units=used.prompt_units,
        output_units=claimed,
        charge_pico_usd=charge,
        charged_total_pico_usd=charge,
        seed=1,
        started_ms=1,
        ended_ms=2,
        outcome=Outcome.COMPLETE,
    )
    check_receipt(
        SignedReceipt(receipt, NODE.sign(receipt.digest(1))),
        attempt,
        request_hash=sha256(b"q"),
        response_hash=sha256(b"a"),
        output_units=seen,
    )


@pytest.mark.parametrize(("claimed", "seen"), [(7, 7), (9, 7), (MOST, 0), (MOST, MOST + 3)])
def test_between_the_chunks_that_came_and_the_maximum(claimed: int, seen: int) -> None:
    check(attempt_at(audited=False), claimed, seen)


@pytest.mark.parametrize(("claimed", "seen"), [(6, 7), (MOST + 1, 7)])
def test_outside_of_them(claimed: int, seen: int) -> None:
    with pytest.raises(ReceiptInvalid, match="units"):
        check(attempt_at(audited=False), claimed, seen)


@pytest.mark.parametrize(("claimed", "seen"), [(6, 7), (8, 7)])
def test_with_ids_both_count_alike(claimed: int, seen: int) -> None:
    check(attempt_at(audited=True), seen, seen)
    with pytest.raises(ReceiptInvalid, match="output units"):
        check(attempt_at(audited=True), claimed, seen)


def test_what_has_no_output_counts_none() -> None:
    """Tensors are not audited by ids either, and leave nothing to guess: the price is by row."""
    with pytest.raises(ReceiptInvalid, match="output units"):
        check(replace(attempt_at(audited=False, task=Task.TENSOR)), 1, 0)
