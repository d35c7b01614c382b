"""Both books: what is loaded is what was saved, exactly; one receipt for a request id."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferpool.payments.budget import Account
from inferpool.payments.journal import MemoryJournal
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.payer_ledger import AttemptRecord, PayerLedger
from inferpool.protocol.lifecycle import AttemptState
from inferpool.protocol.limits import RECEIPTS_PAGE_MAX
from tests.payments.parts import (
    AUTHORIZER,
    CHAIN_ID,
    CHANNEL_ID,
    NODE,
    PICO,
    attempt,
    honest_receipt,
    name,
    payee_channel,
    payer_channel,
    receipt,
    signed,
)

HUGE = 2**100  # base units that no 64-bit column holds


def payee_ledger(journal: MemoryJournal) -> PayeeLedger:
    return PayeeLedger(journal, CHAIN_ID, 6)


async def test_the_node_finds_its_channel_as_it_left_it() -> None:
    journal = MemoryJournal()
    ledger = payee_ledger(journal)
    channel = payee_channel(HUGE + 500, claimed=HUGE - 1, reported=HUGE, total_pico_usd=HUGE * PICO)
    payer = payer_channel(HUGE + 500, total_pico_usd=HUGE * PICO)
    voucher = payer.authorise(name(1), 500, AUTHORIZER)
    channel.admit(name(1), voucher, 500)
    channel.charge(name(1), 123_456_789)
    ledger.channels[CHANNEL_ID] = channel
    made = receipt(1, channel.seq, 123_456_789, channel.total_pico_usd)
    await ledger.save_receipt(channel, signed(made), "fake-chat")

    again = payee_ledger(MemoryJournal(journal.engine))
    found = again.channels[CHANNEL_ID]
    assert found == replace(channel, balance=0, held={}, held_total=0)
    assert found.best == HUGE + 500
    assert found.best_signature == voucher.signature
    assert again.receipts(CHANNEL_ID, 0) == [signed(made)]
    assert again.receipted(name(1))
    assert not again.receipted(name(2))


async def test_a_second_receipt_for_a_request_id_is_never_signed_off() -> None:
    journal = MemoryJournal()
    ledger = payee_ledger(journal)
    channel = payee_channel(1000, best=100)
    await ledger.save_receipt(channel, signed(honest_receipt(1, 1)), "fake-chat")
    with pytest.raises(AssertionError):
        ledger.save_receipt(channel, signed(honest_receipt(1, 2)), "fake-chat")
    again = payee_ledger(MemoryJournal(journal.engine))
    with pytest.raises(AssertionError):
        again.save_receipt(channel, signed(honest_receipt(1, 2)), "fake-chat")


async def test_receipts_that_are_not_durable_yet_are_told_and_no_others() -> None:
    ledger = payee_ledger(MemoryJournal())
    channel, other = payee_channel(1000), replace(payee_channel(1000), channel_id=bytes(32))
    count = 300  # beyond what is swept now and then
    for seq in range(1, count + 1):
        saved = ledger.save_receipt(channel, signed(honest_receipt(seq, seq)), "fake-chat")
        if seq % 100 == 50:  # some become durable between others
            assert name(seq) in ledger.saving(CHANNEL_ID)
            await saved
            assert ledger.saving(CHANNEL_ID) == []
    assert ledger.saving(CHANNEL_ID) == [name(seq) for seq in range(251, count + 1)]
    assert ledger.saving(other.channel_id) == []
    await saved
    assert ledger.saving(CHANNEL_ID) == []
    assert len(ledger.receipts(CHANNEL_ID, 0)) == min(count, RECEIPTS_PAGE_MAX)


async def test_receipts_come_in_pages_in_order() -> None:
    ledger = payee_ledger(MemoryJournal())
    channel = payee_channel(1000)
    count = RECEIPTS_PAGE_MAX + 3
    for seq in range(count, 0, -1):
        made = receipt(seq, seq, PICO, seq * PICO)
        future = ledger.save_receipt(channel, signed(made), "fake-chat")
    await future
    seen: list[int] = []
    while page := ledger.receipts(CHANNEL_ID, seen[-1] if seen else 0):
        assert len(page) <= RECEIPTS_PAGE_MAX
        seen += [item.receipt.seq for item in page]
    assert seen == list(range(1, count + 1))
    assert ledger.receipts(bytes(32), 0) == []


async def test_the_gateway_finds_accounts_channels_and_attempts_as_it_left_them() -> None:
    journal = MemoryJournal()
    ledger = PayerLedger(journal, CHAIN_ID)
    await ledger.add_account("key-1", Account("consumer", HUGE, 17), 5)
    await ledger.add_account("key-2", Account("operator", None, HUGE), 6)
    channel = payer_channel(HUGE, total_pico_usd=0)
    await ledger.save_channel(NODE.address, channel)
    numbers = (1, 2, 3)
    for number in numbers:
        channel.authorise(name(number), 50, AUTHORIZER)
    # Receipt 2 is still missing: 1 and 3 are booked.
    for number, seq in ((1, 1), (3, 3)):
        made = honest_receipt(number, seq, charged_total_pico_usd=9_000_000 * seq)
        record = AttemptRecord.of(attempt(number), "req_1", "consumer")
        record.move(AttemptState.SENT)
        channel.book(made)
        record.settle(signed(made))
        await ledger.save_attempt(record, channel)
    open_record = AttemptRecord.of(attempt(2), "req_1", "consumer")
    await ledger.save_attempt(open_record, channel)

    again = PayerLedger(MemoryJournal(journal.engine), CHAIN_ID)
    node, found = again.channels[CHANNEL_ID]
    assert node == NODE.address
    expected = replace(channel, held={}, held_total=0, peak=0, voucher=None)
    assert found == expected
    assert (found.next_seq, found.booked_ahead) == (2, {3})
    for key in ("key-1", "key-2"):
        assert again.account(key, 0) == ledger.account(key, 0)
    assert again.account("key-3", 0) is None
    assert again.open_attempts == [open_record]
    settled = {item.request_id: item for item in again.attempts(10)}
    assert settled[name(1)].receipt == signed(honest_receipt(1, 1)).pack()
    assert settled[name(1)].charge_pico_usd == 9_000_000
    assert len(settled) == 3
    assert len(again.attempts(2)) == 2


async def test_an_api_key_is_not_stored() -> None:
    journal = MemoryJournal()
    await PayerLedger(journal, CHAIN_ID).add_account("sk-secret", Account("consumer", 1), 0)
    connection = journal.engine.raw_connection()
    dump = "\n".join(connection.driver_connection.iterdump())  # type: ignore[union-attr]
    connection.close()
    assert "sk-secret" not in dump
    assert b"sk-secret".hex() not in dump.lower()


def test_an_attempt_ends_once() -> None:
    record = AttemptRecord.of(attempt(1), "req_1", "consumer")
    record.move(AttemptState.SENT)
    record.settle(signed(honest_receipt()))
    for following in AttemptState:
        with pytest.raises(AssertionError):
            record.move(following)
