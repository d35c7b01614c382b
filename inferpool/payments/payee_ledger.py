"""The node's book: its channels and every receipt it signed. Durable before an answer counts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, insert, select, update

from inferpool.chain.base import Transfer
from inferpool.payments.journal import Journal, Write, upsert
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.schema import (
    PAYEE_CHANNELS,
    PAYEE_CLAIMS,
    PAYEE_ENERGY,
    PAYEE_RECEIPTS,
    PAYEE_REFUNDS,
    PAYEE_TRANSFERS,
)
from inferpool.protocol.encoding import parse
from inferpool.protocol.limits import CHANNELS_MAX, RECEIPTS_PAGE_MAX, REQUEST_IDS_KEPT_MAX
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.voucher import ChannelConfig, canonical_config

_SWEEP_LEAST: Final = 64
_CHANNEL_ROW = (
    *("channel_id", "config", "best", "best_signature"),
    *("total_pico_usd", "reported", "seq", "claimed"),
)
_RECEIPT_ROW = (
    *("request_id", "channel_id", "seq", "model"),
    *("charge_pico_usd", "ended_ms", "data"),
)


@dataclass(frozen=True, slots=True)
class PaidTransfer:
    """A one-off payment that was mined: base units, and the request that it bought, if any yet."""

    amount: int
    transaction: bytes
    request_id: bytes


class PayeeLedger:
    """Loads what an earlier run stored; writes through the journal."""

    def __init__(self, journal: Journal, chain_id: int, decimals: int) -> None:
        self._journal = journal
        self._save_channel = upsert(journal, PAYEE_CHANNELS, "channel_id")
        self._save_receipt = journal.compile(insert(PAYEE_RECEIPTS))
        assert self._save_channel.names == _CHANNEL_ROW, "rows are written by position"
        assert self._save_receipt.names == _RECEIPT_ROW, "rows are written by position"
        self.channels: dict[bytes, PayeeChannel] = {
            row.channel_id: PayeeChannel(
                config=ChannelConfig.from_wire(parse(row.config, 4096)),
                channel_id=row.channel_id,
                chain_id=chain_id,
                decimals=decimals,
                claimed=int(row.claimed),
                best=int(row.best),
                best_signature=row.best_signature,
                total_pico_usd=int(row.total_pico_usd),
                reported=int(row.reported),
                seq=row.seq,
            )
            for row in journal.read(select(PAYEE_CHANNELS).limit(CHANNELS_MAX))
        }
        self._save_claim = journal.compile(insert(PAYEE_CLAIMS))
        self._save_refund = upsert(journal, PAYEE_REFUNDS, "channel_id")
        self.refunds: dict[bytes, int] = {  # channel id -> nonce of the last refund that was sent
            row.channel_id: row.nonce for row in journal.read(select(PAYEE_REFUNDS))
        }
        self._save_energy = upsert(journal, PAYEE_ENERGY, "hour_ms")
        self._save_transfer = journal.compile(insert(PAYEE_TRANSFERS))
        self._answer_transfer = journal.compile(
            update(PAYEE_TRANSFERS)
            .where(
                PAYEE_TRANSFERS.c.payer == bindparam("of_payer"),
                PAYEE_TRANSFERS.c.nonce == bindparam("of_nonce"),
            )
            .values(request_id=bindparam("answered"))
        )
        ids = select(PAYEE_RECEIPTS.c.request_id).limit(REQUEST_IDS_KEPT_MAX)
        # By request id: the channel, and when it is durable. Swept now and then of what is.
        self._saving: dict[bytes, tuple[bytes, asyncio.Future[None]]] = {}
        self._sweep_at = _SWEEP_LEAST
        self._receipted: set[bytes] = {row.request_id for row in journal.read(ids)}

    def receipted(self, request_id: bytes) -> bool:
        """Whether a receipt was ever signed for this request id."""
        if request_id in self._receipted:
            return True
        if len(self._receipted) < REQUEST_IDS_KEPT_MAX:
            return False
        query = select(PAYEE_RECEIPTS.c.seq).where(PAYEE_RECEIPTS.c.request_id == request_id)
        return bool(self._journal.read(query))

    def transfer(self, payer: bytes, nonce: bytes) -> PaidTransfer | None:
        """A one-off payment that was mined, whether it bought an answer yet or not."""
        table = PAYEE_TRANSFERS.c
        query = select(table.amount, table.transaction, table.request_id)
        for row in self._journal.read(query.where(table.payer == payer, table.nonce == nonce)):
            return PaidTransfer(int(row.amount), row.transaction, row.request_id)
        return None

    def save_transfer(
        self, transfer: Transfer, channel_id: bytes, transaction: bytes, fee_wei: int, now_ms: int
    ) -> asyncio.Future[None]:
        """Make a one-off payment durable: it is the payer's until it bought an answer."""
        values: dict[str, object] = {
            "payer": transfer.holder,
            "nonce": transfer.nonce,
            "amount": str(transfer.amount),
            "transaction": transaction,
            "fee_wei": str(fee_wei),
            "paid_ms": now_ms,
            "channel_id": channel_id,
            "request_id": b"",
        }
        return self._journal.write([Write(self._save_transfer, values)])

    def save_channel(self, channel: PayeeChannel) -> asyncio.Future[None]:
        """Make a channel's best voucher and totals durable."""
        return self._journal.write([] if channel.transaction else [self._channel_write(channel)])

    def save_receipt(
        self, channel: PayeeChannel, signed: SignedReceipt, model: str
    ) -> asyncio.Future[None]:
        """Make a receipt durable, in one unit with its channel's totals."""
        receipt = signed.receipt
        assert receipt.request_id not in self._receipted, "one receipt for a request id"
        self._receipted.add(receipt.request_id)
        values = (
            receipt.request_id,
            receipt.channel_id,
            receipt.seq,
            model,
            str(receipt.charge_pico_usd),
            receipt.ended_ms,
            signed.pack(),
        )
        totals = self._channel_write(channel)
        if channel.transaction:  # a one-off payment has no channel, and is used up now
            config = channel.config
            answered = {"of_payer": config.payer, "of_nonce": config.salt}
            totals = Write(self._answer_transfer, {**answered, "answered": receipt.request_id})
        saved = self._journal.write([totals, Write(self._save_receipt, values)])
        saving = self._saving
        if len(saving) >= self._sweep_at:  # a callback for each would cost a turn of the loop
            saving = {key: found for key, found in saving.items() if not found[1].done()}
            self._saving, self._sweep_at = saving, 2 * len(saving) + _SWEEP_LEAST
        saving[receipt.request_id] = (receipt.channel_id, saved)
        return saved

    def saving(self, channel_id: bytes) -> list[bytes]:
        """Request ids of receipts that are signed and not durable yet: charged, and not to be
        shown. A payer must not take them for requests that owe nothing."""
        return [
            item
            for item, (owner, saved) in self._saving.items()
            if owner == channel_id and not saved.done()
        ]

    def save_refund(self, channel_id: bytes, nonce: int) -> asyncio.Future[None]:
        """Make durable that a refund is on its way, before it is sent."""
        self.refunds[channel_id] = nonce
        values: dict[str, object] = {"channel_id": channel_id, "nonce": nonce}
        return self._journal.write([Write(self._save_refund, values)])

    def save_claim(
        self, claimed_ms: int, channels: int, claimed: int, settled: int, gas_used: int, fee: int
    ) -> asyncio.Future[None]:
        """Book a round of claims: base units, gas, and its fee in wei."""
        values: dict[str, object] = {
            "claimed_ms": claimed_ms,
            "channels": channels,
            "claimed": str(claimed),
            "settled": str(settled),
            "gas_used": str(gas_used),
            "fee_wei": str(fee),
        }
        return self._journal.write([Write(self._save_claim, values)])

    def save_energy(self, hour_ms: int, microjoules: int, busy_ms: int) -> asyncio.Future[None]:
        """Book what an hour's work has taken so far."""
        values = {"hour_ms": hour_ms, "microjoules": str(microjoules), "busy_ms": busy_ms}
        return self._journal.write([Write(self._save_energy, values)])

    def energy(self, hour_ms: int) -> tuple[int, int]:
        """Microjoules and busy ms that are booked for an hour."""
        query = select(PAYEE_ENERGY).where(PAYEE_ENERGY.c.hour_ms == hour_ms)
        for row in self._journal.read(query):
            return int(row.microjoules), int(row.busy_ms)
        return 0, 0

    def latest(self, limit: int) -> list[tuple[SignedReceipt, str]]:
        """The last receipts with their models, the newest first."""
        query = (
            select(PAYEE_RECEIPTS.c.data, PAYEE_RECEIPTS.c.model)
            .order_by(PAYEE_RECEIPTS.c.ended_ms.desc())
            .limit(limit)
        )
        return [(SignedReceipt.unpack(row.data), row.model) for row in self._journal.read(query)]

    def _channel_write(self, channel: PayeeChannel) -> Write:
        values = (
            channel.channel_id,
            canonical_config(channel.config),
            str(channel.best),
            channel.best_signature,
            str(channel.total_pico_usd),
            str(channel.reported),
            channel.seq,
            str(channel.claimed),
        )
        return Write(self._save_channel, values, channel.channel_id)

    def receipts(self, channel_id: bytes, after: int) -> list[SignedReceipt]:
        """A page of a channel's receipts with seq above `after`, in order."""
        query = (
            select(PAYEE_RECEIPTS.c.data)
            .where(PAYEE_RECEIPTS.c.channel_id == channel_id, PAYEE_RECEIPTS.c.seq > after)
            .order_by(PAYEE_RECEIPTS.c.seq)
            .limit(RECEIPTS_PAGE_MAX)
        )
        return [SignedReceipt.unpack(row.data) for row in self._journal.read(query)]
