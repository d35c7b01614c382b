"""The three headers of x402 v2 for the scheme `batch-settlement`, as the official SDKs write them.

PAYMENT-REQUIRED goes with a 402: what to pay, and after a disagreement what the node believes.
PAYMENT-SIGNATURE goes with the request: a voucher, with a deposit where the channel lacks money.
PAYMENT-RESPONSE goes with the answer: what was charged. Each is base64 of JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import orjson

from inferpool.chain.base import DepositAuthorization, Permit2Deposit, Transfer
from inferpool.protocol.encoding import from_base64, from_hex, to_base64, to_checksum, to_hex
from inferpool.protocol.errors import PaymentRequired
from inferpool.protocol.limits import PAYMENT_HEADER_MAX
from inferpool.protocol.offer import Terms
from inferpool.protocol.value import value
from inferpool.protocol.voucher import ChannelConfig, Voucher

X402_VERSION: Final = 2
SCHEME: Final = "batch-settlement"
EXACT: Final = "exact"
EIP3009: Final = "eip3009"  # how a deposit is authorised: assetTransferMethod, the default
PERMIT2: Final = "permit2"
_PREFIX: Final = "invalid_batch_settlement_evm_"

# Our error code -> x402's reason. The SDKs act on two of them (the corrective 402).
REASONS: Final[dict[str, str]] = {
    "payment_required": "payment_required",
    "payment_invalid": _PREFIX + "voucher_payload",
    "payment_terms": _PREFIX + "receiver_mismatch",
    "voucher_signature": _PREFIX + "voucher_signature",
    "voucher_amount": _PREFIX + "cumulative_amount_mismatch",
    "voucher_balance": _PREFIX + "cumulative_exceeds_balance",
    "channel_not_found": _PREFIX + "channel_not_found",
    "channel_closing": _PREFIX + "channel_busy",
    "deposit_failed": _PREFIX + "deposit_transaction_failed",
    "transfer_failed": "transaction_failed",
    "refund_amount": _PREFIX + "refund_amount_invalid",
    "refund_empty": _PREFIX + "refund_no_balance",
    "payment_used": "invalid_exact_evm_nonce_already_used",
}


@value
class Payment:
    """A parsed PAYMENT-SIGNATURE; amounts in base units. No signature was checked yet."""

    kind: Literal["voucher", "deposit"]
    config: ChannelConfig
    voucher: Voucher
    accepted_amount: int
    accepted_network: str
    deposit_amount: int = 0
    authorization: DepositAuthorization | Permit2Deposit | None = None


@dataclass(frozen=True, slots=True)
class ExactPayment:
    """A parsed PAYMENT-SIGNATURE of scheme `exact`: one transfer for one request."""

    transfer: Transfer
    accepted_amount: int
    accepted_network: str
    accepted_asset: bytes


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A parsed PAYMENT-SIGNATURE of type `refund`: its payer wants unused money back at once. The
    voucher is for what was charged and no more; `amount` None: all that is free."""

    config: ChannelConfig
    voucher: Voucher
    accepted_network: str
    amount: int | None


@dataclass(frozen=True, slots=True)
class ChannelView:
    """What one side says of a channel; amounts in base units."""

    channel_id: bytes
    balance: int
    total_claimed: int
    charged: int  # cumulative; in a corrective 402 with the maxima in flight on top
    signed_max: int = 0
    signature: bytes = b""


def requirements(terms: Terms, amount: int, method: str = EIP3009) -> dict[str, object]:
    """The entry of `accepts` for one request: its maximum in base units, on the offer's terms.
    `method`: how deposits of the asset are authorised, where not by EIP-3009."""
    return {
        "scheme": SCHEME,
        "network": terms.network,
        "asset": to_checksum(terms.asset),
        "amount": str(amount),
        "payTo": to_checksum(terms.payee),
        "maxTimeoutSeconds": 300,
        "extra": {
            "name": terms.asset_name,
            "version": terms.asset_version,
            "receiverAuthorizer": to_checksum(terms.receiver_authorizer),
            "withdrawDelay": terms.withdraw_delay_s,
            "minDeposit": str(terms.min_deposit),
            **({} if method == EIP3009 else {"assetTransferMethod": method}),
        },
    }


def exact_requirements(terms: Terms, amount: int) -> dict[str, object]:
    """The entry of `accepts` for a payment by one transfer, of exactly this many base units."""
    return {
        "scheme": EXACT,
        "network": terms.network,
        "asset": to_checksum(terms.asset),
        "amount": str(amount),
        "payTo": to_checksum(terms.payee),
        "maxTimeoutSeconds": 300,
        "extra": {
            "name": terms.asset_name,
            "version": terms.asset_version,
            "assetTransferMethod": EIP3009,
        },
    }


