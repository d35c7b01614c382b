"""The three x402 headers against the official SDK, both ways, and against anything else."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    decode_payment_signature_header,
    encode_payment_required_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm import constants as sdk_constants
from x402.mechanisms.evm.batch_settlement import errors as sdk_errors
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.batch_settlement.client.channel import process_payment_response
from x402.mechanisms.evm.batch_settlement.client.storage import (
    BatchSettlementClientContext,
    InMemoryClientChannelStorage,
)
from x402.mechanisms.evm.batch_settlement.types import (
    ChannelConfig,
    ChannelStateExtra,
    VoucherPayload,
)
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements, ResourceInfo

from inferpool.chain.authorization import verify_deposit
from inferpool.identity.signing import verify
from inferpool.payments import x402
from inferpool.payments.x402 import ChannelView
from inferpool.protocol import errors
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.limits import PAYMENT_HEADER_MAX
from inferpool.protocol.voucher import Voucher
from tests.payments.parts import (
    AUTHORIZER,
    CHAIN_ID,
    CHANNEL_ID,
    CONFIG,
    PAYER,
    TERMS,
    TOKEN,
    name,
    payer_channel,
)

NEEDED = errors.PaymentRequired("This request costs at most 25 base units; pay by x402.")
VIEW = ChannelView(CHANNEL_ID, 5000, 100, 120, 180, AUTHORIZER.sign(bytes(32)))


def sdk(storage: Any = None) -> BatchSettlementEvmScheme:
    """The SDK's payer, whose one key pays and signs vouchers."""
    scheme = BatchSettlementEvmScheme(EthAccountSigner(Account.from_key(PAYER.secret)))
    if storage is not None:
        scheme._storage = storage
    return scheme


def required(view: ChannelView | None = None, code: str = "payment_required") -> PaymentRequired:
    error = errors.PaymentRequired(NEEDED.message, code=code)
    header = x402.payment_required(TERMS, 25, "/v1/chat/completions", error, view).decode()
    found = decode_payment_required_header(header)
    assert isinstance(found, PaymentRequired)
    return found


def test_the_sdk_reads_our_402() -> None:
    found = required()
    assert found.x402_version == 2
    assert found.resource is not None
    assert found.resource.url == "/v1/chat/completions"
    assert "25 base units" in (found.resource.description or "")
    (entry,) = found.accepts
    assert (entry.scheme, entry.network, entry.amount) == ("batch-settlement", "eip155:84532", "25")
    assert entry.pay_to.lower() == to_hex(TERMS.payee)
    assert entry.asset.lower() == to_hex(TOKEN)
    assert entry.extra == {
        "name": "Test Dollar",
        "version": "1",
        "receiverAuthorizer": CONFIG.to_wire()["receiverAuthorizer"],
        "withdrawDelay": 900,
        "minDeposit": "1000",
    }


def test_the_sdk_reads_our_corrective_402() -> None:
    (entry,) = required(VIEW, "voucher_amount").accepts
    state = ChannelStateExtra.from_dict(entry.extra["channelState"])
    assert state == ChannelStateExtra(to_hex(CHANNEL_ID), "5000", "100", 0, "0", "120")
    assert entry.extra["voucherState"] == {
        "signedMaxClaimable": "180",
        "signature": to_hex(VIEW.signature),
    }


@pytest.mark.parametrize("code", x402.REASONS)
def test_every_reason_is_one_that_the_sdk_knows(code: str) -> None:
    known = {
        getattr(errors_of, item)
        for errors_of in (sdk_errors, sdk_constants)
        for item in dir(errors_of)
        if item.startswith("ERR_")
    }
    assert required(code=code).error in known | {"payment_required"}
    assert errors.CODES[code][0] == 402
    assert set(x402.REASONS) >= {
        item for item, (status, *_) in errors.CODES.items() if status == 402
    } - {"budget_exceeded", "capital_exceeded"}, "these two never leave a node"


