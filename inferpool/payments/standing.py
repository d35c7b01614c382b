"""The payee's channels for their owner's eyes, and money given back to payers who ask for it.

A refund pays out of a channel at once what its payer would otherwise wait a withdrawal's delay for.
It never touches what was earned: that is claimed first, and nothing is in flight meanwhile.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson

from inferpool.chain.base import Chain, ChannelState, TransactionReceipt
from inferpool.payments import x402
from inferpool.payments.claims import Claimer
from inferpool.payments.gate import PaymentGate
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol.encoding import from_hex, to_checksum, to_hex
from inferpool.protocol.errors import BadRequest, PaymentRequired, RateLimited, Refused
from inferpool.protocol.headers import PAYMENT_RESPONSE, PAYMENT_SIGNATURE
from inferpool.protocol.limits import CHANNEL_READS_AT_ONCE
from inferpool.transport.asgi import HttpRequest


@dataclass(frozen=True, slots=True)
class Standing:
    """One channel with what the chain says of it; amounts in base units, times in UNIX seconds."""

    channel: PayeeChannel
    state: ChannelState
    now_s: int  # of the chain

    @property
    def free(self) -> int:
        """What may go back to the payer: neither claimed, nor earned, nor in flight."""
        channel = self.channel
        bound = max(self.state.total_claimed, channel.earned, channel.reported)
        return max(0, self.state.balance - bound - channel.held_total)

    @property
    def ready_at_s(self) -> int:
        """When the payer may take out what it asked for; 0 where it did not ask."""
        started_s = self.state.withdraw_started_s
        return started_s + self.channel.config.withdraw_delay_s if started_s else 0

    def to_wire(self) -> dict[str, object]:
        """For JSON. At risk is what would be lost if the payer's money left before a claim."""
        channel, state = self.channel, self.state
        ready = self.ready_at_s
        way_back = "none" if not ready else "ready" if self.now_s >= ready else "pending"
        unclaimed = max(0, min(channel.earned, channel.best) - state.total_claimed)
        return {
            "side": "payee",
            "channel": to_hex(channel.channel_id),
            "with": to_checksum(channel.config.payer),
            "payee": to_checksum(channel.config.receiver),
            "token": to_checksum(channel.config.token),
            "deposited_base_units": state.balance,
            "claimed_base_units": state.total_claimed,
            "unclaimed_base_units": unclaimed,
            "at_risk_base_units": unclaimed if ready else 0,
            "free_base_units": self.free,
            "charged_pico_usd": channel.total_pico_usd,
            "signed_base_units": channel.best,
            "receipts": channel.seq,
            "way_back": way_back,
            "way_back_base_units": state.withdraw_amount,
            "way_back_ready_at_s": ready,
            "withdraw_delay_s": channel.config.withdraw_delay_s,
        }


