"""The payer's money at rest: where it lies, and its way back from nodes that are no longer used.

A way back has two transactions: the first starts the channel's delay, in which its node claims what
it is owed; the second fetches the rest. Both are sent by the payer's own key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from inferpool.chain.base import Chain, ChannelState
from inferpool.clock import Clock
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.treasury import Treasury
from inferpool.payments.payer import PayerChannel
from inferpool.protocol.encoding import to_checksum, to_hex
from inferpool.protocol.errors import BadRequest, InferpoolError, Refused, Unavailable
from inferpool.protocol.headers import PAYMENT_SIGNATURE
from inferpool.protocol.limits import CHANNEL_READS_AT_ONCE, RELEASE_EVERY_S
from inferpool.transport.base import TransportError

_LOG = logging.getLogger("inferpool.capital")
_REFUND: Final = "/inferpool/refund"
_REFUND_S: Final = 120.0  # two transactions of the node, and the blocks on top
_ANSWER_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Lying:
    """One channel with what the chain says of it; amounts in base units, times in UNIX."""

    node: bytes
    channel: PayerChannel
    state: ChannelState
    used_ms: int  # of the last attempt; 0 where there was none
    now_s: int  # of the chain

    @property
    def free(self) -> int:
        """What the payer can take out as it is: the rest is claimed."""
        return self.state.balance - self.state.total_claimed

    @property
    def ready_at_s(self) -> int:
        """When the way back ends; 0 where none is under way."""
        started_s = self.state.withdraw_started_s
        return started_s + self.channel.config.withdraw_delay_s if started_s else 0

    @property
    def way_back(self) -> str:
        """`none`, `pending` for as long as the delay runs, then `ready`."""
        if not self.ready_at_s:
            return "none"
        return "ready" if self.now_s >= self.ready_at_s else "pending"

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        channel, state = self.channel, self.state
        return {
            "side": "payer",
            "channel": to_hex(channel.channel_id),
            "with": to_hex(self.node),
            "payee": to_checksum(channel.config.receiver),
            "token": to_checksum(channel.config.token),
            "deposited_base_units": state.balance,
            "claimed_base_units": state.total_claimed,
            "unclaimed_base_units": max(0, channel.charged - state.total_claimed),
            "at_risk_base_units": max(0, channel.signed_max - channel.charged),
            "free_base_units": self.free,
            "charged_pico_usd": channel.total_pico_usd,
            "way_back": self.way_back,
            "way_back_base_units": state.withdraw_amount,
            "way_back_ready_at_s": self.ready_at_s,
            "withdraw_delay_s": channel.config.withdraw_delay_s,
            "used_ms": self.used_ms,
        }


@dataclass(slots=True)
class Capital:
    """Watches over what lies in channels. `chain` sends as the payer; `fuel` sees to its gas."""

    treasury: Treasury
    chain: Chain
    clock: Clock
    idle_s: int  # 0: nothing comes back by itself
    fuel: Callable[[], Awaitable[None]]
    started_ms: int = field(init=False)
    nodes: Callable[[bytes], KnownNode | None] = lambda node: None  # those that can be asked
    _moving: bytes = b""  # the channel whose way back is being sent
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.started_ms = self.clock.now_ms()

    async def look(self) -> list[Lying]:
        """Every channel with its state on chain; what they hold is corrected by it."""
        now_s, used = await self.chain.now_s(), self.treasury.ledger.last_used_ms()
        places = asyncio.Semaphore(CHANNEL_READS_AT_ONCE)

        async def read(node: bytes, channel: PayerChannel) -> Lying:
            async with places:
                state = await self.treasury.read(channel)
            if not state.withdraw_started_s and channel.channel_id != self._moving:
                self.treasury.leaving.discard(channel.channel_id)
            return Lying(node, channel, state, used.get(channel.channel_id, 0), now_s)

        items = list(self.treasury.ledger.channels.values())
        return list(await asyncio.gather(*(read(node, channel) for node, channel in items)))

    async def withdraw(self, channel_id: bytes) -> Lying:
        """Start a channel's way back, with all that is not claimed. Raises Refused."""
        async with self._lock:
            self._moving = channel_id
            try:
                return await self._withdraw(await self._of(channel_id))
            finally:
                self._moving = b""

    async def ask_back(self, channel_id: bytes) -> Lying:
        """Have the payee pay back at once all that is free, by x402's refund payload: no delay,
        and no gas of ours. Raises Refused where it does not; then `withdraw` is the way."""
        async with self._lock:
            lying = await self._of(channel_id)
            channel, node = lying.channel, self.nodes(lying.node)
            if node is None:
                raise Refused("its node is not here to be asked", code="chain_reverted")
            if channel.held or channel.unresolved:
                raise Refused("requests are in flight on this channel", code="chain_reverted")
            header = channel.refund_request(self.treasury.authorizer, node.offer.terms)
            pipe, ask = node.transport, [(PAYMENT_SIGNATURE, header)]
            try:
                response = await pipe.request("GET", _REFUND, ask, timeout_s=_REFUND_S)
                try:
                    await response.read(_ANSWER_MAX)
                finally:
                    await response.close()
            except TransportError as error:
                raise Unavailable(error.message, code="node_failed") from None
            found = await self._of(channel_id)
            if response.status != 200 or found.state.balance >= lying.state.balance:
                raise Refused(f"its node answered {response.status}", code="chain_reverted")
            await self.treasury.ledger.save_channel(lying.node, channel)
            return found

    async def _withdraw(self, lying: Lying) -> Lying:
        channel_id = lying.channel.channel_id
        if lying.way_back != "none":
            raise Refused(f"its way back is {lying.way_back} already", code="chain_reverted")
        if lying.free <= 0:
            raise Refused("nothing is left in this channel", code="chain_reverted")
        self.treasury.leave(channel_id)
        await self.fuel()
        try:
            await self.chain.initiate_withdraw(lying.channel.config, lying.free)
        except Refused:
            self.treasury.leaving.discard(channel_id)  # it never began
            raise
        _LOG.info("channel %s is on its way back", to_hex(channel_id))
        return await self._of(channel_id)

    async def finalize(self, channel_id: bytes) -> Lying:
        """End a channel's way back. Raises Refused before its delay is over."""
        async with self._lock:
            return await self._finalize(await self._of(channel_id))

    async def _finalize(self, lying: Lying) -> Lying:
        channel_id = lying.channel.channel_id
        if lying.way_back != "ready":
            when = f"; it is ready at {lying.ready_at_s} (UNIX s)" if lying.ready_at_s else ""
            raise Refused(f"its way back is {lying.way_back}{when}", code="chain_reverted")
        await self.fuel()
        await self.chain.finalize_withdraw(lying.channel.config)
        found = await self._of(channel_id)
        self.treasury.leaving.discard(channel_id)
        await self.treasury.ledger.save_channel(lying.node, lying.channel)
        return found

    async def release(self, idle_s: int) -> list[Lying]:
        """Bring back what lies with nodes that were not used for `idle_s`, or under a voucher key
        that was replaced; and fetch what is ready. Those that were moved, as they are now."""
        moved = []
        for lying in await self.look():
            channel_id = lying.channel.channel_id
            if lying.way_back == "ready":
                moved.append(await self.finalize(channel_id))
            elif lying.way_back == "none" and lying.free > 0 and self._idle(lying, idle_s):
                moved.append(await self.withdraw(channel_id))
        return moved

    def _idle(self, lying: Lying, idle_s: int) -> bool:
        channel = lying.channel
        if channel.held or channel.unresolved:
            return False
        if channel.config.payer_authorizer != self.treasury.authorizer.address:
            return True
        since_ms = lying.used_ms or self.started_ms
        return self.clock.now_ms() - since_ms >= idle_s * 1000

    async def run(self) -> None:
        """Release for ever."""
        while True:
            await asyncio.sleep(RELEASE_EVERY_S)
            try:
                if self.idle_s:
                    await self.release(self.idle_s)
                else:
                    await self.look()
            except InferpoolError as error:
                _LOG.warning("capital at rest stays where it is for now: %s", error.message)

    async def _of(self, channel_id: bytes) -> Lying:
        for lying in await self.look():
            if lying.channel.channel_id == channel_id:
                return lying
        raise BadRequest("No channel of this gateway has that id.", code="not_found")