def test_the_sdk_makes_a_deposit_from_our_402_and_we_read_it() -> None:
    (entry,) = required().accepts
    payload = sdk().create_payment_payload(entry)
    header = encode_payment_signature_header(PaymentPayload(payload=payload, accepted=entry))
    payment = x402.parse_payment(header.encode())
    assert payment.kind == "deposit"
    assert payment.config.payer == PAYER.address
    assert payment.config.receiver == TERMS.payee
    assert payment.config.receiver_authorizer == TERMS.receiver_authorizer
    assert payment.config.withdraw_delay_s == 900
    assert (payment.accepted_amount, payment.accepted_network) == (25, "eip155:84532")
    assert payment.voucher.channel_id == payment.config.channel_id(CHAIN_ID)
    assert payment.voucher.max_claimable == 25
    assert payment.deposit_amount >= TERMS.min_deposit
    digest = payment.voucher.digest(CHAIN_ID)
    verify(digest, payment.voucher.signature, payment.config.payer_authorizer)
    assert payment.authorization is not None
    verify_deposit(
        payment.config,
        payment.deposit_amount,
        payment.authorization,
        chain_id=CHAIN_ID,
        name=TERMS.asset_name,
        version=TERMS.asset_version,
    )


def test_the_sdk_makes_vouchers_and_follows_our_payment_response() -> None:
    """A second request after one that was charged 7 of 25."""
    (entry,) = required().accepts
    storage = InMemoryClientChannelStorage()
    scheme = sdk(storage)
    config = scheme.build_channel_config(entry)
    first = x402.parse_payment(
        encode_payment_signature_header(
            PaymentPayload(payload=scheme.create_payment_payload(entry), accepted=entry)
        ).encode()
    )
    channel_id = first.voucher.channel_id
    view = ChannelView(channel_id, first.deposit_amount, 0, 7)
    header = x402.payment_response(TERMS, PAYER.address, view, 7).decode()
    process_payment_response(
        storage,
        {"PAYMENT-RESPONSE": header}.get,
        {
            "channel_id": to_hex(channel_id),
            "request_amount": "25",
            "deposit_amount": str(first.deposit_amount),
        },
    )
    payload = scheme.create_payment_payload(entry)
    assert VoucherPayload.from_dict(payload).channel_config == config
    second = x402.parse_payment(
        encode_payment_signature_header(PaymentPayload(payload=payload, accepted=entry)).encode()
    )
    assert (second.kind, second.voucher.max_claimable) == ("voucher", 32)
    verify(second.voucher.digest(CHAIN_ID), second.voucher.signature, PAYER.address)


def test_the_sdk_reads_our_payment_response() -> None:
    found = decode_payment_response_header(
        x402.payment_response(TERMS, PAYER.address, VIEW, 0).decode()
    )
    assert found.success is True
    assert (found.network, found.transaction) == ("eip155:84532", "")
    assert found.extra is not None
    assert found.extra["chargedAmount"] == "0"
    assert found.extra["channelState"]["chargedCumulativeAmount"] == "120"


def test_a_payment_response_is_json_as_any_encoder_writes_it() -> None:
    """It is written by hand: nothing may be spelt as no encoder would."""
    view = replace(VIEW, balance=2**128 - 1, charged=2**127)
    made = base64.b64decode(x402.payment_response(TERMS, PAYER.address, view, 2**64))
    found = json.loads(made)
    assert json.dumps(found, separators=(",", ":")).encode() == made
    state = found["extra"]["channelState"]
    assert (state["balance"], state["totalClaimed"]) == (str(2**128 - 1), str(VIEW.total_claimed))
    assert (state["channelId"], state["chargedCumulativeAmount"]) == (
        to_hex(VIEW.channel_id),
        str(2**127),
    )
    assert found["extra"]["chargedAmount"] == str(2**64)


def test_the_sdk_reads_our_payment() -> None:
    voucher = payer_channel(1000).authorise(name(1), 25, AUTHORIZER)
    header = x402.payment_signature(CONFIG, voucher, TERMS, 25)
    found = decode_payment_signature_header(header.decode())
    assert isinstance(found, PaymentPayload)
    payload = VoucherPayload.from_dict(found.payload)
    assert payload.voucher is not None
    assert payload.voucher.max_claimable_amount == "25"
    assert payload.voucher.signature == to_hex(voucher.signature)
    assert payload.channel_config == ChannelConfig.from_dict(CONFIG.to_wire())
    assert isinstance(found.accepted, PaymentRequirements)
    assert found.accepted.amount == "25"
    back = x402.parse_payment(header)
    assert (back.config, back.voucher, back.accepted_amount) == (CONFIG, voucher, 25)


