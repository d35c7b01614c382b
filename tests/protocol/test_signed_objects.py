"""Offers, receipts, leases, evidence and channel terms: round trips, digests, hostile input."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol.encoding import canonical
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.evidence import Evidence
from inferpool.protocol.job import Task
from inferpool.protocol.lease import LEASE_MAX, Lease
from inferpool.protocol.limits import OFFER_MAX, RECEIPT_MAX, TEXT_MAX
from inferpool.protocol.offer import Endpoint, Offer, Service, SignedOffer, Terms, binding_digest
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.voucher import ChannelConfig, voucher_digest
from tests.protocol import junk
from tests.protocol.vectors import cases, encoded

T = TypeVar("T")


def whole(bits: int) -> st.SearchStrategy[int]:
    edges = [0, 1, 2**bits - 1, min(2**53 - 1, 2**bits - 1), min(2**53, 2**bits - 1)]
    return st.sampled_from(edges) | st.integers(0, 2**bits - 1)


u32, u64, u128 = whole(32), whole(64), whole(128)
b20, b32, b65 = (st.binary(min_size=n, max_size=n) for n in (20, 32, 65))
names = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]), max_size=TEXT_MAX // 4
) | st.sampled_from(["", "x" * TEXT_MAX, "🦙" * (TEXT_MAX // 4), '"\\/'])

endpoints = st.builds(Endpoint, names, b32)
services = st.builds(
    Service, b32, names, st.sampled_from(Task), names, u64, u64, u32, u32, u32, u32,
    st.booleans(), st.booleans(),
)  # fmt: skip
terms = st.builds(
    Terms, u64, b20, names, names, st.integers(0, 12), b20, b20, u128,
    st.integers(900, 2_592_000), st.integers(1, 2**32 - 1),
)  # fmt: skip
offers = st.builds(
    Offer, b20, b20, u64, u64, u64,
    st.lists(endpoints, max_size=3).map(tuple),
    st.lists(services, max_size=4, unique_by=lambda s: (s.manifest, s.engine_class)).map(tuple),
    terms,
)  # fmt: skip
receipts = st.builds(
    Receipt, b32, b32, b32, b32, b32, names, b32, st.integers(0, 127), b32, u64, u64, u64, u128,
    u128, u64, st.integers(0, 2**63), st.integers(2**63, 2**64 - 1), st.sampled_from(Outcome),
)  # fmt: skip
leases = st.builds(Lease, u64, u64, u32, u32, u32, u32)
configs = st.builds(ChannelConfig, b20, b20, b20, b20, b20, whole(40), b32)
logprobs = st.floats(width=32, max_value=0, allow_nan=False) | st.just(float("-inf"))
evidences = st.lists(st.tuples(u32, logprobs), max_size=8).flatmap(
    lambda pairs: st.builds(
        Evidence,
        u32,
        st.just(tuple(i for i, _ in pairs)),
        st.just(tuple(p for _, p in pairs)),
    )
)

SIGNED_OFFER = cases("offer")[1]["wire"]
SIGNED_RECEIPT = cases("receipt")[0]["wire"]
LEASE = cases("lease")[0]["wire"]
CONFIG = cases("voucher")[0]["wire"]


def refused_or(decode: Callable[[bytes], T], data: bytes) -> T | None:
    """What was decoded, or None where it was refused as it should be."""
    answer = junk.answer(decode, data)
    if isinstance(answer, InferpoolError):
        assert isinstance(answer, Refused)
        assert answer.code == "bad_encoding"
        return None
    return answer


def test_the_bodies_to_mutate_are_valid() -> None:
    SignedOffer.decode(canonical(SIGNED_OFFER))
    SignedReceipt.decode(canonical(SIGNED_RECEIPT))
    Lease.decode(canonical(LEASE))
    ChannelConfig.from_wire(CONFIG)


# Round trips


@given(offers, b65, b65 | st.just(b""), u64)
def test_offer_round_trip(offer: Offer, signature: bytes, owner: bytes, until_ms: int) -> None:
    signed = SignedOffer(offer, signature, owner, until_ms)
    assert SignedOffer.decode(signed.encode()) == signed


@given(offers, b65, st.lists(st.sets(st.sampled_from(["a", "b_c", "logprobs"])), min_size=4))
def test_offer_with_parameters_round_trip(
    offer: Offer, signature: bytes, names: list[set[str]]
) -> None:
    services = tuple(
        dataclasses.replace(service, parameters=tuple(sorted(taken)))
        for service, taken in zip(offer.services, names, strict=False)
    )
    signed = SignedOffer(dataclasses.replace(offer, services=services), signature)
    assert signed.offer.digest() == offer.digest()  # courts know nothing of them
    if signed.parameters_digest() is not None:
        signed = dataclasses.replace(signed, parameters_signature=signature)
    assert SignedOffer.decode(signed.encode()) == signed


@pytest.mark.parametrize(
    "texts",
    [
        *(["b,a"], ["a,a"], ["A"], ["a,"], ["a b"], [","], [""], [1], [], ["a", "b"], "a", None),
        ["x" * 33],
        [",".join(sorted(a + b for a in "abcdef" for b in "uvwxyz"))],
    ],
)
def test_parameters_have_one_form(texts: Any) -> None:
    """Sorted, each once, small letters; and none where there is nothing to say."""
    good = cases("parameters")[0]["wire"]
    SignedOffer.decode(canonical(good))
    with pytest.raises(Refused) as refused:
        SignedOffer.decode(canonical({**good, "parameters": texts}))
    assert refused.value.code == "bad_encoding"
    with pytest.raises(Refused):
        SignedOffer.decode(canonical({k: v for k, v in good.items() if k != "parameters"}))


@given(receipts, b65)
def test_receipt_round_trip(receipt: Receipt, signature: bytes) -> None:
    signed = SignedReceipt(receipt, signature)
    assert signed.encode() == canonical(signed.to_wire())
    assert SignedReceipt.decode(signed.encode()) == signed
    assert SignedReceipt.from_header(signed.header()) == signed
    assert SignedReceipt.from_wire(json.loads(json.dumps(signed.to_wire()))) == signed


@given(leases)
def test_lease_round_trip(lease: Lease) -> None:
    assert Lease.decode(lease.encode()) == lease


@given(evidences)
def test_evidence_round_trip(evidence: Evidence) -> None:
    assert Evidence.decode(evidence.encode()) == evidence


@given(configs)
def test_channel_config_round_trip(config: ChannelConfig) -> None:
    assert ChannelConfig.from_wire(json.loads(json.dumps(config.to_wire()))) == config


def test_the_longest_receipt_fits_its_limit() -> None:
    greatest = 2**64 - 1
    text = "🦙" * (TEXT_MAX // 4)
    receipt = Receipt(
        *[b"\xff" * 32] * 5, text, b"\xff" * 32, 127, b"\xff" * 32, greatest, greatest, greatest,
        2**128 - 1, 2**128 - 1, greatest, greatest, greatest, Outcome.FAILED,
    )  # fmt: skip
    for longest in (receipt, dataclasses.replace(receipt, engine_class='"' * TEXT_MAX)):
        signed = SignedReceipt(longest, b"\xff" * 65)
        assert len(signed.encode()) <= RECEIPT_MAX
        assert SignedReceipt.decode(signed.encode()) == signed


def test_a_receipt_does_not_end_before_it_starts() -> None:
    body = junk.put(SIGNED_RECEIPT, ("receipt", "endedMs"), 1)
    with pytest.raises(Refused, match="endedMs"):
        SignedReceipt.decode(json.dumps(body).encode())


# A digest stands for one object


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case Task():
            return Task.IMAGE if value is not Task.IMAGE else Task.CHAT
        case Outcome():
            return Outcome((value + 1) % 3)
        case int():
            return value ^ 1
        case str():
            return value + "x"
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
    raise AssertionError(f"no other value for {value!r}")


def variants(value: Any) -> list[tuple[str, Any]]:
    """The object with each of its own fields changed."""
    return [
        (
            field.name,
            dataclasses.replace(value, **{field.name: changed(getattr(value, field.name))}),
        )
        for field in dataclasses.fields(value)
        if not isinstance(getattr(value, field.name), tuple | Terms)
    ]


@given(offers)
def test_each_field_of_an_offer_counts(offer: Offer) -> None:
    endpoint = Endpoint("https://n.example", b"\1" * 32)
    service = Service(b"\1" * 32, "m", Task.CHAT, "c", 1, 2, 3, 4, 5, 6, True, False)
    offer = dataclasses.replace(offer, endpoints=(endpoint,), services=(service,))
    others = [other for _, other in variants(offer)]
    for part in ("endpoints", "services"):
        (single,) = getattr(offer, part)
        others += [dataclasses.replace(offer, **{part: (item,)}) for _, item in variants(single)]
        others += [dataclasses.replace(offer, **{part: ()})]
        others += [dataclasses.replace(offer, **{part: (single, single)})]
    others += [dataclasses.replace(offer, terms=item) for _, item in variants(offer.terms)]
    digests = [item.digest() for item in (offer, *others)]
    assert len(set(digests)) == len(digests) == 1 + 5 + 2 + 12 + 4 + 10


@given(receipts)
def test_each_field_of_a_receipt_counts(receipt: Receipt) -> None:
    digests = [receipt.digest(1), receipt.digest(2)]
    digests += [other.digest(1) for _, other in variants(receipt)]
    assert len(set(digests)) == len(digests) == 2 + 18


@given(configs, u64)
def test_each_term_of_a_channel_counts(config: ChannelConfig, chain_id: int) -> None:
    ids = [config.channel_id(chain_id), config.channel_id(chain_id ^ 1)]
    ids += [other.channel_id(chain_id) for _, other in variants(config)]
    assert len(set(ids)) == len(ids) == 2 + 7


@given(b32, u128, u64)
def test_each_part_of_a_voucher_counts(channel: bytes, amount: int, chain_id: int) -> None:
    digests = {
        voucher_digest(channel, amount, chain_id),
        voucher_digest(changed(channel), amount, chain_id),
        voucher_digest(channel, amount ^ 1, chain_id),
        voucher_digest(channel, amount, chain_id ^ 1),
    }
    assert len(digests) == 4


def test_a_binding_names_owner_node_and_chain() -> None:
    owner, node = b"\1" * 20, b"\2" * 20
    digests = {
        binding_digest(owner, node, 9, 1),
        binding_digest(node, owner, 9, 1),
        binding_digest(owner, node, 9, 2),
        binding_digest(owner, owner, 9, 1),
        binding_digest(owner, node, 8, 1),
    }
    assert len(digests) == 5


@given(st.integers(max_value=-1) | st.integers(min_value=2**128))
def test_a_voucher_holds_128_bits(amount: int) -> None:
    with pytest.raises(ValueError, match="128 bits"):
        voucher_digest(bytes(32), amount, 1)


def test_the_order_of_services_counts() -> None:
    offer = SignedOffer.decode(encoded(cases("offer")[3])).offer
    other = dataclasses.replace(offer, services=offer.services[::-1])
    assert offer.digest() != other.digest()


# What strangers send


@given(junk.raw | junk.mutated(SIGNED_OFFER))
def test_hostile_offers(data: bytes) -> None:
    signed = refused_or(SignedOffer.decode, data)
    if signed is not None:
        signed.offer.digest()
        assert SignedOffer.decode(signed.encode()) == signed


@given(junk.raw | junk.mutated(SIGNED_RECEIPT))
def test_hostile_receipts(data: bytes) -> None:
    signed = refused_or(SignedReceipt.decode, data)
    refused_or(SignedReceipt.from_header, data)
    assert refused_or(SignedReceipt.from_header, base64.b64encode(data)) == signed
    if signed is not None:
        signed.receipt.digest(1)
        assert SignedReceipt.decode(signed.encode()) == signed


@given(junk.raw | junk.mutated(LEASE))
def test_hostile_leases(data: bytes) -> None:
    lease = refused_or(Lease.decode, data)
    assert lease is None or Lease.decode(lease.encode()) == lease


@given(st.binary(max_size=64) | evidences.map(lambda e: e.encode()[:-1]))
def test_hostile_evidence(data: bytes) -> None:
    evidence = refused_or(Evidence.decode, data)
    assert evidence is None or evidence.encode() == data


@given(junk.values | junk.mutated(CONFIG))
def test_hostile_channel_configs(value: Any) -> None:
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except ValueError:
            return
    try:
        config = ChannelConfig.from_wire(value)
    except ValueError:
        return
    config.channel_id(1)
    assert ChannelConfig.from_wire(config.to_wire()) == config


@pytest.mark.parametrize(
    "word", ["7fc00000", "ffc00001", "7f800000"], ids=["NaN", "another NaN", "infinity"]
)
def test_evidence_without_an_order_is_refused(word: str) -> None:
    data = Evidence(1, (5,), (-1.0,)).encode()[:-4] + bytes.fromhex(word)[::-1]
    with pytest.raises(Refused, match="NaN"):
        Evidence.decode(data)


@pytest.mark.parametrize(
    ("path", "value", "param"),
    [
        (("offer", "node"), "0x" + "AB" * 20, "offer.node"),
        (("offer", "node"), "0x" + "ab" * 19 + "  ", "offer.node"),
        (("offer", "epoch"), str(5), "offer.epoch"),
        (("offer", "epoch"), 2**53, "offer.epoch"),
        (("offer", "epoch"), str(2**64), "offer.epoch"),
        (("offer", "epoch"), "0" + str(2**60), "offer.epoch"),
        (("offer", "epoch"), True, "offer.epoch"),
        (("offer", "epoch"), 1.0, "offer.epoch"),
        (("offer", "epoch"), -1, "offer.epoch"),
        (("offer", "more"), 1, "offer.more"),
        (("offer", "services", 0, "task"), "dream", "offer.services[0].task"),
        (("offer", "services", 0, "task"), ["chat"], "offer.services[0].task"),
        (("offer", "services", 0, "model"), "a\x1b[2J", "offer.services[0].model"),
        (("offer", "services", 0, "model"), "é" * 129, "offer.services[0].model"),
        (("offer", "services", 0, "resume"), 1, "offer.services[0].resume"),
        (("offer", "services", 0), [], "offer.services"),
        (("offer", "services"), [{}] * 129, "offer.services"),
        (("offer", "endpoints"), [{}] * 9, "offer.endpoints"),
        (("offer", "terms", "assetDecimals"), 13, "offer.terms.assetDecimals"),
        (("offer", "terms", "withdrawDelay"), 2_592_001, "offer.terms.withdrawDelay"),
        (("offer", "terms", "withdrawDelay"), 899, None),
        (("offer", "terms", "window"), 0, None),
        (("offer", "terms"), None, "offer.terms"),
        (("version",), 2, None),
        (("signature",), "0x" + "00" * 64, "signature"),
        (("signature",), "0x", "signature"),
        (("ownerSignature",), "0x" + "00" * 64, "ownerSignature"),
        (("ownerSignature",), None, "ownerSignature"),
    ],
)
def test_offers_refused(path: tuple[Any, ...], value: Any, param: str | None) -> None:
    body = json.dumps(junk.put(SIGNED_OFFER, path, value)).encode()
    with pytest.raises(Refused) as caught:
        SignedOffer.decode(body)
    assert (caught.value.code, caught.value.param) == ("bad_encoding", param)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("payer", "0x" + "11" * 19),
        ("payer", "0x" + "11" * 19 + "  "),
        ("payer", b"1"),
        ("salt", "0x" + "11" * 31 + " 1"),
        ("withdrawDelay", -1),
        ("withdrawDelay", 2**40),
        ("withdrawDelay", "900"),
        ("withdrawDelay", True),
        ("withdrawDelay", 900.0),
        ("more", 1),
    ],
)
def test_channel_configs_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"channelConfig|hex"):
        ChannelConfig.from_wire(CONFIG | {name: value})
    with pytest.raises(ValueError, match=r"channelConfig|hex"):
        ChannelConfig.from_wire({key: item for key, item in CONFIG.items() if key != "token"})


@pytest.mark.parametrize("outcome", [3, 255, "0", None, True])
def test_receipts_of_other_outcomes_are_refused(outcome: object) -> None:
    body = junk.put(SIGNED_RECEIPT, ("receipt", "outcome"), outcome)
    with pytest.raises(Refused) as caught:
        SignedReceipt.decode(json.dumps(body).encode())
    assert caught.value.param == "receipt.outcome"


@pytest.mark.parametrize(
    ("decode", "limit"),
    [
        (SignedOffer.decode, OFFER_MAX),
        (SignedReceipt.decode, RECEIPT_MAX),
        (Lease.decode, LEASE_MAX),
    ],
)
def test_sizes_are_bounded(decode: Callable[[bytes], object], limit: int) -> None:
    with pytest.raises(Refused, match=f"over {limit} bytes"):
        decode(b"{}".ljust(limit + 1))
    with pytest.raises(Refused, match="missing"):
        decode(b"{}".ljust(limit))


def test_one_manifest_and_class_has_one_price() -> None:
    offer = SIGNED_OFFER["offer"]
    twin = offer["services"][0] | {"priceInPico": 1, "model": "another-name"}
    body = junk.put(SIGNED_OFFER, ("offer", "services"), [offer["services"][0], twin])
    with pytest.raises(Refused, match="two services of one manifest and class"):
        SignedOffer.decode(json.dumps(body).encode())
    other = twin | {"class": "another"}
    body = junk.put(SIGNED_OFFER, ("offer", "services"), [offer["services"][0], other])
    assert len(SignedOffer.decode(json.dumps(body).encode()).offer.services) == 2


def test_no_service_takes_the_id_of_another_for_its_name() -> None:
    offer = SignedOffer.decode(canonical(SIGNED_OFFER)).offer
    (honest,) = offer.services
    liar = dataclasses.replace(honest, manifest=b"\7" * 32, model="0x" + honest.manifest.hex())
    offer = dataclasses.replace(offer, services=(liar, honest))
    assert offer.service(liar.model) is honest
    assert offer.service(honest.model) is honest
    assert offer.service("0x" + liar.manifest.hex()) is liar
    assert offer.service("unknown") is None
