"""Callers without a key, who pay for each request by x402: here the gateway is the payee.

The same gate, ledger, claims and rules as at a node (`payments.gate`). What differs is the price:
a node's is fixed by its offer, here the router finds it. The 402 asks for the maximum at the first
candidate, fee included; a payment of so much or more is held, only candidates within it are
tried, and what was billed is charged when the answer is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from inferpool.clock import Clock
from inferpool.gateway.admission import Caller
from inferpool.gateway.router import Route
from inferpool.identity.signing import Key
from inferpool.payments import x402
from inferpool.payments.budget import Account
from inferpool.payments.fees import fee_up
from inferpool.payments.gate import PaymentGate, identify
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.standing import Channels
from inferpool.protocol import headers
from inferpool.protocol.encoding import from_base64, sha256
from inferpool.protocol.errors import BadRequest, PaymentRequired
from inferpool.protocol.limits import WALK_INS_MAX
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.units import base_units_up, pico_usd_per_base_unit
from inferpool.protocol.usage import Usage
from inferpool.transport.asgi import HttpRequest
from inferpool.transport.base import Headers

ACCOUNT: Final = "x402"  # under which their attempts and traces are kept


@dataclass(slots=True)
class WalkIns:
    """All of them. `key` signs receipts and authorises claims; `account` is what they have in
    common in the book of keys, without a limit: each request has the limit of its payment."""

    key: Key
    gate: PaymentGate
    ledger: PayeeLedger
    clock: Clock
    random: Callable[[int], bytes]
    account_id: bytes
    account: Account
    channels: Channels
    waiting: dict[str, WalkIn] = field(default_factory=dict)  # requests whose bill comes late
    running: set[bytes] = field(default_factory=set)  # request ids

    def caller(self, request: HttpRequest) -> Caller:
        """Who asks without a key. Its payment is looked at once its price is known."""
        return Caller(self.account_id, self.account, walk_in=WalkIn(self, request))

    def billed(self, client_id: str, signed: SignedReceipt, pico_usd: int) -> None:
        """A receipt that came after its request had ended."""
        walk_in = self.waiting.get(client_id)
        if walk_in is not None:
            walk_in.bill(signed, pico_usd)

    async def ended(self, client_id: str) -> None:
        """Nothing more will be billed for a request."""
        walk_in = self.waiting.pop(client_id, None)
        if walk_in is not None:
            await walk_in.settle(Outcome.CANCELLED)


@dataclass(slots=True)
class WalkIn:
    """One request of one of them; amounts in pico-USD, with the gateway's fee."""

    of: WalkIns
    request: HttpRequest
    body_hash: bytes = bytes(32)
    own: bool = False  # speaks our version: told the exact charge at a stream's end
    most_pico_usd: int | None = None  # what was paid for; None before
    billed_pico_usd: int = 0
    channel: PayeeChannel | None = None
    failed: bool = False  # answered by an error: what nodes charged for it is our own cost
    signed: SignedReceipt | None = None  # ours
    reported: int = 0  # base units told for this request
    _request_id: bytes = b""
    _last: SignedReceipt | None = None  # the last node's
    _prompt_units: int = 0
    _output_units: int = 0
    _started_ms: int = 0

    async def pay(self, route: Route, fee_bps: int) -> None:
        """Take the payment for a request that these candidates may serve. Raises PaymentNeeded,
        with the price, where there is none or where it is not enough."""
        gate, decimals = self.of.gate, self.of.gate.terms.asset_decimals
        maxima = [candidate.maximum_pico_usd for candidate in route.candidates]
        asked, least = (
            max(1, base_units_up(most + fee_up(most, fee_bps), decimals))
            for most in (maxima[0], min(maxima))
        )
        try:
            amount = self._offered(asked, least)
            self.own, self._request_id = identify(self.request.headers, self.of.random)
            await self._admit(amount)
        except PaymentRequired as error:
            raise gate.needed(error, asked, self.request.path) from None
        self.most_pico_usd = amount * pico_usd_per_base_unit(decimals)
        self._started_ms = self.of.clock.now_ms()

    def covers(self, held_pico_usd: int) -> bool:
        """Whether its payment covers what is to be held for it."""
        return self.most_pico_usd is not None and held_pico_usd <= self.most_pico_usd

    def _offered(self, asked: int, least: int) -> int:
        """Base units that the payment is for. Raises PaymentRequired."""
        header = self.request.headers.get(headers.PAYMENT_SIGNATURE)
        if header is None:
            raise self.of.gate.unpaid(asked)
        payment = x402.parse_payment(header)
        amount = 0 if isinstance(payment, x402.RefundRequest) else payment.accepted_amount
        if amount < least:
            raise PaymentRequired(
                f"The payment is for {amount} base units; this request costs at most {asked}.",
                code="payment_terms",
            )
        return amount

    async def _admit(self, amount: int) -> None:
        walk_ins, request_id, sent = self.of, self._request_id, self.request.headers
        if request_id in walk_ins.running or walk_ins.ledger.receipted(request_id):
            raise BadRequest(
                "This request id was used before; each attempt needs its own.",
                code="duplicate_request",
            )
        if len(walk_ins.running) >= WALK_INS_MAX:
            raise walk_ins.gate.crowded()
        walk_ins.running.add(request_id)
        try:
            booked = sent.get(headers.BOOKED, b"") if self.own else b""
            self.channel = await walk_ins.gate.admit(
                sent[headers.PAYMENT_SIGNATURE], request_id, amount, booked, walk_ins.clock.now_ms()
            )
        finally:
            if self.channel is None:
                walk_ins.running.discard(request_id)

    def bill(self, signed: SignedReceipt, pico_usd: int) -> None:
        """Count what a node's receipt costs the caller."""
        self.billed_pico_usd += pico_usd
        self._last = signed
        self._prompt_units = self._prompt_units or signed.receipt.prompt_units
        self._output_units += signed.receipt.output_units

    async def open_stream(self) -> Headers:
        """Before a stream's first byte: the voucher is durable, and a foreign payer, which reads
        no charge at the end, is told the maximum; what it did not use is its credit."""
        assert self.channel is not None, "paid before it streams"
        told: Headers = ()
        if not self.own:
            self.reported = self.channel.report_maximum(self._request_id)
            told = self._told()
        await self.of.ledger.save_channel(self.channel)
        return told

    async def settle(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """Charge what was billed, sign for it and make it durable; where nothing was, or nothing
        but an error was told, the payment is free again. Once."""
        channel, last = self.channel, self._last
        if channel is None or self._request_id not in self.of.running:
            return
        self.of.running.discard(self._request_id)
        if last is None or self.failed:
            channel.release(self._request_id)
            return
        assert self.most_pico_usd is not None, "paid before it was billed"
        charge = min(self.billed_pico_usd, self.most_pico_usd)
        self.reported += channel.charge(self._request_id, charge)
        receipt = self._receipt(last.receipt, charge, outcome, usage)
        self.signed = SignedReceipt(receipt, self.of.key.sign(receipt.digest(channel.chain_id)))
        # No await between the charge and the queueing of the write: numbers stay in their order.
        await self.of.ledger.save_receipt(channel, self.signed, ACCOUNT)

    def _receipt(
        self, last: Receipt, charge: int, outcome: Outcome, usage: Usage | None
    ) -> Receipt:
        """The gateway's own, for all that the node's says of the answer: the caller's request, its
        channel and its charge, the whole answer's units."""
        channel = self.channel
        assert channel is not None, "only what was paid is receipted"
        used = usage or Usage(self._prompt_units, self._output_units)
        return replace(
            last,
            request_id=self._request_id,
            request_hash=self.body_hash,
            channel_id=channel.channel_id,
            seq=channel.seq,
            prompt_units=used.prompt_units,
            output_units=used.output_units,
            charge_pico_usd=charge,
            charged_total_pico_usd=channel.total_pico_usd,
            started_ms=self._started_ms,
            ended_ms=max(self._started_ms, self.of.clock.now_ms()),
            outcome=outcome,
        )

    def read(self, body: bytes) -> None:
        """The body, that the receipt names by its hash."""
        self.body_hash = sha256(body)

    def headers(self) -> Headers:
        """Of an answer that begins once it is charged; none before."""
        if self.signed is None:
            return ()
        return [*self._told(), (headers.GATEWAY_RECEIPT, self.signed.header())]

    def _told(self) -> list[tuple[bytes, bytes]]:
        assert self.channel is not None, "it was paid"
        response = self.of.gate.response(self.channel, self.reported)
        return [(headers.PAYMENT_RESPONSE, response)]

    def proof(self) -> dict[str, object]:
        """The same for a stream's last event, where headers are gone."""
        if self.signed is None:
            return {}
        found: dict[str, object] = {"gateway_receipt": self.signed.to_wire()}
        if self.own:
            found["payment"] = orjson.loads(from_base64(self._told()[0][1].decode()))
        return found