def test_we_read_the_sdks_402() -> None:
    """A corrective 402 as an SDK server writes it."""
    (entry,) = required(VIEW, "voucher_amount").accepts
    made = PaymentRequired(
        error=sdk_errors.ERR_CUMULATIVE_AMOUNT_MISMATCH,
        accepts=[entry],
        resource=ResourceInfo(url="http://shop.example/answer"),
    )
    reason, view = x402.parse_payment_required(encode_payment_required_header(made).encode())
    assert reason == x402.REASONS["voucher_amount"]
    assert view == VIEW
    plain = PaymentRequired(error="payment_required", accepts=required().accepts)
    assert x402.parse_payment_required(encode_payment_required_header(plain).encode()) == (
        "payment_required",
        None,
    )


def test_the_sdk_would_go_on_from_our_corrective_402() -> None:
    """The fields that its recovery compares: what it was charged is within what it signed."""
    (entry,) = required(VIEW, "voucher_amount").accepts
    state = entry.extra["channelState"]
    context = BatchSettlementClientContext(
        charged_cumulative_amount=state["chargedCumulativeAmount"],
        signed_max_claimable=entry.extra["voucherState"]["signedMaxClaimable"],
        balance=state["balance"],
    )
    assert int(context.charged_cumulative_amount or 0) <= int(context.signed_max_claimable or 0)
    assert required(VIEW, "voucher_amount").error == sdk_errors.ERR_CUMULATIVE_AMOUNT_MISMATCH


# -- hostile headers ------------------------------------------------------------------------------


def packed(body: object) -> bytes:
    return base64.b64encode(json.dumps(body).encode())


def good() -> dict[str, Any]:
    voucher = Voucher(CHANNEL_ID, 25, AUTHORIZER.sign(bytes(32)))
    header = x402.payment_signature(CONFIG, voucher, TERMS, 25)
    body: dict[str, Any] = json.loads(base64.b64decode(header))
    return body


def deposit() -> dict[str, Any]:
    body = good()
    body["payload"]["type"] = "deposit"
    inner = {
        "validAfter": "0",
        "validBefore": "99999999999",
        "salt": "0x" + "11" * 32,
        "signature": "0x" + "22" * 65,
    }
    body["payload"]["deposit"] = {
        "amount": "1000",
        "authorization": {"erc3009Authorization": inner},
    }
    return body


BAD: list[tuple[str, Any]] = [
    ("x402Version", 1),
    ("x402Version", None),
    ("payload", []),
    ("payload.type", "claim"),
    ("payload.voucher", None),
    ("payload.voucher.channelId", "0x12"),
    ("payload.voucher.channelId", 7),
    ("payload.voucher.maxClaimableAmount", "-1"),
    ("payload.voucher.maxClaimableAmount", "1e3"),
    ("payload.voucher.maxClaimableAmount", " 1"),
    ("payload.voucher.maxClaimableAmount", "١"),
    ("payload.voucher.maxClaimableAmount", str(2**128)),
    ("payload.voucher.maxClaimableAmount", "9" * 5000),
    ("payload.voucher.maxClaimableAmount", 1.5),
    ("payload.voucher.maxClaimableAmount", True),
    ("payload.voucher.signature", "0x" + "11" * 64),
    ("payload.channelConfig.payer", None),
    ("payload.channelConfig.salt", "0x" + "1 " * 32),
    ("payload.channelConfig.withdrawDelay", "900"),
    ("payload.channelConfig.withdrawDelay", 2**40),
    ("payload.channelConfig.more", 1),
    ("accepted", None),
    ("accepted.amount", None),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{p}={str(v)[:12]}" for p, v in BAD])
def test_a_bad_member_is_a_402_that_names_it(path: str, value: Any) -> None:
    body = good()
    holder: Any = body
    *parents, last = path.split(".")
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    with pytest.raises(errors.PaymentRequired) as raised:
        x402.parse_payment(packed(body))
    assert raised.value.code == "payment_invalid"
    assert "PAYMENT-SIGNATURE" in raised.value.message


def test_only_deposits_by_erc_3009_and_permit2_are_taken() -> None:
    assert x402.parse_payment(packed(deposit())).deposit_amount == 1000
    body = deposit()
    body["payload"]["deposit"]["authorization"] = {"otherAuthorization": {}}
    with pytest.raises(errors.PaymentRequired, match="ERC-3009"):
        x402.parse_payment(packed(body))


def test_a_header_over_the_limit_is_refused_unread() -> None:
    body = good() | {"padding": "x" * PAYMENT_HEADER_MAX}
    with pytest.raises(errors.PaymentRequired, match="bytes"):
        x402.parse_payment(packed(body))


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**140)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["0x" + "00" * 20, "0x" + "11" * 32, "9" * 50, "batch-settlement"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """A valid body with one thing changed, as base64; or base64 or bytes with a fault."""
    copy = json.loads(json.dumps(body))
    holder: Any = copy
    while True:
        key = draw(st.sampled_from(sorted(holder)) if isinstance(holder, dict) else st.just(0))
        below = holder[key]
        if not isinstance(below, dict | list) or not below or draw(st.booleans()):
            break
        holder = below
    if draw(st.booleans()) and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = draw(junk)
    data = bytearray(base64.b64encode(json.dumps(copy).encode()))
    if draw(st.integers(0, 3)) == 0 and data:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


anything = st.binary(max_size=60) | junk.map(packed) | st.sampled_from(
    [b"", b"=", b"e30=", packed("[" * 2000), base64.b64encode(b"[" * 6000), "é".encode()]
)  # fmt: skip
FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=150)


