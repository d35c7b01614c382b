"""The operator's money on the way to nodes: channels opened, topped up, and capped.

Caps keep a gateway from locking its wallet up with strangers: per node, per day, and in all.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from inferpool.chain.base import Chain, ChannelState
from inferpool.gateway.deposits import Deposits
from inferpool.identity.signing import Key
from inferpool.payments.payer import PayerChannel
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.payments.request_ids import RequestIds
from inferpool.payments.window import Window
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import PaymentRequired
from inferpool.protocol.limits import WITHDRAW_DELAY_ACCEPTED_S
from inferpool.protocol.offer import Offer, Terms
from inferpool.protocol.voucher import ChannelConfig

_LOG = logging.getLogger("inferpool.treasury")
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds in base units of the token."""

    deposit: int = 2_000_000  # for a new channel, and for a top-up
    per_node: int = 10_000_000
    total: int = 100_000_000
    per_day: int = 100_000_000  # of deposits sent, whatever came back
    window: int = 32  # maxima that one voucher may cover, where the node's terms allow it
    window_units: int = 1_000  # of slack with one node, however large the window


@dataclass(slots=True)
class Treasury:
    """Opens and feeds one channel for each node. `payer` is the cold key that owns the money,
    `authorizer` the hot key that signs vouchers."""

    chain: Chain
    ledger: PayerLedger
    payer: Key
    authorizer: Key
    caps: Caps
    random: Callable[[int], bytes] = secrets.token_bytes
    check: Callable[[], None] = lambda: None  # raises where this process may not sign now
    request_ids: RequestIds = field(init=False)
    deposits: Deposits = field(init=False)
    leaving: set[bytes] = field(default_factory=set)  # channels that are on their way out
    _by_node: dict[bytes, PayerChannel] = field(default_factory=dict)
    _locks: dict[bytes, asyncio.Lock] = field(default_factory=dict)
    _reserved: dict[bytes, int] = field(default_factory=dict)  # node -> deposits on their way
    _windows: dict[int, Window] = field(default_factory=dict)  # by their maxima
    _unsaved: int = 0  # base units of deposits that are on their way to the disk

    def __post_init__(self) -> None:
        self.request_ids = RequestIds.of(self.authorizer)
        self.deposits = Deposits(self.chain, self.payer)
        for node, channel in self.ledger.channels.values():
            if channel.config.payer_authorizer == self.authorizer.address:
                self._by_node[node] = channel

    def leave(self, channel_id: bytes) -> None:
        """Use a channel no more: the next request to its node opens another."""
        self.leaving.add(channel_id)
        node, channel = self.ledger.channels[channel_id]
        if self._by_node.get(node) is channel:
            del self._by_node[node]

    def known(self, node: bytes) -> PayerChannel | None:
        """The channel of a node, where there is one."""
        return self._by_node.get(node)

    def window(self, terms: Terms) -> Window:
        """How far vouchers may go ahead of a node: both sides' bounds."""
        maxima = min(terms.window, self.caps.window)
        window = self._windows.get(maxima)
        if window is None:
            window = self._windows[maxima] = Window(maxima, self.caps.window_units)
        return window

    @property
    def locked(self) -> int:
        """Base units that lie in channels or are on their way there; channels of terms that are
        gone count too, since their money comes back no sooner."""
        held = sum(channel.balance - channel.charged for _, channel in self._channels())
        return held + sum(self._reserved.values())

    def _locked_by(self, node: bytes) -> int:
        mine = [channel for owner, channel in self._channels() if owner == node]
        held = sum(channel.balance - channel.charged for channel in mine)
        return held + self._reserved.get(node, 0)

    def _channels(self) -> list[tuple[bytes, PayerChannel]]:
        return list(self.ledger.channels.values())

    def ready(self, offer: Offer) -> PayerChannel | None:
        """The open channel to a node, where one on the offer's terms is there. Raises Unavailable
        where the book is away."""
        self.check()
        channel = self._by_node.get(offer.node)
        return channel if channel is not None and self._fits(channel, offer.terms) else None

    async def channel(self, offer: Offer) -> PayerChannel:
        """The open channel to a node, opened with a deposit the first time.

        Raises PaymentRequired where terms or caps forbid it, Unavailable where the chain or the
        book is away.
        """
        self.check()
        async with self._locks.setdefault(offer.node, asyncio.Lock()):
            channel = self._by_node.get(offer.node)
            if channel is None or not self._fits(channel, offer.terms):
                channel = await self._open(offer)
        return channel

    def _fits(self, channel: PayerChannel, terms: Terms) -> bool:
        config = channel.config
        return (
            channel.channel_id not in self.leaving
            and config.payer_authorizer == self.authorizer.address
            and config.receiver == terms.payee
            and config.receiver_authorizer == terms.receiver_authorizer
            and config.token == terms.asset
            and config.withdraw_delay_s == terms.withdraw_delay_s
        )

    async def _open(self, offer: Offer) -> PayerChannel:
        terms = offer.terms
        if terms.chain_id != self.chain.chain_id:
            raise PaymentRequired(
                f"The node is paid on chain {terms.chain_id}, this gateway pays on"
                f" {self.chain.chain_id}.",
                code="payment_terms",
            )
        if terms.withdraw_delay_s > WITHDRAW_DELAY_ACCEPTED_S:
            raise PaymentRequired(
                f"The node would lock money up for {terms.withdraw_delay_s} s.",
                code="payment_terms",
            )
        known = await self._left_open(offer)
        if known is not None:
            return known
        config = ChannelConfig(
            payer=self.payer.address,
            payer_authorizer=self.authorizer.address,
            receiver=terms.payee,
            receiver_authorizer=terms.receiver_authorizer,
            token=terms.asset,
            withdraw_delay_s=terms.withdraw_delay_s,
            salt=self.random(32),
        )
        channel = PayerChannel(
            config, config.channel_id(terms.chain_id), terms.chain_id, terms.asset_decimals
        )
        await self._deposit(offer, channel, max(terms.min_deposit, self.caps.deposit))
        self._by_node[offer.node] = channel
        return channel

    async def _left_open(self, offer: Offer) -> PayerChannel | None:
        """A channel of the same terms from before, such as one whose deposit was mined though the
        chain's answer was lost; the balance is the chain's."""
        for node, channel in self._channels():
            if node == offer.node and self._fits(channel, offer.terms):
                channel.balance = (await self.chain.channel(channel.channel_id)).balance
                if channel.balance > channel.charged:
                    self._by_node[offer.node] = channel
                    return channel
        return None

    async def top_up(self, offer: Offer, channel: PayerChannel, needed: int) -> None:
        """Deposit again until the channel holds `needed` base units; many may ask at once."""
        async with self._locks.setdefault(offer.node, asyncio.Lock()):
            if channel.balance < needed:
                amount = max(needed - channel.balance, self.caps.deposit)
                await self._deposit(offer, channel, amount)

    async def _deposit(self, offer: Offer, channel: PayerChannel, amount: int) -> None:
        self._check_caps(offer.node, amount)
        reserved = self._reserved.get(offer.node, 0)
        self._reserved[offer.node] = reserved + amount
        try:
            await self._deposit_within_caps(offer, channel, amount)
        finally:
            self._reserved[offer.node] -= amount
            if not self._reserved[offer.node]:
                del self._reserved[offer.node]

    async def _deposit_within_caps(self, offer: Offer, channel: PayerChannel, amount: int) -> None:
        now_s = await self.chain.now_s()
        salt = int.from_bytes(self.random(32), "big")
        authorization = await self.deposits.authorise(
            channel.config, amount, offer.terms, salt, now_s
        )
        # The channel's terms are on disk before its money is on chain: a crash in between loses
        # nothing, since the next start finds the channel and reads its balance.
        self._check_day(amount, now_s)
        self._unsaved += amount
        try:
            await self.ledger.save_deposit(offer.node, channel, amount, salt, now_s)
        finally:
            self._unsaved -= amount
        await self.chain.deposit(channel.config, amount, authorization)
        state = await self.chain.channel(channel.channel_id)
        channel.balance = state.balance
        await self.ledger.save_channel(offer.node, channel)
        _LOG.info(
            "deposited %d base units with node %s, channel %s",
            amount,
            to_hex(offer.node),
            to_hex(channel.channel_id),
        )

    def _check_caps(self, node: bytes, amount: int) -> None:
        elsewhere = self.ledger.locked_elsewhere()
        at_node = self._locked_by(node) + sum(units for owner, units in elsewhere if owner == node)
        locked = self.locked + sum(units for _, units in elsewhere)
        if at_node + amount > self.caps.per_node or locked + amount > self.caps.total:
            raise PaymentRequired(
                f"A deposit of {amount} base units is over this gateway's caps"
                f" ({self.caps.per_node} a node, {self.caps.total} in all).",
                code="capital_exceeded",
            )

    def _check_day(self, amount: int, now_s: int) -> None:
        """Raise PaymentRequired where the deposits of a day would pass their cap."""
        sent = self.ledger.deposited_since(now_s - _DAY_S) + self._unsaved
        if sent + amount > self.caps.per_day:
            raise PaymentRequired(
                f"A deposit of {amount} base units is over this gateway's cap of a day:"
                f" {sent} of {self.caps.per_day} were sent within 24 hours.",
                code="capital_exceeded",
            )

    async def refresh(self) -> None:
        """Read every channel's balance from the chain, as after a restart."""
        for _, channel in self._channels():
            await self.read(channel)

    async def read(self, channel: PayerChannel) -> ChannelState:
        """Read one channel from the chain; one that is on its way out is used no more."""
        state = await self.chain.channel(channel.channel_id)
        channel.balance = state.balance
        if state.withdraw_started_s:
            self.leave(channel.channel_id)
        return state
