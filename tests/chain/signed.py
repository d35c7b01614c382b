"""What nodes sign, for the tests of the court: receipts and offers with everything in place, of
which a test changes what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferpool.chain.addresses import DEV_CHAIN_ID, DEV_DOLLAR_ADDRESS, DOLLAR_NAME
from inferpool.identity.signing import Key
from inferpool.protocol.job import Task
from inferpool.protocol.offer import Endpoint, Offer, Service, SignedOffer, Terms
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PRICE_IN, PRICE_OUT = 50, 200


def service(number: int, **changes: Any) -> Service:
    """One of an offer's services; each has its own manifest, class and prices."""
    draft = Service(
        manifest=bytes([number + 1]) * 32,
        model=f"model-{number}",
        task=Task.CHAT,
        engine_class=f"fake@1/f32/cpu-{number}",
        price_in_pico_usd_per_unit=PRICE_IN * (number + 1),
        price_out_pico_usd_per_unit=PRICE_OUT * (number + 1),
        context=8192,
        default_max_output=256,
        template_overhead=16,
        message_overhead=4,
        resume=True,
        audited=False,
    )
    return replace(draft, **changes)


def offer(
    node: Key, owner: bytes, chain_id: int = DEV_CHAIN_ID, signer: Key | None = None, **changes: Any
) -> SignedOffer:
    """A node's offer of two services."""
    draft = Offer(
        owner=owner,
        node=node.address,
        epoch=1,
        sequence=1,
        valid_until_ms=1_800_000_600_000,
        endpoints=(Endpoint("https://node.example", b"\x11" * 32),),
        services=(service(0), service(1)),
        terms=Terms(
            chain_id=chain_id,
            asset=DEV_DOLLAR_ADDRESS,
            asset_name=DOLLAR_NAME,
            asset_version="1",
            asset_decimals=6,
            payee=owner,
            receiver_authorizer=node.address,
            min_deposit=1000,
            withdraw_delay_s=900,
        ),
    )
    draft = replace(draft, **changes)
    return SignedOffer(draft, (signer or node).sign(draft.digest()))


def receipt(
    node: Key, signed: SignedOffer, chain_id: int = DEV_CHAIN_ID, **changes: Any
) -> SignedReceipt:
    """A node's honest receipt under an offer, for service 0 unless `service` says otherwise."""
    number = changes.get("service", 0)
    services = signed.offer.services
    chosen = services[number] if number < len(services) else services[0]
    draft = Receipt(
        request_id=b"\x01" * 32,
        request_hash=b"\x02" * 32,
        response_hash=b"\x03" * 32,
        evidence_hash=bytes(32),
        manifest=chosen.manifest,
        engine_class=chosen.engine_class,
        offer_hash=signed.offer.digest(),
        service=number,
        channel_id=b"\x04" * 32,
        seq=1,
        prompt_units=10,
        output_units=20,
        charge_pico_usd=0,
        charged_total_pico_usd=10**6,
        seed=7,
        started_ms=1_800_000_000_000,
        ended_ms=1_800_000_001_000,
        outcome=Outcome.COMPLETE,
    )
    due = (
        draft.prompt_units * chosen.price_in_pico_usd_per_unit
        + draft.output_units * chosen.price_out_pico_usd_per_unit
    )
    draft = replace(draft, **({"charge_pico_usd": due} | changes))
    return SignedReceipt(draft, node.sign(draft.digest(chain_id)))


def malleable(signature: bytes) -> bytes:
    """The other signature of the same key over the same digest: n - s, and the other parity."""
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))