@FUZZ
@given(st.one_of(anything, damaged(good()), damaged(deposit())))
def test_whatever_a_payer_sends_is_read_or_refused(header: bytes) -> None:
    try:
        payment = x402.parse_payment(header)
    except errors.PaymentRequired as error:
        assert error.code == "payment_invalid"
    else:
        assert 0 <= payment.voucher.max_claimable < 2**128
        assert len(payment.voucher.signature) == 65
        assert (payment.authorization is not None) == (payment.kind == "deposit")


CORRECTIVE = json.loads(base64.b64decode(x402.payment_required(TERMS, 25, "/v1", NEEDED, VIEW)))


@FUZZ
@given(st.one_of(anything, damaged(CORRECTIVE)))
def test_whatever_a_node_answers_is_read_or_refused(header: bytes) -> None:
    try:
        reason, view = x402.parse_payment_required(header)
    except ValueError:
        return
    assert isinstance(reason, str)
    if view is not None:
        assert len(view.channel_id) == 32
        assert min(view.charged, view.balance, view.signed_max) >= 0
        assert max(view.charged, view.balance, view.signed_max) < 2**128


def test_a_corrective_402_without_a_voucher_shows_no_state() -> None:
    reason, view = x402.parse_payment_required(
        x402.payment_required(TERMS, 25, "/v1", NEEDED, replace(VIEW, signature=b""))
    )
    assert (reason, view) == ("payment_required", None)


def test_only_the_voucher_of_a_payment_differs_and_no_other_is_taken_for_it() -> None:
    """The rest of a payment is known by its bytes: what looks like a voucher elsewhere in it must
    not be taken for the one that counts."""
    vouchers = [Voucher(CHANNEL_ID, amount, bytes((amount % 251,)) * 65) for amount in range(1, 40)]
    for voucher in vouchers:
        found = x402.parse_payment(x402.payment_signature(CONFIG, voucher, TERMS, 25))
        assert isinstance(found, x402.Payment)
        assert (found.voucher, found.config, found.accepted_amount) == (voucher, CONFIG, 25)
    for first in (True, False):
        for voucher, other in itertools.pairwise(vouchers):
            body = json.loads(base64.b64decode(x402.payment_signature(CONFIG, voucher, TERMS, 25)))
            decoy = json.loads(base64.b64decode(x402.payment_signature(CONFIG, other, TERMS, 25)))
            more = {"decoy": decoy["payload"]["voucher"]}
            body["payload"] = {**more, **body["payload"]} if first else {**body["payload"], **more}
            text = json.dumps(body, separators=(",", ":"))
            found = x402.parse_payment(base64.b64encode(text.encode()))
            assert isinstance(found, x402.Payment)
            assert found.voucher == voucher
