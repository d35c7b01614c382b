"""Payments by one transfer: x402's scheme `exact`, for callers who ask once.

The transfer is sent and counts before any work is done, so the payee loses nothing; its price is
the request's maximum, or the least that is worth a transaction, and nothing of it comes back. It
buys one answer: where none came, the same payment may be shown again until one did, also where the
payee went down, or lost patience with the chain, before it booked the transfer: then it finds it
on the chain. So a payer loses, at most, one payment to a payee that never answers again, or that
it comes back to too late, or whose transfer somebody else sent.
"""

from __future__ import annotations

import asyncio
from typing import Final

from inferpool.chain.authorization import verify_transfer
from inferpool.chain.base import Chain, TransactionReceipt, Transfer
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PaidTransfer, PayeeLedger
from inferpool.payments.x402 import ExactPayment
from inferpool.protocol.errors import (
    InferpoolError,
    PaymentRequired,
    RateLimited,
    Refused,
    Unavailable,
)
from inferpool.protocol.limits import TRANSFERS_AT_ONCE
from inferpool.protocol.offer import Terms
from inferpool.protocol.voucher import ChannelConfig

Key = tuple[bytes, bytes]  # payer and nonce
_REASON: Final = "The one-off payment's terms differ: {}."


class OneOffs:
    """The one-off payments to one payee. `least`: base units of one at least; 0: none is taken."""

    def __init__(self, terms: Terms, chain: Chain, ledger: PayeeLedger, least: int) -> None:
        self._terms, self._chain, self._ledger, self._least = terms, chain, ledger, least
        self._running: dict[Key, PayeeChannel | None] = {}  # None: its transfer is on the way
        self._settling: dict[Key, asyncio.Task[PaidTransfer]] = {}  # also where the caller left

    def amount(self, maximum: int) -> int:
        """Base units that one request costs this way; 0 where it cannot be paid so."""
        return max(maximum, self._least) if self._least else 0

    async def admit(
        self, payment: ExactPayment, request_id: bytes, maximum: int, now_ms: int
    ) -> PayeeChannel:
        """Have the transfer mined, unless it was before, and hold it for a request.

        Returns a channel of its own, in which all is claimed already. Raises PaymentRequired,
        RateLimited, Unavailable.
        """
        transfer = payment.transfer
        self._check(payment, maximum)
        key = (transfer.holder, transfer.nonce)
        running = self._running.get(key)
        in_use = key in self._running and (running is None or running.held)
        # One whose answer is signed and not on disk yet is used up too.
        channel_id = self._config(transfer).channel_id(self._terms.chain_id)
        if in_use or key in self._settling or self._ledger.saving(channel_id):
            raise PaymentRequired(
                "This one-off payment is being used for a request now.", code="payment_used"
            )
        self._forget()
        if len(self._running.keys() | self._settling.keys()) >= TRANSFERS_AT_ONCE:
            raise RateLimited("Too many one-off payments at once; try again.", retry_after_s=1)
        self._running[key] = None
        try:
            paid = self._ledger.transfer(*key) or await self._settled(key, transfer, now_ms)
            if paid.request_id:
                raise PaymentRequired(
                    "This one-off payment bought an answer before; sign another one.",
                    code="payment_used",
                )
            if paid.amount < maximum:
                raise PaymentRequired(
                    f"This one-off payment was for {paid.amount} base units.", code="payment_terms"
                )
            channel = self._channel(transfer, paid)
            channel.held[request_id] = channel.held_total = paid.amount
            self._running[key] = channel
            return channel
        finally:
            if self._running[key] is None:
                del self._running[key]

    def _check(self, payment: ExactPayment, maximum: int) -> None:
        transfer, terms = payment.transfer, self._terms
        amount = self.amount(maximum)
        wrong = None
        if not amount:
            wrong = "only channels are taken here, scheme batch-settlement"
        elif payment.accepted_network != terms.network:
            wrong = f"network must be {terms.network}"
        elif payment.accepted_asset != terms.asset:
            wrong = "asset is not the offered one"
        elif transfer.to != terms.payee:
            wrong = "to is not this payee"
        elif (payment.accepted_amount, transfer.amount) != (amount, amount):
            wrong = f"amount and value must be {amount} base units"
        if wrong:
            raise PaymentRequired(_REASON.format(wrong), code="payment_terms")

    async def _settled(self, key: Key, transfer: Transfer, now_ms: int) -> PaidTransfer:
        """Once it is sent it is booked, even where the caller leaves meanwhile."""
        task = asyncio.create_task(self._settle(transfer, now_ms), name="settle a one-off payment")
        self._settling[key] = task
        task.add_done_callback(lambda _: self._settling.pop(key))
        return await asyncio.shield(task)

    async def _settle(self, transfer: Transfer, now_ms: int) -> PaidTransfer:
        mined = await self._mined(transfer)
        paid = PaidTransfer(transfer.amount, mined.transaction_hash, b"")
        config = self._config(transfer)
        await self._ledger.save_transfer(
            transfer,
            config.channel_id(self._terms.chain_id),
            mined.transaction_hash,
            mined.fee_wei,
            now_ms,
        )
        return paid

    async def _mined(self, transfer: Transfer) -> TransactionReceipt:
        """Have it mined, or find that we had: before we went down, or while the chain was silent.
        What somebody else sent may have bought somebody else's answer."""
        asset = self._terms.asset
        try:
            return await self._chain.transfer_authorized(asset, transfer)
        except Unavailable:
            raise  # it may be mined yet: the payer comes again, and it is found then
        except InferpoolError as error:
            refused = error.message
        self._check_signature(transfer, refused)
        found = await self._chain.transferred(asset, transfer)
        if found is None:
            raise self._failed(refused)
        return found

    def _check_signature(self, transfer: Transfer, refused: str) -> None:
        """Nobody has the chain searched but by a signature of his own."""
        terms = self._terms
        name, version = terms.asset_name, terms.asset_version
        try:
            verify_transfer(
                transfer, terms.asset, chain_id=terms.chain_id, name=name, version=version
            )
        except Refused:
            raise self._failed(refused) from None

    @staticmethod
    def _failed(refused: str) -> PaymentRequired:
        return PaymentRequired(
            f"The one-off payment did not go through: {refused}", code="transfer_failed"
        )

    def _config(self, transfer: Transfer) -> ChannelConfig:
        """Terms of the channel that a one-off payment stands for; its nonce makes it its own."""
        terms = self._terms
        return ChannelConfig(
            payer=transfer.holder,
            payer_authorizer=transfer.holder,
            receiver=terms.payee,
            receiver_authorizer=terms.receiver_authorizer,
            token=terms.asset,
            withdraw_delay_s=terms.withdraw_delay_s,
            salt=transfer.nonce,
        )

    def _channel(self, transfer: Transfer, paid: PaidTransfer) -> PayeeChannel:
        config, terms = self._config(transfer), self._terms
        return PayeeChannel(
            config,
            config.channel_id(terms.chain_id),
            terms.chain_id,
            terms.asset_decimals,
            balance=paid.amount,
            claimed=paid.amount,
            best=paid.amount,
            transaction=paid.transaction,
        )

    def _forget(self) -> None:
        """Let go of payments whose request has ended; what came of them is in the ledger."""
        for key, channel in list(self._running.items()):
            if channel is not None and not channel.held:
                del self._running[key]
