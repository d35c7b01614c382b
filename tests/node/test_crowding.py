"""Too much at once: one payer leaves places to others, and a full queue says when to come back."""

from __future__ import annotations

import asyncio

import pytest

from inferpool.payments.gate import PaymentGate
from inferpool.protocol.limits import QUEUE_MAX, READER_STALL_S
from inferpool.protocol.receipt import Outcome, SignedReceipt
from tests.node.parts import Answer, World, world


def allow(made: World, concurrent: int) -> None:
    """The same node with another limit for each channel."""
    node = made.node.node
    chain = made.chain.with_sender(node.key, node.key)
    node.gate = PaymentGate(node.gate.terms, chain, node.ledger, concurrent_per_channel=concurrent)


def again_later(answer: Answer) -> int:
    """Retry-After in seconds."""
    return int(answer.headers[b"retry-after"])


async def test_a_channel_over_its_share_is_told_to_wait_and_owes_nothing() -> None:
    async with world() as made:
        allow(made, 3)
        payer = await made.payer()
        answers = await asyncio.gather(*(payer.chat() for _ in range(5)))
        assert sorted(answer.status for answer in answers) == [200, 200, 200, 429, 429]
        for answer in answers:
            if answer.status == 429:
                assert answer.code == "rate_limited"
                assert again_later(answer) == 1
        held = made.node.node.ledger.channels[payer.channel.channel_id]
        assert (held.seq, held.held_total) == (3, 0)
        assert (await payer.chat()).status == 200  # the places came back


async def test_another_payer_is_served_beside_one_over_its_share() -> None:
    async with world() as made:
        allow(made, 2)
        greedy, other = await made.payer(), await made.payer()
        crowd = [asyncio.create_task(greedy.chat(max_tokens=50)) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert (await other.chat()).status == 200
        assert sorted([answer.status for answer in await asyncio.gather(*crowd)])[2:] == [429, 429]


async def test_a_refused_voucher_is_not_kept() -> None:
    """Else a flood of refused requests would raise what the node may claim."""
    async with world() as made:
        allow(made, 1)
        payer = await made.payer()
        first = asyncio.create_task(payer.chat(max_tokens=50))
        await asyncio.sleep(0.1)
        channel = made.node.node.ledger.channels[payer.channel.channel_id]
        best = channel.best
        assert (await payer.chat(max_tokens=500)).status == 429
        assert channel.best == best
        assert (await first).status == 200


@pytest.mark.timeout(60)
async def test_a_full_queue_is_503_with_the_time_to_come_back() -> None:
    async with world() as made:
        allow(made, 1000)
        slots = 4
        payers = [await made.payer() for _ in range(3)]
        most = slots + QUEUE_MAX
        calls = [payers[i % 3].chat() for i in range(most + 5)]
        answers = await asyncio.gather(*calls)
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) == 5
        for answer in refused:
            assert (answer.status, answer.code) == (503, "overloaded")
            assert again_later(answer) >= 1


async def test_who_neither_reads_nor_leaves_holds_no_place_for_ever() -> None:
    async with world() as made:
        payer = await made.payer()
        stream = await payer.open_chat(payer.next_id(), max_tokens=1024)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while made.node.node.busy:  # noqa: ASYNC110 - bounded by the test's own limit
            await asyncio.sleep(1)
        assert READER_STALL_S <= loop.time() - begun < 2 * READER_STALL_S
        (kept,) = (await payer.receipts()).json["receipts"]
        assert SignedReceipt.from_wire(kept).receipt.outcome is Outcome.CANCELLED
        await stream.close()