class Channels:
    """Looks at one payee's channels, and refunds. `chain` sends for the receiver's side."""

    def __init__(
        self, chain: Chain, ledger: PayeeLedger, gate: PaymentGate, claimer: Claimer
    ) -> None:
        self._chain, self._ledger, self._gate, self._claimer = chain, ledger, gate, claimer

    async def look(self) -> list[Standing]:
        """Every channel with its state on chain."""
        now_s = await self._chain.now_s()
        places = asyncio.Semaphore(CHANNEL_READS_AT_ONCE)

        async def read(channel: PayeeChannel) -> Standing:
            async with places:
                return Standing(channel, await self._chain.channel(channel.channel_id), now_s)

        return list(await asyncio.gather(*map(read, list(self._ledger.channels.values()))))

    async def refund(self, channel_id: bytes, amount: int | None) -> Standing:
        """Give back what is free, or `amount` base units of it. Raises BadRequest, Refused."""
        channel = self._ledger.channels.get(channel_id)
        if channel is None:
            raise BadRequest("No channel of this node has that id.", code="not_found")
        await self._refund(channel, amount)
        state, now_s = await self._chain.channel(channel_id), await self._chain.now_s()
        return Standing(channel, state, now_s)

    async def requested(self, request: HttpRequest) -> None:
        """`GET /inferpool/refund`: the payer itself asks, by x402's refund payload, for all that
        is free or for a part that is worth a transaction. Raises PaymentNeeded, RateLimited."""
        await request.body(0)
        try:
            header = request.headers.get(PAYMENT_SIGNATURE)
            asked = x402.parse_payment(header) if header is not None else None
            if not isinstance(asked, x402.RefundRequest):
                raise PaymentRequired(
                    "Send the header PAYMENT-SIGNATURE of type refund, with a voucher for what was"
                    " charged: what is left in the channel is paid back at once."
                )
            channel = await self._gate.refundable(asked)
            mined, amount = await self._give(channel, asked.amount)
        except PaymentRequired as error:
            raise self._gate.needed(error, 1, request.path, once=False) from None
        response = x402.refund_response(
            self._gate.terms, channel.config.payer, channel.view(), mined.transaction_hash, amount
        )
        told = {"channel": to_hex(channel.channel_id), "refunded_base_units": amount}
        await request.answer_json(told, headers=[(PAYMENT_RESPONSE, response)])

    async def _give(
        self, channel: PayeeChannel, amount: int | None
    ) -> tuple[TransactionReceipt, int]:
        """What its payer asked for. Raises PaymentRequired where that is nothing, or too little."""
        free = Standing(channel, await self._chain.channel(channel.channel_id), 0).free
        if not free:
            raise PaymentRequired("Nothing is free on this channel.", code="refund_empty")
        if amount is not None and not min(free, self._gate.terms.min_deposit) <= amount <= free:
            raise PaymentRequired(
                f"{free} base units are free; ask for all of it, or for as much as a deposit at"
                f" least, {self._gate.terms.min_deposit}.",
                code="refund_amount",
            )
        try:
            return await self._refund(channel, amount)
        except Refused as error:
            raise RateLimited(error.message, retry_after_s=5) from None

    async def _refund(
        self, channel: PayeeChannel, amount: int | None
    ) -> tuple[TransactionReceipt, int]:
        channel_id = channel.channel_id
        if channel_id in self._gate.refunding:
            raise Refused("a refund of this channel is under way; try again")
        self._gate.refunding.add(channel_id)
        channel.paying_back = True  # no new work while money moves
        try:
            if channel.held:
                raise Refused("requests are in flight on this channel; try again")
            await self._claimer.claim()
            standing = Standing(channel, await self._chain.channel(channel_id), 0)
            if channel.unclaimed:
                raise Refused("what was earned could not be claimed; the node's log says why")
            if standing.free < (amount or 1):
                raise Refused(f"{standing.free} base units are free on this channel")
            # Without an answer it may be mined later, also after a restart: no new work till then.
            nonce, before = standing.state.refund_nonce, self._ledger.refunds.get(channel_id, -1)
            await self._ledger.save_refund(channel_id, nonce)
            try:
                mined = await self._chain.refund(channel.config, amount or standing.free)
            except Refused:
                if before < nonce:  # no earlier one waits, and this one never comes
                    await self._ledger.save_refund(channel_id, before)
                raise
            return mined, amount or standing.free
        finally:
            self._gate.refunding.discard(channel_id)
            await self._gate.refresh(channel)  # says whether it is over; it is not, unless read

    async def listed(self, body: bytes) -> dict[str, Any]:
        """`GET /inferpool/control/channels`."""
        return {"channels": [item.to_wire() for item in await self.look()]}

    async def refunded(self, body: bytes) -> dict[str, Any]:
        """`POST /inferpool/control/refund`: `channel`, and `base_units` where not all."""
        try:
            value = orjson.loads(body)
            channel_id, amount = from_hex(value["channel"], 32), value.get("base_units")
            if amount is not None and (not isinstance(amount, int) or amount < 1):
                raise ValueError("base_units must be a whole number above 0")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRequest(f"channel, and perhaps base_units: {error}.") from None
        return {"channels": [(await self.refund(channel_id, amount)).to_wire()]}
