"""An attempt in flight: authorised, sent, and ended in exactly one way.

`Flights.open` is a context that leaves no attempt without an end: settled by a checked receipt,
refused by the node, or failed; and what may still cost something is asked for later.
"""

from __future__ import annotations

import asyncio
import logging
from binascii import hexlify
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import orjson

from inferpool.clock import Clock
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.router import Candidate
from inferpool.gateway.treasury import Treasury
from inferpool.payments import x402
from inferpool.payments.chains import ChainSigner
from inferpool.payments.checks import ReceiptInvalid, check_chained, check_receipt
from inferpool.payments.payer import PayerChannel, TopUpNeeded
from inferpool.payments.payer_ledger import AttemptRecord, PayerLedger
from inferpool.payments.request_ids import unique
from inferpool.protocol import headers
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.encoding import hex_bytes, sha256
from inferpool.protocol.errors import (
    CODES,
    BadRequest,
    InferpoolError,
    PaymentRequired,
    Refused,
    Unavailable,
)
from inferpool.protocol.job import Job
from inferpool.protocol.lifecycle import AttemptState
from inferpool.protocol.limits import VOUCHER_RETRIES_MAX
from inferpool.protocol.offer import Terms
from inferpool.protocol.price import amount, maximum_pico_usd
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from inferpool.protocol.voucher import Voucher
from inferpool.transport.base import AnswerInvalid, Response, TransportError

_LOG = logging.getLogger("inferpool.gateway")
_ERROR_BODY_MAX = 64 * 1024
_ERROR_BODY_S = 5.0


class OfferEnded(PaymentRequired):
    """The node sells on other terms now: its offer must be fetched again."""

    default = "payment_terms"


# After these another node is tried.
RETRIED: Final = (Unavailable, PaymentRequired, ReceiptInvalid)


@dataclass(slots=True)
class Flight:
    """One attempt on its way, with the money that covers it."""

    attempt: Attempt
    record: AttemptRecord
    node: KnownNode
    channel: PayerChannel
    voucher: Voucher
    request_hash: bytes = b""
    sent: bool = False  # whether the node may have taken it
    response: Response | None = None
    chained: bool = False  # a chained receipt was asked for
    cheated: bool = False  # its receipt was refused: nothing about it is believed later
    ours: bool = False  # another took its place: what it charges later is no client's


