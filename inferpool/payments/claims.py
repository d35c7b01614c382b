"""Claims: vouchers into money. All channels in one transaction, then one settlement.

A batch must not fail for one bad row: each row was checked when its voucher was taken (low s, v,
authoriser, balance), and where the chain still refuses the batch it is halved until the bad channel
is alone; that one is left out.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from inferpool.chain.base import Chain, Claim
from inferpool.clock import Clock
from inferpool.payments.gate import PaymentGate
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.limits import CLAIM_BATCH_MAX
from inferpool.protocol.offer import Terms
from inferpool.protocol.voucher import Voucher

_LOG = logging.getLogger("inferpool.claims")
WATCH_EVERY_S: Final = 15.0


@dataclass(slots=True)
class ClaimReport:
    """What one round brought; amounts in base units, gas in gas, fees in wei."""

    channels: int = 0
    claimed: int = 0
    settled: int = 0
    gas_used: int = 0
    fee_wei: int = 0
    left_out: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "channels": self.channels,
            "claimed_base_units": str(self.claimed),
            "settled_base_units": str(self.settled),
            "gas_used": self.gas_used,
            "fee_wei": str(self.fee_wei),
            "left_out": list(self.left_out),
        }


class Claimer:
    """Claims for one payee. One round at a time."""

    def __init__(
        self,
        terms: Terms,
        chain: Chain,
        ledger: PayeeLedger,
        gate: PaymentGate,
        clock: Clock,
    ) -> None:
        self._terms, self._chain, self._clock = terms, chain, clock
        self._last_ms = 0
        self._ledger, self._gate = ledger, gate
        self._lock = asyncio.Lock()
        self._next_block = 0
        self._in_vain: dict[bytes, int] = {}  # channel id -> unclaimed when it could not be claimed
        # Claimed, and its settlement failed; None: by an earlier run, perhaps, ask the chain.
        self._unsettled: bool | None = None

    async def claim(self) -> ClaimReport:
        """Claim all that is earned and settle it. Raises Unavailable where the chain is away."""
        async with self._lock:
            report = ClaimReport()
            due = [channel for channel in self._ledger.channels.values() if channel.unclaimed > 0]
            for start in range(0, len(due), CLAIM_BATCH_MAX):
                await self._claim_batch(due[start : start + CLAIM_BATCH_MAX], report)
            if report.claimed:
                self._unsettled = True
            try:
                await self._settle_what_is_left(report)
            finally:
                if report.gas_used:  # it is spent, whatever became of the settlement
                    await self._book(report)
            return report

    async def settle_left(self) -> None:
        """Settle what was claimed before, in this run or one that died in between, and claim
        nothing. Raises Unavailable where the chain is away."""
        async with self._lock:
            report = ClaimReport()
            await self._settle_what_is_left(report)
            if report.gas_used:
                await self._book(report)

    async def _settle_what_is_left(self, report: ClaimReport) -> None:
        if self._unsettled is None:
            terms = self._terms
            self._unsettled = await self._chain.unsettled(terms.payee, terms.asset) > 0
        if self._unsettled:
            await self._settle(report)
            self._unsettled = False

    async def _claim_batch(self, channels: list[PayeeChannel], report: ClaimReport) -> None:
        rows = [self._row(channel) for channel in channels]
        before = [channel.claimed for channel in channels]
        try:
            mined = await self._chain.claim(rows)
        except Refused as error:
            await self._split(channels, report, error)
            return
        report.gas_used += mined.gas_used
        report.fee_wei += mined.fee_wei
        for channel, row, old in zip(channels, rows, before, strict=True):
            channel.claimed = row.total_claimed
            report.channels += 1
            report.claimed += row.total_claimed - old
            await self._ledger.save_channel(channel)

    async def _split(
        self, channels: list[PayeeChannel], report: ClaimReport, error: InferpoolError
    ) -> None:
        if len(channels) == 1:
            name = to_hex(channels[0].channel_id)
            _LOG.error("channel %s cannot be claimed: %s", name, error.message)
            channels[0].closing = True  # no more work for a channel whose voucher is no money
            self._in_vain[channels[0].channel_id] = channels[0].unclaimed
            report.left_out += (name,)
            return
        middle = len(channels) // 2
        await self._claim_batch(channels[:middle], report)
        await self._claim_batch(channels[middle:], report)

    @staticmethod
    def _row(channel: PayeeChannel) -> Claim:
        voucher = Voucher(channel.channel_id, channel.best, channel.best_signature)
        return Claim(channel.config, voucher, channel.claimed + channel.unclaimed)

    async def _settle(self, report: ClaimReport) -> None:
        before = await self._chain.token_balance(self._terms.asset, self._terms.payee)
        mined = await self._chain.settle(self._terms.payee, self._terms.asset)
        after = await self._chain.token_balance(self._terms.asset, self._terms.payee)
        report.settled += after - before
        report.gas_used += mined.gas_used
        report.fee_wei += mined.fee_wei

    async def _book(self, report: ClaimReport) -> None:
        self._last_ms = max(self._last_ms + 1, self._clock.now_ms())  # a round has its own time
        await self._ledger.save_claim(
            self._last_ms,
            report.channels,
            report.claimed,
            report.settled,
            report.gas_used,
            report.fee_wei,
        )

    async def watch(self) -> None:
        """Watch for withdrawals for ever: refuse new work on such a channel and claim at once."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                await self.watch_once()
            except InferpoolError as error:
                _LOG.warning("a look at the chain failed, watching goes on: %s", error.message)

    def _leaving(self) -> bool:
        """Whether a channel on its way out owes something: what was in flight when its payer
        withdrew is charged later, without a word of the chain. Not what was tried in vain."""
        return any(
            channel.closing
            and channel.unclaimed
            and self._in_vain.get(channel.channel_id) != channel.unclaimed
            for channel in self._ledger.channels.values()
        )

    async def watch_once(self) -> None:
        """One look at the chain."""
        found, following = await self._chain.withdrawing(self._terms.payee, self._next_block)
        ours = [self._ledger.channels[item] for item in found if item in self._ledger.channels]
        for channel in ours:
            await self._gate.refresh(channel)
        if any(channel.closing for channel in ours) or self._leaving():
            await self.claim()  # one that has ended is no reason any more
        else:
            await self.settle_left()
        self._next_block = following  # only now: a round that failed is looked at again