def payment_required(
    terms: Terms,
    amount: int,
    url: str,
    error: PaymentRequired,
    view: ChannelView | None = None,
    exact: int = 0,
    method: str = EIP3009,
) -> bytes:
    """PAYMENT-REQUIRED; with `view` a corrective one, from which a payer can go on. `exact`: base
    units of a payment by one transfer, where these are taken. `method`: of deposits."""
    entry = requirements(terms, amount, method)
    if view is not None and view.signature:
        extra = dict(entry["extra"])  # type: ignore[call-overload]
        extra["channelState"] = _channel_state(view)
        extra["voucherState"] = {
            "signedMaxClaimable": str(view.signed_max),
            "signature": to_hex(view.signature),
        }
        entry["extra"] = extra
    return _encode(
        {
            "x402Version": X402_VERSION,
            "error": REASONS.get(error.code, error.code),
            "resource": {"url": url, "description": error.message, "mimeType": "application/json"},
            "accepts": [entry, *([exact_requirements(terms, exact)] if exact else [])],
        }
    )


@lru_cache(maxsize=4096)  # a window sends the same voucher for the same maximum many times
def payment_signature(config: ChannelConfig, voucher: Voucher, terms: Terms, amount: int) -> bytes:
    """PAYMENT-SIGNATURE of an open channel, for a request of at most `amount` base units."""
    whole = _frame(config, terms, amount).replace(_PLACE, _voucher_bytes(voucher))
    return to_base64(whole).encode()


@lru_cache(maxsize=4096)
def _frame(config: ChannelConfig, terms: Terms, amount: int) -> bytes:
    """All but the voucher, in whose place `_PLACE` stands."""
    payload = {
        "type": "voucher",
        "channelConfig": config.to_wire(),
        "voucher": orjson.Fragment(_PLACE),
    }
    accepted = requirements(terms, amount)
    found = orjson.dumps({"x402Version": X402_VERSION, "payload": payload, "accepted": accepted})
    assert found.count(_PLACE) == 1, "no text within JSON holds a bare quote"
    return found


def _voucher_bytes(voucher: Voucher) -> bytes:
    """`_voucher_json`, in JSON."""
    return (
        f'{{"channelId":"0x{voucher.channel_id.hex()}"'
        f',"maxClaimableAmount":"{voucher.max_claimable}"'
        f',"signature":"0x{voucher.signature.hex()}"}}'
    ).encode()


_NO_VOUCHER: Final = Voucher(bytes(32), 0, bytes(65))
_PLACE: Final = _voucher_bytes(_NO_VOUCHER)
_VOUCHER: Final = re.compile(
    rb'\{"channelId":"0x([0-9a-f]{64})","maxClaimableAmount":"([0-9]{1,38})"'
    rb',"signature":"0x([0-9a-f]{130})"\}'
)


def refund_signature(
    config: ChannelConfig, voucher: Voucher, terms: Terms, amount: int | None = None
) -> bytes:
    """PAYMENT-SIGNATURE that asks a payee for unused money: `amount` base units, or all of it. The
    voucher is for what was charged."""
    payload: dict[str, object] = {
        "type": "refund",
        "channelConfig": config.to_wire(),
        "voucher": _voucher_json(voucher),
    }
    if amount is not None:
        payload["amount"] = str(amount)
    accepted = _requirements_json(terms, 1)
    return _encode({"x402Version": X402_VERSION, "payload": payload, "accepted": accepted})


def _voucher_json(voucher: Voucher) -> dict[str, object]:
    return {
        "channelId": to_hex(voucher.channel_id),
        "maxClaimableAmount": str(voucher.max_claimable),
        "signature": to_hex(voucher.signature),
    }


@lru_cache(maxsize=4096)
def _requirements_json(terms: Terms, amount: int) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(requirements(terms, amount)))


def payment_response(terms: Terms, payer: bytes, view: ChannelView, charged: int) -> bytes:
    """PAYMENT-RESPONSE: `charged` base units for this request; 0 is valid."""
    channel, network = view.channel_id.hex(), terms.network
    amounts = (view.balance, view.total_claimed, view.charged, charged)
    told = _RESPONSE % (to_checksum(payer), network, channel, *amounts)
    return to_base64(told.encode()).encode()


# By hand, since it goes with each answer; what is filled in needs no escapes.
_RESPONSE: Final = (
    '{"success":true,"payer":"%s","transaction":"","network":"%s","amount":"",'
    '"extra":{"channelState":{"channelId":"0x%s","balance":"%d","totalClaimed":"%d",'
    '"withdrawRequestedAt":0,"refundNonce":"0","chargedCumulativeAmount":"%d"},'
    '"chargedAmount":"%d"}}'
)


