"""Reading a node's ledger for its earnings, beside the node that may be writing it."""

from __future__ import annotations

from sqlalchemy import select

from inferpool.payments.earnings import ClaimRow, Earned, EnergyRow
from inferpool.payments.journal import Journal
from inferpool.payments.schema import (
    PAYEE_CHANNELS,
    PAYEE_CLAIMS,
    PAYEE_ENERGY,
    PAYEE_RECEIPTS,
    PAYEE_TRANSFERS,
)
from inferpool.protocol.encoding import parse, to_checksum
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.voucher import ChannelConfig

_CONFIG_MAX = 4096


def read_book(
    journal: Journal, pico_usd_per_base_unit: int
) -> tuple[list[Earned], list[ClaimRow], list[EnergyRow]]:
    """Receipts in the order of their end, claims, energy.

    A one-off payment earns all of itself, whatever its receipt counts, and is claimed by itself.
    """
    payers = {
        row.channel_id: to_checksum(ChannelConfig.from_wire(parse(row.config, _CONFIG_MAX)).payer)
        for row in journal.read(select(PAYEE_CHANNELS.c.channel_id, PAYEE_CHANNELS.c.config))
    }
    transfers = select(PAYEE_TRANSFERS).where(PAYEE_TRANSFERS.c.request_id != b"")
    once = {row.channel_id: row for row in journal.read(transfers.order_by("paid_ms"))}
    payers |= {channel_id: to_checksum(row.payer) for channel_id, row in once.items()}
    earned = []
    query = select(PAYEE_RECEIPTS.c.model, PAYEE_RECEIPTS.c.data)
    for row in journal.read(query.order_by(PAYEE_RECEIPTS.c.ended_ms)):
        receipt = SignedReceipt.unpack(row.data).receipt
        paid = once.get(receipt.channel_id)
        earned.append(
            Earned(
                model=row.model,
                payer=payers.get(receipt.channel_id, "unknown"),
                charge=int(paid.amount) * pico_usd_per_base_unit
                if paid
                else receipt.charge_pico_usd,
                prompt_units=receipt.prompt_units,
                output_units=receipt.output_units,
                started_ms=receipt.started_ms,
                ended_ms=receipt.ended_ms,
            )
        )
    claims = [
        ClaimRow(row.claimed_ms, int(row.claimed), int(row.fee_wei))
        for row in journal.read(select(PAYEE_CLAIMS).order_by(PAYEE_CLAIMS.c.claimed_ms))
    ]
    claims += [ClaimRow(row.paid_ms, int(row.amount), int(row.fee_wei)) for row in once.values()]
    energy = [
        EnergyRow(row.hour_ms, int(row.microjoules)) for row in journal.read(select(PAYEE_ENERGY))
    ]
    return earned, claims, energy
