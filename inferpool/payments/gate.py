"""The gate that every paid request passes: terms, channel, deposit, voucher.

A request comes out with its maximum held on a channel whose voucher covers it, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from inferpool.chain.base import Chain
from inferpool.payments import x402
from inferpool.payments.one_off import OneOffs
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.payers import ANYONE, Payers
from inferpool.protocol import headers
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import (
    BadRequest,
    InferpoolError,
    PaymentRequired,
    RateLimited,
    Unavailable,
)
from inferpool.protocol.limits import CHANNELS_MAX, CONCURRENT_PER_CHANNEL
from inferpool.protocol.offer import Terms
from inferpool.protocol.voucher import ChannelConfig

_LOCKS_MAX: Final = 1024


class PaymentGate:
    """Admits payments of one set of terms."""

    def __init__(
        self,
        terms: Terms,
        chain: Chain,
        ledger: PayeeLedger,
        payers: Payers = ANYONE,
        concurrent_per_channel: int = CONCURRENT_PER_CHANNEL,
        one_off_least: int = 0,
        *,
        method: str = x402.EIP3009,
    ) -> None:
        """`method`: how deposits of the asset are authorised, as `deposit_method` finds it."""
        self.terms, self.payers, self._method = terms, payers, method
        if method != x402.EIP3009:
            one_off_least = 0  # one transfer by signature needs a token that knows them
        self.concurrent = concurrent_per_channel
        self._chain = chain
        self.one_offs = OneOffs(terms, chain, ledger, one_off_least)
        self._ledger = ledger
        self.refunding: set[bytes] = set()  # channels whose refund is being sent
        self._fresh: set[bytes] = set()  # channels whose chain state was read since the start
        self._known: dict[ChannelConfig, PayeeChannel] = {}  # those, by terms that were checked
        self._locks: dict[bytes, asyncio.Lock] = {}

    async def admit(
        self, header: bytes, request_id: bytes, maximum: int, booked: bytes = b"", now_ms: int = 0
    ) -> PayeeChannel:
        """Hold `maximum` base units for a request. Raises PaymentRequired with the reason.

        `booked`: our own payer's header of that name, or nothing. `now_ms`: when it is.

        RateLimited where the channel has too many requests in flight: one payer, however rich,
        leaves places to others. Asked before the signature is checked and before the voucher is
        kept, so that what is refused costs little and changes nothing.
        """
        payment = x402.parse_payment(header)
        if isinstance(payment, x402.ExactPayment):
            self.payers.check(payment.transfer.holder)
            return await self.one_offs.admit(payment, request_id, maximum, now_ms)
        if isinstance(payment, x402.RefundRequest):
            raise PaymentRequired(
                "A refund buys no answer; ask for it at GET /inferpool/refund.",
                code="payment_invalid",
            )
        config, voucher = payment.config, payment.voucher
        channel = self._known.get(config)
        if channel is None or payment.accepted_network != self.terms.network:
            self._check_config(config, payment.accepted_network)
        if payment.accepted_amount != maximum:
            raise _amount_differs(maximum)
        self.payers.check(config.payer)
        channel_id = channel.channel_id if channel else config.channel_id(self.terms.chain_id)
        if voucher.channel_id != channel_id:
            raise PaymentRequired(
                "The voucher names another channel than its configuration.", code="payment_terms"
            )
        if payment.kind == "deposit":
            await self._deposit(channel_id, payment)
        if channel is None:
            channel = self._known[config] = await self.channel(config, channel_id)
        if len(channel.held) >= self.concurrent:
            raise RateLimited(
                f"This channel has {len(channel.held)} requests in flight here, which is all that"
                " one channel may have; wait for one to end.",
                retry_after_s=1,
            )
        if voucher.max_claimable > channel.balance or channel.paying_back:
            await self.refresh(channel)  # a top-up may have been mined since, or the refund
        try:
            channel.admit(request_id, voucher, maximum, _booked(booked) if booked else (0, 0))
        except PaymentRequired as error:
            raise Disagreement(error, channel) from None
        return channel

    def needed(
        self, error: PaymentRequired, maximum: int, url: str, *, once: bool = True
    ) -> PaymentNeeded:
        """The 402 that says why, and how to go on: for a request of at most `maximum` base units
        at a path, from a channel, or by `once` too."""
        view = error.channel.view(corrective=True) if isinstance(error, Disagreement) else None
        exact = self.one_offs.amount(maximum) if once else 0
        return PaymentNeeded(
            error,
            x402.payment_required(self.terms, maximum, url, error, view, exact, self._method),
        )

    def unpaid(self, maximum: int) -> PaymentRequired:
        """What to tell a caller who sent no payment."""
        name, exact = self.terms.asset_name, self.one_offs.amount(maximum)
        once = (
            f" Or pay once for this request, scheme exact: {exact} base units by EIP-3009; nothing"
            " of that comes back, and where no answer came the same payment is good again."
            if exact
            else ""
        )
        by = (
            " The asset has no EIP-3009: give Permit2 an allowance of it once, and deposit by"
            " Permit2."
            if self._method == x402.PERMIT2
            else ""
        )
        return PaymentRequired(
            f"This request costs at most {maximum} base units of {name}. Pay by x402, scheme"
            " batch-settlement: send the header PAYMENT-SIGNATURE, made from the header"
            " PAYMENT-REQUIRED of this answer; you are charged what is used, and what is left in"
            f" the channel stays yours.{by}{once}"
        )

    @staticmethod
    def crowded() -> RateLimited:
        """What to tell a payer while too many are served."""
        return RateLimited("Too many paid requests at once; try again.", retry_after_s=1)

    def response(self, channel: PayeeChannel, reported: int) -> bytes:
        """PAYMENT-RESPONSE for a request, of which `reported` base units were reported now."""
        payer = channel.config.payer
        if channel.transaction:
            return x402.exact_response(self.terms, payer, channel.transaction, channel.balance)
        return x402.payment_response(self.terms, payer, channel.view(), reported)

    async def refundable(self, request: x402.RefundRequest) -> PayeeChannel:
        """The channel of a refund that its payer asks for. Raises PaymentRequired."""
        self._check_config(request.config, request.accepted_network)
        channel_id = request.config.channel_id(self.terms.chain_id)
        if request.voucher.channel_id != channel_id:
            raise PaymentRequired(
                "The voucher names another channel than its configuration.", code="payment_terms"
            )
        channel = await self.channel(request.config, channel_id)
        channel.check_signature(request.voucher)
        if request.voucher.max_claimable != channel.reported:
            error = PaymentRequired(
                f"A refund's voucher is for what was charged, {channel.reported} base units.",
                code="voucher_amount",
            )
            raise Disagreement(error, channel)
        return channel

    def _check_config(self, config: ChannelConfig, network: str) -> None:
        terms = self.terms
        wrong = None
        if network != terms.network:
            wrong = f"network must be {terms.network}"
        elif config.receiver != terms.payee:
            wrong = "receiver is not this node's payee"
        elif config.receiver_authorizer != terms.receiver_authorizer:
            wrong = "receiverAuthorizer is not this node's"
        elif config.token != terms.asset:
            wrong = "token is not the offered asset"
        elif config.withdraw_delay_s != terms.withdraw_delay_s:
            wrong = f"withdrawDelay must be {terms.withdraw_delay_s} seconds"
        elif not any(config.payer_authorizer):
            # A zero authoriser lets a wallet contract judge signatures, and change its mind.
            wrong = "payerAuthorizer must be a key, not zero"
        if wrong:
            raise PaymentRequired(f"The payment's terms differ: {wrong}.", code="payment_terms")

    async def channel(self, config: ChannelConfig, channel_id: bytes) -> PayeeChannel:
        """The channel, read from the chain the first time. Raises PaymentRequired."""
        channel = self._ledger.channels.get(channel_id)
        if channel is not None and channel_id in self._fresh:
            return channel
        if channel is None:
            if len(self._ledger.channels) >= CHANNELS_MAX:
                raise Unavailable("This node keeps no more channels.", code="overloaded")
            channel = PayeeChannel(
                config, channel_id, self.terms.chain_id, self.terms.asset_decimals
            )
        await self.refresh(channel)
        if channel.balance == 0:
            self._fresh.discard(channel_id)  # anybody can name channels without end
            raise PaymentRequired(
                "The channel holds no money on the chain; deposit first.", code="channel_not_found"
            )
        # Two first requests may have read the chain side by side: the first one's object stays.
        return self._ledger.channels.setdefault(channel_id, channel)

    async def refresh(self, channel: PayeeChannel) -> None:
        """Read a channel's state from the chain."""
        state = await self._chain.channel(channel.channel_id)
        channel.balance, channel.claimed = state.balance, state.total_claimed
        unknown = channel.channel_id not in self._ledger.channels
        if unknown or state.total_claimed > channel.best:
            # What was claimed on chain was charged by us once, whatever our own book remembers: no
            # claim passes a voucher, so one above all of the book's is of a later book.
            channel.reported = max(channel.reported, state.total_claimed)
            channel.total_pico_usd = max(
                channel.total_pico_usd,
                state.total_claimed * 10 ** (12 - self.terms.asset_decimals),
            )
        channel.closing = state.withdraw_started_s > 0
        # A refund without an answer may be mined yet; its nonce tells that it was.
        sent = state.refund_nonce <= self._ledger.refunds.get(channel.channel_id, -1)
        channel.paying_back = sent or channel.channel_id in self.refunding
        self._fresh.add(channel.channel_id)

    async def _deposit(self, channel_id: bytes, payment: x402.Payment) -> None:
        authorization = payment.authorization
        assert authorization is not None, "the parser gives a deposit its authorisation"
        if payment.deposit_amount < self.terms.min_deposit:
            raise PaymentRequired(
                f"A deposit must be at least {self.terms.min_deposit} base units.",
                code="deposit_failed",
            )
        if len(self._locks) >= _LOCKS_MAX:
            self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        async with self._locks.setdefault(channel_id, asyncio.Lock()):
            try:
                await self._chain.deposit(payment.config, payment.deposit_amount, authorization)
            except Unavailable:
                raise
            except InferpoolError as error:
                # It may have been mined before, and its answer lost: then its money is there.
                state = await self._chain.channel(channel_id)
                if state.balance < payment.voucher.max_claimable:
                    raise PaymentRequired(
                        f"The deposit did not go through: {error.message}", code="deposit_failed"
                    ) from None
            channel = self._ledger.channels.get(channel_id)
            if channel is not None:
                await self.refresh(channel)