def refund_response(
    terms: Terms, payer: bytes, view: ChannelView, transaction: bytes, amount: int
) -> bytes:
    """PAYMENT-RESPONSE of a refund: the transaction that paid it, and its base units."""
    return _encode(
        {
            "success": True,
            "payer": to_checksum(payer),
            "transaction": to_hex(transaction),
            "network": terms.network,
            "amount": str(amount),
            "extra": {"channelState": _channel_state(view)},
        }
    )


def exact_response(terms: Terms, payer: bytes, transaction: bytes, amount: int) -> bytes:
    """PAYMENT-RESPONSE of scheme `exact`: the transaction that paid, and its base units."""
    return _encode(
        {
            "success": True,
            "payer": to_checksum(payer),
            "transaction": to_hex(transaction),
            "network": terms.network,
            "amount": str(amount),
        }
    )


@lru_cache(maxsize=256)  # of 16 KiB at most each; a window sends the same bytes again
def parse_payment(value: bytes) -> Payment | ExactPayment | RefundRequest:
    """Parse PAYMENT-SIGNATURE. Raises PaymentRequired(payment_invalid) that says what is wrong.

    Of a channel's payments only the voucher differs: the rest is parsed once, with an empty voucher
    in the place of the real one, and known by its bytes. Where the place is not the one that is
    read, or anything else is unusual, the whole is parsed.
    """
    try:
        data = _bytes(value)
        found = _VOUCHER.search(data)
        if found is not None:
            payment = _framed(data[: found.start()], data[found.end() :])
            if payment is not None:
                channel_id, amount, signature = found.groups()
                voucher = Voucher(_hex(channel_id), int(amount), _hex(signature))
                accepted = (payment.accepted_amount, payment.accepted_network)
                deposit = (payment.deposit_amount, payment.authorization)
                return Payment(payment.kind, payment.config, voucher, *accepted, *deposit)
        return _payment(data)
    except (ValueError, RecursionError) as error:
        raise PaymentRequired(
            f"The header PAYMENT-SIGNATURE cannot be read: {error}.", code="payment_invalid"
        ) from None


def _hex(digits: bytes) -> bytes:
    return bytes.fromhex(digits.decode("ascii"))


@lru_cache(maxsize=256)
def _framed(before: bytes, after: bytes) -> Payment | None:
    """A payment all but its voucher; None where what stands between is not its voucher."""
    payment = _payment(before + _PLACE + after)
    if isinstance(payment, Payment) and payment.voucher == _NO_VOUCHER:
        return payment
    return None


def _payment(data: bytes) -> Payment | ExactPayment | RefundRequest:
    body = _parsed(data)
    if body.get("x402Version") != X402_VERSION:
        raise ValueError("x402Version must be 2")
    payload, accepted = _object(body, "payload"), _object(body, "accepted")
    if accepted.get("scheme") == EXACT:
        return _exact(payload, accepted)
    kind = payload.get("type")
    if kind not in ("voucher", "deposit", "refund"):
        raise ValueError("payload.type must be voucher, deposit or refund")
    voucher = _voucher(payload)
    if kind == "refund":
        return _refund(payload, voucher, accepted)
    amount, authorization = _deposit(payload) if kind == "deposit" else (0, None)
    network = accepted.get("network")
    return Payment(
        kind="deposit" if kind == "deposit" else "voucher",
        config=_config(payload.get("channelConfig")),
        voucher=voucher,
        accepted_amount=_amount(accepted, "amount", 2**128),
        accepted_network=network if isinstance(network, str) else "",
        deposit_amount=amount,
        authorization=authorization,
    )


def parse_payment_required(value: bytes) -> tuple[str, ChannelView | None]:
    """The reason of a 402 and, in a corrective one, the node's view. Raises ValueError."""
    body = _decode(value)
    accepts = body.get("accepts")
    if not isinstance(accepts, list) or not accepts or not isinstance(accepts[0], dict):
        raise ValueError("accepts must be a list of objects")
    extra = _object(accepts[0], "extra")
    reason = str(body.get("error", ""))
    if "channelState" not in extra or "voucherState" not in extra:
        return reason, None
    state, signed = _object(extra, "channelState"), _object(extra, "voucherState")
    return reason, ChannelView(
        channel_id=from_hex(state.get("channelId"), 32),
        balance=_amount(state, "balance", 2**128),
        total_claimed=_amount(state, "totalClaimed", 2**128),
        charged=_amount(state, "chargedCumulativeAmount", 2**128),
        signed_max=_amount(signed, "signedMaxClaimable", 2**128),
        signature=from_hex(signed.get("signature"), 65),
    )