@dataclass(slots=True)
class Flights:
    """Opens, sends and settles attempts. `reconcile` is asked to look for late receipts."""

    treasury: Treasury
    ledger: PayerLedger
    clock: Clock
    random: Callable[[int], bytes]
    reconcile: Callable[[KnownNode, PayerChannel], None]  # soon, in the background
    ask: Callable[[KnownNode, PayerChannel], Awaitable[int]]  # now
    prove: Callable[[KnownNode, PayerChannel], None]  # later, what no signature covers by then
    changed: Callable[[KnownNode], None] = lambda node: None  # its memory
    active: dict[bytes, Flight] = field(default_factory=dict)
    unresolved: dict[bytes, Flight] = field(default_factory=dict)
    serving: set[str] = field(default_factory=set)  # client requests that are not answered yet
    forgiven: set[str] = field(default_factory=set)  # those that are billed nothing, for a while
    # By channel: what was paid with last, and the header for it.
    _paid: dict[bytes, tuple[Voucher, Terms, int, bytes]] = field(default_factory=dict)

    def pending(self, client_id: str) -> bool:
        """Whether an attempt of a client's request may still be charged to it."""
        return any(
            flight.record.client_request_id == client_id and not flight.ours
            for flight in self.unresolved.values()
        )

    def superseded(self, client_id: str) -> None:
        """One more node works on a client's answer: what those before it charge late is our own
        cost, since the client pays for one answer."""
        for flight in self.unresolved.values():
            if flight.record.client_request_id == client_id:
                flight.ours = True

    def open(
        self, candidate: Candidate, job: Job, client_id: str, account: str, seed: int
    ) -> _Opened:
        """While one attempt is under way. Raises PaymentRequired, Unavailable before anything is
        owed."""
        return _Opened(self, candidate, job, client_id, account, seed)

    async def end(self, flight: Flight, candidate: Candidate, error: BaseException | None) -> None:
        """An attempt is over; `error`: where it ended by one."""
        node = flight.node
        if error is None:
            node.succeeded(flight.record.ended_ms)
            self._learn(flight, candidate)
        elif isinstance(error, InferpoolError):
            flight.record.error_code = error.code
            flight.cheated = isinstance(error, ReceiptInvalid | AnswerInvalid)
            if flight.cheated:
                flight.channel.distrust()
            if not isinstance(error, BadRequest) and error.code != "ledger_unavailable":
                node.failed(self.clock.now_ms(), error.code)
        node.ended()
        del self.active[flight.attempt.request_id]
        try:
            if flight.response is not None:
                await flight.response.close()
        finally:
            if flight.record.state is not AttemptState.SETTLED:
                self._give_up(flight)

    def _learn(self, flight: Flight, candidate: Candidate) -> None:
        """Remember how fast the node was, without the queue that was expected."""
        record = flight.record
        first_ms = (record.first_ms or record.ended_ms) - record.started_ms
        flight.node.memory.learn(
            candidate.service.call_class,
            max(0, record.prompt_units - candidate.warm_units),
            max(0, first_ms - candidate.wait_ms),
            max(0, record.output_units - 1) if record.first_ms else 0,
            record.ended_ms - record.first_ms,
            record.ended_ms,
        )
        self.changed(flight.node)

    async def authorise(
        self, candidate: Candidate, job: Job, client_id: str, account: str, seed: int
    ) -> Flight:
        """Begin an attempt: its maximum is held, its voucher signed."""
        node, service = candidate.node, candidate.service
        offer, treasury = node.offer, self.treasury
        channel = treasury.ready(offer) or await treasury.channel(offer)
        most = maximum_pico_usd(job, service)  # of what is sent: it may go on
        now_ms = self.clock.now_ms()
        mark = unique(now_ms, self.random)
        attempt = Attempt(
            request_id=treasury.request_ids.mint(mark, channel.channel_id),
            offer=offer,
            offer_hash=node.offer_hash,
            service=service,
            job=job,
            maximum_pico_usd=most,
            maximum_units=amount(most, offer.terms.asset_decimals),
            channel_id=channel.channel_id,
            seed=seed,
            started_ms=now_ms,
        )
        voucher = await self._voucher(attempt, channel)
        record = AttemptRecord.of(attempt, client_id, account)
        flight = Flight(attempt, record, node, channel, voucher)
        self.active[attempt.request_id] = flight
        node.began()
        return flight

    async def _voucher(self, attempt: Attempt, channel: PayerChannel) -> Voucher:
        for _ in range(VOUCHER_RETRIES_MAX):
            try:
                return channel.authorise(
                    attempt.request_id,
                    attempt.maximum_units,
                    self.treasury.authorizer,
                    self.treasury.window(attempt.offer.terms),
                )
            except TopUpNeeded as need:
                await self.treasury.top_up(attempt.offer, channel, need.needed)
        raise Unavailable("The channel empties faster than it is topped up.", code="overloaded")

    def _give_up(self, flight: Flight) -> None:
        record = flight.record
        request_id = flight.attempt.request_id
        flight.channel.release(request_id, sent=flight.sent)
        record.ended_ms = self.clock.now_ms()
        refused = not flight.sent and record.state is not AttemptState.STREAMING
        record.move(AttemptState.REFUSED if refused else AttemptState.FAILED)
        if flight.cheated:
            # On disk too: a receipt that was refused once is not booked when it is shown again.
            record.error_code = "receipt_invalid"
        self.ledger.save_attempt(record, flight.channel)
        if flight.sent:
            self.unresolved[request_id] = flight
            self.reconcile(flight.node, flight.channel)

    # -- sending ---------------------------------------------------------------------------------

    async def send(
        self,
        flight: Flight,
        path: str,
        extra: list[tuple[bytes, bytes]],
        body: bytes,
        timeout_s: float,
        *,
        chained: bool = False,
    ) -> Response:
        """Send with a voucher; a late one is signed again. Returns an answer of status 200.

        `chained`: a chained receipt will do, where the node is trusted with a window.

        Raises what the node answered otherwise: BadRequest where the request itself is at fault,
        else Unavailable or PaymentRequired, after which another node may be tried.
        """
        attempt, channel = flight.attempt, flight.channel
        flight.request_hash = sha256(body)
        fixed = [
            *extra,
            (headers.VERSION, headers.VERSION_SPOKEN),
            (headers.REQUEST_ID, b"0x" + hexlify(attempt.request_id)),
            (headers.OFFER, hex_bytes(attempt.offer_hash)),
            (headers.BOOKED, b"%d %d" % channel.booked),
        ]
        if chained and channel.takes_chained(self.treasury.window(attempt.offer.terms)):
            flight.chained = True
            fixed.append((headers.RECEIPTS, headers.CHAINED))
        flight.record.move(AttemptState.SENT)
        for _ in range(VOUCHER_RETRIES_MAX + 1):
            payment = (headers.PAYMENT_SIGNATURE, self._payment(flight))
            flight.sent = True
            try:
                response = await flight.node.transport.request(
                    "POST", path, [*fixed, payment], body, timeout_s=timeout_s
                )
            except TransportError as error:
                flight.sent = error.sent
                raise
            flight.response = response
            if response.status == 200:
                return response
            await self._refused(flight, response)
        raise Unavailable("The node takes no voucher of ours.", code="node_failed")

    def _payment(self, flight: Flight) -> bytes:
        """The header that pays: within a window mostly the same bytes as last time."""
        channel, voucher, attempt = flight.channel, flight.voucher, flight.attempt
        terms, units = attempt.offer.terms, attempt.maximum_units
        last = self._paid.get(channel.channel_id)
        if last is not None and last[0] is voucher and last[1] is terms and last[2] == units:
            return last[3]
        paid = x402.payment_signature(channel.config, voucher, terms, units)
        self._paid[channel.channel_id] = (voucher, terms, units, paid)
        return paid

    async def _refused(self, flight: Flight, response: Response) -> None:
        """Learn from an answer that is not 200; returns only where sending again makes sense."""
        try:
            async with asyncio.timeout(_ERROR_BODY_S):
                body = await response.read(_ERROR_BODY_MAX)
        except TimeoutError:
            raise Unavailable("The node's error does not end.", code="timeout") from None
        required = response.header(headers.PAYMENT_REQUIRED)
        await response.close()
        flight.response = None
        # A node that answers an error has taken no work, unless it says that it already has.
        flight.sent = response.status == 409
        if response.status == 402 and required is not None:
            await self._agree(flight, required)
            return
        if response.status == 402:
            raise OfferEnded("The node's offer has ended or changed.")
        raise _error_of(response.status, body)

    async def _agree(self, flight: Flight, required: bytes) -> None:
        try:
            reason, view = x402.parse_payment_required(required)
        except ValueError as error:
            raise Unavailable(
                f"The node's 402 cannot be read: {error}", code="node_failed"
            ) from None
        if reason == x402.REASONS["voucher_balance"]:
            await self.treasury.read(flight.channel)  # the node may have given some of it back
        channel = flight.channel
        if reason == x402.REASONS["voucher_amount"] and view is None:
            # Its book is lost, and it charged more than ours remembers: the chain knows how much.
            claimed = (await self.treasury.read(channel)).total_claimed
            if claimed > channel.charged:
                view = channel.resume_from_claims(claimed)
        if view is None or reason != x402.REASONS["voucher_amount"]:
            raise OfferEnded(f"The node refuses our payment: {reason}")
        if self._claims_more(flight, view):
            # Receipts that we missed explain it, or a voucher of ours that we have forgotten.
            await self.ask(flight.node, channel)
            if self._claims_more(flight, view):
                self._resume_from(flight, view)
        try:
            flight.voucher = channel.authorise_again(
                flight.attempt.request_id, view, self.treasury.authorizer
            )
        except TopUpNeeded as need:
            await self.treasury.top_up(flight.attempt.offer, channel, need.needed)
            flight.voucher = channel.authorise_again(
                flight.attempt.request_id, view, self.treasury.authorizer
            )

    @staticmethod
    def _claims_more(flight: Flight, view: x402.ChannelView) -> bool:
        channel = flight.channel
        most = channel.charged + channel.held_total + channel.unresolved_total
        return view.charged + flight.attempt.maximum_units > most

    def _resume_from(self, flight: Flight, view: x402.ChannelView) -> None:
        signer, request_id = self.treasury.authorizer.address, flight.attempt.request_id
        try:
            flight.channel.resume_from(view, signer, request_id)
        except Refused as error:
            raise Unavailable(
                f"No agreement with the node on their channel: {error.message}", code="node_failed"
            ) from None

    # -- settling --------------------------------------------------------------------------------

    def settle(
        self, flight: Flight, signed: SignedReceipt, response_hash: bytes, output_units: int
    ) -> None:
        """Check a receipt against what was received and book it. Raises ReceiptInvalid."""
        check_receipt(
            signed,
            flight.attempt,
            request_hash=flight.request_hash,
            response_hash=response_hash,
            output_units=output_units,
        )
        self.book(flight, signed)
        flight.channel.trust(signed.receipt.charge_pico_usd)

    def settle_chained(
        self, flight: Flight, short: ChainedReceipt, response_hash: bytes, output_units: int
    ) -> SignedReceipt:
        """The same for a chained receipt; its proof comes later. Raises ReceiptInvalid."""
        attempt, channel = flight.attempt, flight.channel
        if not flight.chained:
            raise ReceiptInvalid("The node chained a receipt that was to be signed.")
        receipt = check_chained(
            short,
            attempt,
            request_hash=flight.request_hash,
            response_hash=response_hash,
            output_units=output_units,
        )
        try:
            signer = ChainSigner(attempt.offer.node, channel.channel_id, channel.chain_id)
            digest = receipt.digest(channel.chain_id)
            channel.unproved.add(short, digest, signer, self.clock.now_ms())
        except Refused as error:
            raise ReceiptInvalid(f"The node's receipts do not chain: {error.message}.") from None
        signed = SignedReceipt(receipt, b"")
        self.book(flight, signed)
        channel.trust(receipt.charge_pico_usd)
        self.prove(flight.node, channel)
        return signed

    def book(self, flight: Flight, signed: SignedReceipt) -> None:
        """Book a checked receipt. Raises ReceiptInvalid where its number or total is off."""
        try:
            flight.channel.book(signed.receipt)
        except Refused as error:
            raise ReceiptInvalid(f"The node's receipt does not fit: {error.message}.") from None
        flight.record.settle(signed)
        flight.record.ended_ms = self.clock.now_ms()

    def save(self, flight: Flight, key_hash: bytes | None) -> asyncio.Future[None]:
        """Make a settled attempt durable with its channel and account, in one unit."""
        return self.ledger.save_attempt(flight.record, flight.channel, key_hash)


