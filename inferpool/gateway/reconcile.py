"""Late receipts: what ended without one here may have one at the node.

After a cut, a client that left, or a crash, the node is asked for the receipts after the last one
that was booked. A request that the node neither has in flight nor receipted costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from inferpool.clock import Clock
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.treasury import Treasury
from inferpool.identity.signing import verify
from inferpool.payments.budget import Account
from inferpool.payments.checks import ReceiptInvalid, check_late_receipt
from inferpool.payments.fees import fee_down, without_fee
from inferpool.payments.payer import PayerChannel
from inferpool.payments.payer_ledger import AttemptRecord, PayerLedger
from inferpool.protocol import headers
from inferpool.protocol.eip712 import UINT64_MAX
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import InferpoolError, Refused, Unavailable
from inferpool.protocol.lifecycle import AttemptState
from inferpool.protocol.limits import (
    CHAIN_PROOF_MS,
    RECEIPT_MAX,
    RECEIPTS_PAGE_MAX,
    UNRESOLVED_HOLD_S,
)
from inferpool.protocol.receipt import SignedReceipt, receipts_request_digest
from inferpool.protocol.units import pico_usd_per_base_unit
from inferpool.protocol.voucher import voucher_digest
from inferpool.transport.base import AnswerInvalid

if TYPE_CHECKING:
    from inferpool.gateway.flights import Flights
    from inferpool.gateway.walk_ins import WalkIns

_LOG = logging.getLogger("inferpool.reconcile")
_TRIES = 8
_FIRST_DELAY_S = 0.5
_PAGE_BYTES_MAX = RECEIPTS_PAGE_MAX * RECEIPT_MAX + 64 * 1024


@dataclass(slots=True)
class Reconciler:
    """Asks nodes for receipts; one task a channel at most."""

    ledger: PayerLedger
    clock: Clock
    free: Callable[[Account, str], None]  # end a client request's hold
    fee_bps: int = 0
    _tasks: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)
    _proving: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)
    _closed: bool = False
    _lost: dict[bytes, AttemptRecord] = field(default_factory=dict)  # of an earlier run
    walk_ins: WalkIns | None = None
    _ending: set[asyncio.Task[None]] = field(default_factory=set)
    _letting: dict[bytes, asyncio.TimerHandle] = field(default_factory=dict)
    flights: Flights = field(init=False)
    _began_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self._began_ms = self.clock.now_ms()

    def soon(self, node: KnownNode, channel: PayerChannel) -> None:
        """Ask in a moment, and again with growing pauses until nothing is unresolved."""
        task = self._tasks.get(channel.channel_id)
        if not self._closed and (task is None or task.done()):
            self._tasks[channel.channel_id] = asyncio.create_task(
                self._until_resolved(node, channel), name="reconcile"
            )

    def prove_later(self, node: KnownNode, channel: PayerChannel) -> None:
        """Ask for signatures of chained receipts, unless later answers bring them first."""
        task = self._proving.get(channel.channel_id)
        if not self._closed and (task is None or task.done()):
            self._proving[channel.channel_id] = asyncio.create_task(
                self._until_proved(node, channel), name="prove"
            )

    async def _until_proved(self, node: KnownNode, channel: PayerChannel) -> None:
        """A node that answers and does not sign what it charged is a stranger again."""
        silent = 0
        while channel.unproved.count and silent < _TRIES:
            await asyncio.sleep(CHAIN_PROOF_MS / 1000)
            if not channel.unproved.overdue(self.clock.now_ms() - CHAIN_PROOF_MS // 2):
                continue
            before = channel.unproved.seqs()
            try:
                shown = await self.ask(node, channel)
            except InferpoolError as error:
                _LOG.info("node %s proves nothing: %s", to_hex(node.address), error.message)
                silent += 1
                continue
            silent, after = 0, set(channel.unproved.seqs())
            left = [seq for seq in before if seq in after and seq <= shown]
            if left:
                self._caught(node, channel, f"{len(left)} chained receipts are never signed")
        channel.unproved.forget()

    def _caught(self, node: KnownNode, channel: PayerChannel, why: str) -> None:
        _LOG.error("receipts of %s refused: %s", to_hex(node.address), why)
        node.failed(self.clock.now_ms(), "receipt_invalid")
        channel.distrust()
        channel.unproved.forget()

    async def close(self) -> None:
        """Stop asking."""
        self._closed = True
        for timer in self._letting.values():
            timer.cancel()
        tasks = [*self._tasks.values(), *self._proving.values()]
        for task in tasks:
            task.cancel()
        if tasks or self._ending:
            await asyncio.wait([*tasks, *self._ending])

    async def _until_resolved(self, node: KnownNode, channel: PayerChannel) -> None:
        delay_s = _FIRST_DELAY_S
        for _ in range(_TRIES):
            await asyncio.sleep(delay_s)
            delay_s *= 2
            try:
                await self.ask(node, channel)
            except InferpoolError as error:
                _LOG.info("node %s gives no receipts: %s", to_hex(node.address), error.message)
            if not self.owes(channel):
                return
        self._let_go_later(channel)

    def _let_go_later(self, channel: PayerChannel) -> None:
        """Its node may be gone for good. What it may still charge stays within what the channel has
        signed for; a client's hold does not wait for it for ever."""
        if channel.channel_id not in self._letting and not self._closed:
            later = asyncio.get_running_loop().call_later
            self._letting[channel.channel_id] = later(UNRESOLVED_HOLD_S, self._let_go, channel)

    def _let_go(self, channel: PayerChannel) -> None:
        """Free the holds behind attempts that ended so long ago; a receipt that comes after all is
        the gateway's own cost."""
        del self._letting[channel.channel_id]
        before_ms = self.clock.now_ms() - int(1000 * UNRESOLVED_HOLD_S)
        unresolved = self.flights.unresolved
        flights = [unresolved[item] for item in channel.unresolved if item in unresolved]
        for flight in flights:
            if flight.record.ended_ms > before_ms:
                self._let_go_later(channel)
            elif not flight.ours:
                flight.ours = True
                self._release(flight.record)

    async def recover(self, nodes: list[KnownNode], treasury: Treasury) -> None:
        """After a restart: every open attempt is lost until its node says otherwise."""
        for record in self.ledger.open_attempts:
            if record.state is not AttemptState.LOST:
                record.move(AttemptState.LOST)
            self._lost[record.request_id] = record
            self.ledger.save_attempt(record)
        for node in nodes:
            for channel in self.ledger.channels_of(node.address):
                try:
                    await self.ask(node, channel)
                except InferpoolError as error:
                    _LOG.warning("node %s: %s", to_hex(node.address), error.message)
                    self.soon(node, channel)
        if self._lost:
            most = sum(record.maximum_units for record in self._lost.values())
            _LOG.warning(
                "%d attempts of an earlier run have no receipt yet: at most %d base units",
                len(self._lost),
                most,
            )

    async def ask(self, node: KnownNode, channel: PayerChannel) -> int:
        """Fetch, check and book. Raises Unavailable, Refused.

        Returns the number up to which the node has shown its receipts.
        """
        after = min([channel.next_seq, *channel.unproved.seqs()[:1]]) - 1
        while True:
            before = (channel.next_seq, channel.unproved.count)
            receipts, running = await self._fetch(node, channel, after)
            for signed in receipts:
                self._book(node, channel, signed)
            if len(receipts) < RECEIPTS_PAGE_MAX:
                after = UINT64_MAX  # that was all
                break
            reached = max(signed.receipt.seq for signed in receipts)
            if reached <= after or before == (channel.next_seq, channel.unproved.count):
                break
            after = reached
        self._resolve(channel, running)
        if after == UINT64_MAX and not running:
            channel.close_gaps()
        return after

    async def _fetch(
        self, node: KnownNode, channel: PayerChannel, after: int
    ) -> tuple[list[SignedReceipt], set[bytes]]:
        path = f"/inferpool/receipts?channel={to_hex(channel.channel_id)}&after={after}"
        digest = receipts_request_digest(node.address, channel.channel_id, channel.chain_id)
        signature = to_hex(self.flights.treasury.authorizer.sign(digest)).encode()
        response = await node.transport.request(
            "GET", path, [(headers.SIGNATURE, signature)], timeout_s=10.0
        )
        try:
            body = await response.read(_PAGE_BYTES_MAX)
            if response.status == 404:
                return [], set()  # a node without the channel never charged on it
            if response.status != 200:
                raise Unavailable(f"status {response.status}", code="node_failed")
        finally:
            await response.close()
        try:
            value = orjson.loads(body)
            receipts = [SignedReceipt.from_wire(item) for item in value["receipts"]]
            self._remember(channel, value["voucher"])
            return receipts, {from_hex(item, 32) for item in value["inFlight"]}
        except (ValueError, KeyError, TypeError) as error:
            raise AnswerInvalid(f"a page of receipts that cannot be read: {error}") from None

    def _remember(self, channel: PayerChannel, voucher: dict[str, str]) -> None:
        """A voucher of ours that went down in a crash: the node shows it, our signature proves it.

        Raises ValueError for one that is not ours.
        """
        amount = int(voucher["maxClaimableAmount"])
        if not channel.signed_max < amount <= channel.balance:
            return
        digest = voucher_digest(channel.channel_id, amount, channel.chain_id)
        try:
            signature = from_hex(voucher["signature"], 65)
            verify(digest, signature, self.flights.treasury.authorizer.address)
        except Refused as error:
            raise ValueError(error.message) from None
        channel.signed_max = amount

    def _book(self, node: KnownNode, channel: PayerChannel, signed: SignedReceipt) -> None:
        receipt = signed.receipt
        request_id = receipt.request_id
        if receipt.seq < channel.next_seq or receipt.seq in channel.booked_ahead:
            self._prove(node, channel, signed)
            return
        if request_id in self.flights.active:
            return  # its answer is on the way; it is booked there, against what arrives
        try:
            late = self.flights.unresolved.get(request_id)
            record = self._check(node, channel, signed)
            if record is None:
                return
            channel.book(receipt)  # what is refused here stays unresolved, and so has an end
            self.flights.unresolved.pop(request_id, None)
            self._lost.pop(request_id, None)
        except (ReceiptInvalid, Refused) as error:
            _LOG.error("late receipt of %s refused: %s", to_hex(node.address), error.message)
            node.failed(self.clock.now_ms(), "receipt_invalid")
            channel.distrust()
            return
        record.settle(signed)
        record.ended_ms = record.ended_ms or self.clock.now_ms()
        key_hash, account = self._account(record.account)
        if account is not None:
            # While the client is served, and once its bill is final, another node's answer is what
            # it pays for: this one is our own cost. It never pays more than what was held.
            client = record.client_request_id
            held = without_fee(account.held.get(client.encode(), 0), self.fee_bps)
            if late is None and record.started_ms < self._began_ms:
                # Of an earlier run, whose holds are gone.
                held = 0 if self._billed_elsewhere(record) else receipt.charge_pico_usd
            elif late is None or late.ours:  # its node denied it, and its hold went
                held = 0
            ours = client in self.flights.serving or client in self.flights.forgiven
            if held and not ours:
                record.billed_pico_usd = min(held, receipt.charge_pico_usd)
                record.fee_pico_usd = fee_down(record.billed_pico_usd, self.fee_bps)
                account.at(self.clock.now_ms())
                account.spend(client.encode(), record.billed_pico_usd + record.fee_pico_usd)
                if self.walk_ins is not None:
                    billed = record.billed_pico_usd + record.fee_pico_usd
                    self.walk_ins.billed(client, signed, billed)
            self._release(record)
        self.ledger.save_attempt(record, channel, key_hash)

    def _billed_elsewhere(self, record: AttemptRecord) -> bool:
        """Whether another attempt of the same request is on its bill."""
        return any(
            other.billed_pico_usd
            for other in self.ledger.attempts_of(record.client_request_id)
            if other.request_id != record.request_id
        )

    def _prove(self, node: KnownNode, channel: PayerChannel, signed: SignedReceipt) -> None:
        """A receipt that is booked already: its signature may be the first that covers it."""
        seq = signed.receipt.seq
        if not channel.unproved.count or seq not in channel.unproved.seqs():
            return
        digest = signed.receipt.digest(channel.chain_id)
        try:
            verify(digest, signed.signature, node.address)
            channel.unproved.prove_one(seq, digest)
        except Refused as error:
            self._caught(node, channel, error.message)

    def _check(
        self, node: KnownNode, channel: PayerChannel, signed: SignedReceipt
    ) -> AttemptRecord | None:
        """The record that a late receipt belongs to; None where there is nothing to book.

        Raises ReceiptInvalid, Refused where the node shows what it may not.
        """
        receipt = signed.receipt
        request_id = receipt.request_id
        flight = self.flights.unresolved.get(request_id)
        if flight is not None:
            if flight.cheated:
                raise ReceiptInvalid("This answer's receipt was refused before.")
            check_late_receipt(signed, flight.attempt)
            return flight.record
        record = self._lost.get(request_id) or self._known(channel, request_id)
        if record is None:
            if not self.flights.treasury.request_ids.ours(request_id, channel.channel_id):
                _LOG.error("node %s has a receipt for no request of ours", to_hex(node.address))
                return None
            record = _forgotten(node, signed)
        if receipt.charge_pico_usd > record.maximum_pico_usd:
            raise ReceiptInvalid("A late receipt charges more than its maximum.")
        unit = pico_usd_per_base_unit(channel.decimals)
        if channel.total_pico_usd + receipt.charge_pico_usd >= (channel.signed_max + 1) * unit:
            raise ReceiptInvalid("A late receipt charges more than any voucher of ours covers.")
        verify(receipt.digest(channel.chain_id), signed.signature, node.address)
        return record

    def _known(self, channel: PayerChannel, request_id: bytes) -> AttemptRecord | None:
        """An attempt on disk that may still be charged. Raises ReceiptInvalid for one that may not:
        it was settled (an id is charged once), refused, or its receipt was."""
        record = self.ledger.attempt(request_id)
        if record is None:
            return None
        chargeable = (AttemptState.FAILED, AttemptState.LOST)
        if record.state not in chargeable or record.error_code == "receipt_invalid":
            raise ReceiptInvalid("A receipt for a request that is over.")
        if record.channel_id != channel.channel_id:
            raise ReceiptInvalid("A receipt on another channel than its request.")
        return record

    def _resolve(self, channel: PayerChannel, running: set[bytes]) -> None:
        """What the node neither runs nor receipted is over and owes nothing."""
        for request_id in [item for item in channel.unresolved if item not in running]:
            channel.resolve(request_id)
            flight = self.flights.unresolved.pop(request_id, None)
            if flight is not None:
                self._release(flight.record)
        for record in self._lost_of(channel):
            if record.request_id not in running:
                del self._lost[record.request_id]
                record.move(AttemptState.FAILED)
                self.ledger.save_attempt(record)

    def _release(self, record: AttemptRecord) -> None:
        """Free the budget's hold once nothing of the client's request can be charged any more.

        While it is served, another node's answer is on its way under that hold.
        """
        _, account = self._account(record.account)
        client = record.client_request_id
        busy = client in self.flights.serving or self.flights.pending(client)
        if account is not None and not busy:
            self.free(account, client)
            if self.walk_ins is not None and record.client_request_id in self.walk_ins.waiting:
                ending = asyncio.create_task(
                    self.walk_ins.ended(record.client_request_id), name="settle a walk-in"
                )
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    def owes(self, channel: PayerChannel) -> bool:
        """Whether attempts of this channel wait for their node's word."""
        return bool(channel.unresolved or self._lost_of(channel))

    def _lost_of(self, channel: PayerChannel) -> list[AttemptRecord]:
        return [item for item in self._lost.values() if item.channel_id == channel.channel_id]

    def _account(self, name: str) -> tuple[bytes | None, Account | None]:
        account_id = self.ledger.keys.by_name.get(name)
        return account_id, self.ledger.accounts[account_id] if account_id is not None else None


def _forgotten(node: KnownNode, signed: SignedReceipt) -> AttemptRecord:
    """A record for a request of ours that went down in a crash before it was on disk.

    Its maximum is not known any more; its voucher covers the charge, or the node could not claim
    it. It is the operator's cost, since nobody knows whose request it was.
    """
    receipt = signed.receipt
    return AttemptRecord(
        request_id=receipt.request_id,
        client_request_id="",
        account="",
        node=node.address,
        channel_id=receipt.channel_id,
        model="",
        task="",
        maximum_pico_usd=receipt.charge_pico_usd,
        maximum_units=0,
        started_ms=receipt.started_ms,
        state=AttemptState.LOST,
    )