def _channel_state(view: ChannelView) -> dict[str, object]:
    return {
        "channelId": to_hex(view.channel_id),
        "balance": str(view.balance),
        "totalClaimed": str(view.total_claimed),
        "withdrawRequestedAt": 0,
        "refundNonce": "0",
        "chargedCumulativeAmount": str(view.charged),
    }


def _deposit(payload: dict[str, object]) -> tuple[int, DepositAuthorization | Permit2Deposit]:
    """Amount and authorisation. Of Permit2's what the channel and the amount do not tell; where the
    rest names another token, spender or channel, the signature does not verify."""
    deposit = _object(payload, "deposit")
    outer, amount = _object(deposit, "authorization"), _amount(deposit, "amount", 2**128)
    if "permit2Authorization" in outer:
        inner = _object(outer, "permit2Authorization")
        return amount, Permit2Deposit(
            nonce=_amount(inner, "nonce", 2**256),
            deadline_s=_amount(inner, "deadline", 2**256),
            signature=from_hex(inner.get("signature"), 65),
        )
    if "erc3009Authorization" not in outer:
        raise ValueError("only deposits by ERC-3009 authorisation or Permit2 are taken")
    inner = _object(outer, "erc3009Authorization")
    return amount, DepositAuthorization(
        valid_after_s=_amount(inner, "validAfter", 2**64),
        valid_before_s=_amount(inner, "validBefore", 2**64),
        salt=int.from_bytes(from_hex(inner.get("salt"), 32), "big"),
        signature=from_hex(inner.get("signature"), 65),
    )


def _voucher(payload: dict[str, object]) -> Voucher:
    wire = _object(payload, "voucher")
    return Voucher(
        from_hex(wire.get("channelId"), 32),
        _amount(wire, "maxClaimableAmount", 2**128),
        from_hex(wire.get("signature"), 65),
    )


def _refund(
    payload: dict[str, object], voucher: Voucher, accepted: dict[str, object]
) -> RefundRequest:
    network = accepted.get("network")
    return RefundRequest(
        config=_config(payload.get("channelConfig")),
        voucher=voucher,
        accepted_network=network if isinstance(network, str) else "",
        amount=_amount(payload, "amount", 2**128) if "amount" in payload else None,
    )


def _exact(payload: dict[str, object], accepted: dict[str, object]) -> ExactPayment:
    inner, network = _object(payload, "authorization"), accepted.get("network")
    return ExactPayment(
        Transfer(
            holder=from_hex(inner.get("from"), 20),
            to=from_hex(inner.get("to"), 20),
            amount=_amount(inner, "value", 2**128),
            valid_after_s=_amount(inner, "validAfter", 2**64),
            valid_before_s=_amount(inner, "validBefore", 2**64),
            nonce=from_hex(inner.get("nonce"), 32),
            signature=from_hex(payload.get("signature"), 65),
        ),
        accepted_amount=_amount(accepted, "amount", 2**128),
        accepted_network=network if isinstance(network, str) else "",
        accepted_asset=from_hex(accepted.get("asset"), 20),
    )


def _config(wire: object) -> ChannelConfig:
    """A channel's config; its seven members come with each of its payments."""
    if isinstance(wire, dict) and all(type(item) in (str, int) for item in wire.values()):
        return _known_config(tuple(wire.items()))
    return ChannelConfig.from_wire(wire)


@lru_cache(maxsize=4096)
def _known_config(members: tuple[tuple[str, object], ...]) -> ChannelConfig:
    return ChannelConfig.from_wire(dict(members))


def _object(holder: dict[str, object], name: str) -> dict[str, object]:
    value = holder.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")
    return value


def _amount(holder: dict[str, object], name: str, below: int) -> int:
    value = holder.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 78:
        raise ValueError(f"{name} must be a decimal number in a string")
    number = int(value)
    if number >= below:
        raise ValueError(f"{name} is too large")
    return number


def _encode(value: dict[str, object]) -> bytes:
    return to_base64(orjson.dumps(value)).encode()


def _decode(value: bytes) -> dict[str, object]:
    return _parsed(_bytes(value))


def _bytes(value: bytes) -> bytes:
    if len(value) > PAYMENT_HEADER_MAX:
        raise ValueError(f"over {PAYMENT_HEADER_MAX} bytes")
    return from_base64(value)


def _parsed(data: bytes) -> dict[str, object]:
    body = orjson.loads(data)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    return body
