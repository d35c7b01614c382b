"""Channels, keys, offers and receipts for these tests: real ones, made from fixed secrets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferpool.identity.signing import Key
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payer import PayerChannel
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.encoding import sha256
from inferpool.protocol.job import Job, Task
from inferpool.protocol.offer import Endpoint, Offer, Service, Terms
from inferpool.protocol.price import exact_pico_usd, maximum, maximum_pico_usd
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.usage import Usage
from inferpool.protocol.voucher import ChannelConfig

CHAIN_ID = 84_532
PICO = 10**6  # pico-USD in one base unit of a six-decimal token

PAYER = Key(sha256(b"payer"))
AUTHORIZER = Key(sha256(b"authorizer"))
STRANGER = Key(sha256(b"stranger"))
OWNER = Key(sha256(b"owner"))
NODE = Key(sha256(b"node"))
TOKEN = sha256(b"token")[:20]

TERMS = Terms(
    chain_id=CHAIN_ID,
    asset=TOKEN,
    asset_name="Test Dollar",
    asset_version="1",
    asset_decimals=6,
    payee=OWNER.address,
    receiver_authorizer=NODE.address,
    min_deposit=1000,
    withdraw_delay_s=900,
)
CONFIG = ChannelConfig(
    payer=PAYER.address,
    payer_authorizer=AUTHORIZER.address,
    receiver=OWNER.address,
    receiver_authorizer=NODE.address,
    token=TOKEN,
    withdraw_delay_s=900,
    salt=sha256(b"salt"),
)
CHANNEL_ID = CONFIG.channel_id(CHAIN_ID)
SERVICE = Service(
    manifest=sha256(b"manifest"),
    model="fake-chat",
    task=Task.CHAT,
    engine_class="fake@1/none/none",
    price_in_pico_usd_per_unit=150_000,
    price_out_pico_usd_per_unit=600_000,
    context=4096,
    default_max_output=64,
    template_overhead=0,
    message_overhead=8,
    resume=True,
    audited=True,
)
OTHER = replace(SERVICE, manifest=sha256(b"other manifest"), model="other-chat")
OFFER = Offer(
    owner=OWNER.address,
    node=NODE.address,
    epoch=1,
    sequence=1,
    valid_until_ms=2_000_000,
    endpoints=(Endpoint("http://node.test"),),
    services=(OTHER, SERVICE),
    terms=TERMS,
)


def name(number: int) -> bytes:
    """A request id."""
    return sha256(b"request %d" % number)


def payer_channel(balance: int = 0, **more: Any) -> PayerChannel:
    """The payer's side."""
    return PayerChannel(CONFIG, CHANNEL_ID, CHAIN_ID, 6, balance=balance, **more)


def payee_channel(balance: int = 0, **more: Any) -> PayeeChannel:
    """The node's side."""
    return PayeeChannel(CONFIG, CHANNEL_ID, CHAIN_ID, 6, balance=balance, **more)


def attempt(number: int = 1, max_output: int | None = 40) -> Attempt:
    """An attempt at SERVICE: 100 bytes of prompt in one message."""
    job = Job(Task.CHAT, "fake-chat", prompt_bytes=100, messages=1, max_output=max_output)
    return Attempt(
        request_id=name(number),
        offer=OFFER,
        offer_hash=OFFER.digest(),
        service=SERVICE,
        job=job,
        maximum_pico_usd=maximum_pico_usd(job, SERVICE),
        maximum_units=maximum(job, SERVICE, 6),
        channel_id=CHANNEL_ID,
        seed=7,
        started_ms=1_000,
    )


def receipt(number: int, seq: int, charge: int, total: int, **changes: Any) -> Receipt:
    """A receipt that books `charge` pico-USD."""
    usage = Usage(20, 10)
    made = Receipt(
        request_id=name(number),
        request_hash=sha256(b"body"),
        response_hash=sha256(b"answer"),
        evidence_hash=sha256(b"evidence"),
        manifest=SERVICE.manifest,
        engine_class=SERVICE.engine_class,
        offer_hash=OFFER.digest(),
        service=1,
        channel_id=CHANNEL_ID,
        seq=seq,
        prompt_units=usage.prompt_units,
        output_units=usage.output_units,
        charge_pico_usd=charge,
        charged_total_pico_usd=total,
        seed=7,
        started_ms=1_000,
        ended_ms=1_200,
        outcome=Outcome.COMPLETE,
    )
    return replace(made, **changes)


def honest_receipt(number: int = 1, seq: int = 1, **changes: Any) -> Receipt:
    """A receipt that charges units times price, the first of its channel."""
    charge = exact_pico_usd(Usage(20, 10), SERVICE)
    return replace(receipt(number, seq, charge, charge), **changes)


def signed(made: Receipt, key: Key = NODE) -> SignedReceipt:
    """The receipt with its signature."""
    return SignedReceipt(made, key.sign(made.digest(CHAIN_ID)))