async def deposit_method(chain: Chain, asset: bytes) -> str:
    """How deposits of an asset are authorised: by EIP-3009 where it has it, which asks nothing of
    its holder beforehand, else by Permit2. Raises Unavailable."""
    return x402.EIP3009 if await chain.takes_authorizations(asset) else x402.PERMIT2


def identify(sent: Mapping[bytes, bytes], random: Callable[[int], bytes]) -> tuple[bool, bytes]:
    """Whether a payer speaks our version, and the request id: its own, or a random one.

    Raises BadRequest.
    """
    version = sent.get(headers.VERSION)
    if version is None:
        return False, random(32)
    if version != headers.VERSION_SPOKEN:
        raise BadRequest("Inferpool-Version must be 1.", code="unsupported_version")
    try:
        return True, from_hex(sent.get(headers.REQUEST_ID, b"").decode(), 32)
    except ValueError as error:
        raise BadRequest(f"Inferpool-Request-Id: {error}.") from None


def _amount_differs(maximum: int) -> PaymentRequired:
    return PaymentRequired(
        f"The payment's terms differ: amount must be this request's maximum, {maximum} base units.",
        code="payment_terms",
    )


def _booked(value: bytes) -> tuple[int, int]:
    """Number and total of the payer's last receipt. Raises PaymentRequired(payment_invalid)."""
    seq, _, total = value.partition(b" ")
    if not (seq.isdigit() and total.isdigit() and len(seq) <= 18 and len(total) <= 38):
        raise PaymentRequired(
            "Inferpool-Booked must be the number and the total of the last receipt.",
            code="payment_invalid",
        )
    return int(seq), int(total)


class PaymentNeeded(PaymentRequired):
    """A 402 with the x402 header that lets a payer go on."""

    def __init__(self, error: PaymentRequired, header: bytes) -> None:
        super().__init__(error.message, code=error.code)
        self.header = header


class Disagreement(PaymentRequired):
    """A voucher that does not fit the channel: answered with a corrective 402."""

    def __init__(self, error: PaymentRequired, channel: PayeeChannel) -> None:
        super().__init__(error.message, code=error.code)
        self.channel = channel