class _Opened:
    """The context of `Flights.open`."""

    __slots__ = ("_candidate", "_flight", "_flights", "_of")

    def __init__(
        self, flights: Flights, candidate: Candidate, job: Job, client_id: str, account: str,
        seed: int,
    ) -> None:  # fmt: skip
        self._flights, self._candidate = flights, candidate
        self._of = (job, client_id, account, seed)
        self._flight: Flight | None = None

    async def __aenter__(self) -> Flight:
        self._flight = flight = await self._flights.authorise(self._candidate, *self._of)
        return flight

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._flight is not None, "it was entered"
        await self._flights.end(self._flight, self._candidate, error)


def _error_of(status: int, body: bytes) -> InferpoolError:
    """The node's own error where it is one of ours, else one by its status.

    Only an error of the request itself is passed on as such: it would fail at any node.
    """
    code, message, param = _read_error(body)
    known = CODES.get(code, (0,))[0] == status
    if code == "model_not_found":
        return Unavailable("The node no longer serves this model.", code="no_node")
    if status in (400, 405, 413):
        return BadRequest(message, code=code if known else "invalid_request", param=param)
    if status == 429:  # more of ours is there than it takes from one payer
        return Unavailable(f"The node takes no more of ours now: {message}", code="overloaded")
    code = code if known and status >= 500 else "node_failed"
    return Unavailable(f"The node answered {status}: {message}", code=code)


def _read_error(body: bytes) -> tuple[str, str, str | None]:
    """Code, message and parameter of an error in the shape of either API."""
    try:
        value = orjson.loads(body)
        error = value["error"]
        if isinstance(error, dict):
            param = error.get("param")
            return str(error["code"]), str(error["message"])[:2000], param and str(param)
        return str(value.get("code", "")), str(error)[:2000], None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "", "no reason given", None
