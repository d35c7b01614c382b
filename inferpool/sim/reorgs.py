"""A chain with blocks, which are taken back now and then: what was mined in the last of them is
mined again in another order, later, or not at all.

Each sender sees it as `EvmChain` does: a transaction counts once `finality` blocks lie on top of
its own, and who lost patience before that knows nothing of it. The rules are `MemoryChain`'s.
Nodes are registered before the first reorganisation.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any, Final

from inferpool.chain.base import (
    ChannelState,
    Claim,
    DepositAuthorization,
    Permit2Deposit,
    TransactionReceipt,
    Transfer,
)
from inferpool.chain.memory import MemoryChain
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.voucher import ChannelConfig

BLOCK_S: Final = 2.0
_KEPT: Final = 0.5  # of what a reorganisation took back: mined again at once
_LOST: Final = 0.3  # of those that nobody waits for any more, each time
_IMPATIENT: Final = 0.1  # of all senders
Apply = Callable[[], Coroutine[Any, Any, TransactionReceipt]]


@dataclass(slots=True, eq=False)
class _Sent:
    """A transaction. `before`: the world without it; None while it waits to be mined."""

    sender: bytes
    apply: Apply
    awaited: bool = False  # its sender sends it again until it counts; others' may be lost
    block: int = 0
    before: dict[str, Any] | None = None
    receipt: TransactionReceipt | None = None
    error: Refused | None = None


@dataclass(slots=True)
class _History:
    """What all senders share of it."""

    random: Random
    finality: int
    recent: list[_Sent] = field(default_factory=list)  # mined and not final, in order
    waiting: list[_Sent] = field(default_factory=list)  # each sender's in its order
    reorganised: int = 0  # transactions that were taken back


class ReorgChain(MemoryChain):
    """One sender's view. `mine_for_ever` has to run beside it: it makes the blocks."""

    def __init__(
        self, now_s: Callable[[], int], random: Random, finality: int, **more: Any
    ) -> None:
        super().__init__(now_s, **more)
        assert finality > 0, "without finality nothing ever counts"
        self.history = _History(random, finality)

    @property
    def reorganised(self) -> int:
        """Transactions that were taken back so far."""
        return self.history.reorganised

    @staticmethod
    def _head() -> int:
        return int(asyncio.get_running_loop().time() / BLOCK_S)

    async def mine_for_ever(self, reorgs_until_s: float) -> None:
        """Make blocks, and take some back until a time of the loop."""
        history, loop = self.history, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(BLOCK_S)
            self._finalise()
            if loop.time() < reorgs_until_s and history.random.random() < 0.2:
                self.reorganise(history.random.randint(1, history.finality))
            elif history.random.random() < 0.7:
                self._mine_waiting()

    def reorganise(self, depth: int) -> None:
        """Take the last blocks back, at most as many as make a transaction count."""
        history = self.history
        assert depth <= history.finality, "what counts is final"
        undone = [sent for sent in history.recent if sent.block > self._head() - depth]
        if not undone:
            return
        assert undone[0].before is not None, "it was mined"
        history.recent = history.recent[: -len(undone)]
        for name, value in undone[0].before.items():
            setattr(self._world, name, value)
        history.reorganised += len(undone)
        history.waiting = undone + history.waiting
        for sent in undone:
            sent.before = sent.receipt = None
        self._mine_waiting()

    def _mine_waiting(self) -> None:
        """A sender's transactions are mined in their order, or not yet."""
        history, late = self.history, set[bytes]()
        waiting, history.waiting = history.waiting, []
        for sent in waiting:
            if not sent.awaited and history.random.random() < _LOST:
                continue
            if sent.sender in late or history.random.random() >= _KEPT:
                late.add(sent.sender)
                history.waiting.append(sent)
                continue
            try:
                self._mine(sent)
            except Refused as error:
                sent.error = error

    def _mine(self, sent: _Sent) -> None:
        """Raises Refused; then nothing changed."""
        before = self._copy()
        sent.receipt = _at_once(sent.apply())
        sent.before, sent.block = before, self._head()
        self.history.recent.append(sent)

    def _copy(self) -> dict[str, Any]:
        """The world's state, in one piece: its parts refer to each other."""
        world = self._world
        names = [item.name for item in fields(world) if item.name != "now_s"]
        return copy.deepcopy({name: getattr(world, name) for name in names})

    def _finalise(self) -> None:
        last = self._head() - self.history.finality
        self.history.recent = [sent for sent in self.history.recent if sent.block > last]

    async def _send(self, apply: Apply) -> TransactionReceipt:
        """Hand over, and wait until it counts. Raises Refused; Unavailable: nobody knows."""
        history, sent = self.history, _Sent(self._sender, apply)
        blocks = history.random.randint(1, 2 * history.finality)
        patience_s = blocks * BLOCK_S if history.random.random() < _IMPATIENT else 300.0
        if any(item.sender == sent.sender for item in history.waiting):
            history.waiting.append(sent)
        else:
            self._mine(sent)
        until_s, sent.awaited = asyncio.get_running_loop().time() + patience_s, True
        try:
            return await self._counted(sent, until_s)
        finally:
            sent.awaited = False

    async def _counted(self, sent: _Sent, until_s: float) -> TransactionReceipt:
        while sent.receipt is None or sent.block > self._head() - self.history.finality:
            if asyncio.get_running_loop().time() >= until_s:
                raise Unavailable("no receipt yet", code="chain_unavailable")
            await asyncio.sleep(BLOCK_S / 2)
            if sent.error is not None:
                raise sent.error
        return sent.receipt

    def fund(self, owner: bytes, amount: int) -> None:
        """Mint base units of the token, for good."""
        super().fund(owner, amount)
        for sent in self.history.recent:
            assert sent.before is not None, "it was mined"
            sent.before["tokens"].balances[self._token, owner] += amount

    async def channel(self, channel_id: bytes) -> ChannelState:
        """As `EvmChain.channel`: the balance is the lower one of now and what is final."""
        self._finalise()
        state = await super().channel(channel_id)
        recent = self.history.recent
        if not recent:
            return state
        assert recent[0].before is not None, "it was mined"
        final: ChannelState = recent[0].before["settlement"].state(channel_id)
        return replace(state, balance=min(state.balance, final.balance))

    async def withdrawing(self, receiver: bytes, since_block: int) -> tuple[list[bytes], int]:
        """What is not final is read again each time."""
        self._finalise()
        found, following = await super().withdrawing(receiver, since_block)
        recent = self.history.recent
        if recent and recent[0].before is not None:
            following = min(following, recent[0].before["block"] + 1)
        return found, following

    async def deposit(
        self,
        config: ChannelConfig,
        amount: int,
        authorization: DepositAuthorization | Permit2Deposit,
    ) -> TransactionReceipt:
        """See Chain."""
        call = super().deposit
        return await self._send(lambda: call(config, amount, authorization))

    async def claim(self, claims: Any) -> TransactionReceipt:
        """See Chain."""
        call, rows = super().claim, list[Claim](claims)
        return await self._send(lambda: call(rows))

    async def settle(self, receiver: bytes, token: bytes) -> TransactionReceipt:
        """See Chain."""
        call = super().settle
        return await self._send(lambda: call(receiver, token))

    async def transfer_authorized(self, token: bytes, transfer: Transfer) -> TransactionReceipt:
        """See Chain."""
        call = super().transfer_authorized
        return await self._send(lambda: call(token, transfer))

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """See Chain."""
        call = super().initiate_withdraw
        return await self._send(lambda: call(config, amount))

    async def finalize_withdraw(self, config: ChannelConfig) -> TransactionReceipt:
        """See Chain."""
        call = super().finalize_withdraw
        return await self._send(lambda: call(config))

    async def refund(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """See Chain."""
        call = super().refund
        return await self._send(lambda: call(config, amount))


def _at_once(work: Coroutine[Any, Any, TransactionReceipt]) -> TransactionReceipt:
    """The result of what only looks as if it waited."""
    try:
        work.send(None)
    except StopIteration as end:
        found: TransactionReceipt = end.value
        return found
    raise AssertionError("the chain in memory never waits")
