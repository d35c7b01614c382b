"""Windows and chained receipts through a real gateway and node: honest, lost, crashed, lying."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from inferpool.gateway import relay
from inferpool.identity.signing import Key
from inferpool.payments.journal import MemoryJournal
from inferpool.payments.payer import PayerChannel
from inferpool.protocol import headers
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.encoding import sha256
from inferpool.protocol.images import ImagesRequest
from inferpool.protocol.receipt_chain import ChainedReceipt, ChainProof
from inferpool.protocol.transcription import TranscriptionRequest
from tests.gateway.parts import KEY_HEADER, Pool, pool


def channel_of(made: Pool) -> PayerChannel:
    ((_, channel),) = made.gateway.gateway.ledger.channels.values()
    return channel


async def trusted(made: Pool, calls: int = 12) -> None:
    """A node that has earned some base units: from here on it has a window."""
    for _ in range(calls):
        assert (await made.infer()).status == 200
    assert made.liar.shorts, "receipts are chained by now"


async def test_a_stranger_signs_each_receipt_and_gets_a_voucher_for_each_call() -> None:
    async with pool(window=32) as made:
        first = await made.infer()
        assert headers.RECEIPT in first.headers
        assert made.liar.shorts == []
        assert channel_of(made).signed_max == 1, "one maximum, no slack"


async def test_a_node_that_delivers_gets_vouchers_again_and_chains_its_receipts() -> None:
    async with pool(window=32) as made:
        await trusted(made)
        made.liar.vouchers.clear()
        made.liar.seen.clear()
        answers = [await made.infer() for _ in range(100)]
        assert {answer.status for answer in answers} == {200}
        assert all(headers.RECEIPT not in answer.headers for answer in answers)
        assert len(set(made.liar.vouchers)) < 20, "most calls sent the voucher before theirs"
        assert made.liar.seen == [], "no receipt was signed by itself"
        assert made.booked() == made.earned() == 112 * 2 * 100_000
        assert channel_of(made).exposure <= 1 + made.gateway.gateway.treasury.caps.window_units
        await asyncio.sleep(10)
        assert channel_of(made).unproved.count == 0, "what no answer proved was asked for"
        assert made.known[0].reasons == {}


async def test_many_at_once_on_one_window() -> None:
    async with pool(window=32) as made:
        await trusted(made, 30)
        answers = await asyncio.gather(*[made.infer() for _ in range(40)])
        assert {answer.status for answer in answers} == {200}
        assert made.booked() == made.earned()
        await asyncio.sleep(10)
        assert (channel_of(made).unproved.count, made.known[0].reasons) == (0, {})


async def test_a_lost_answer_is_booked_late_and_its_chain_proved_by_the_receipts() -> None:
    async with pool(window=32) as made:
        await trusted(made)
        made.liar.lose_answer = True
        assert (await made.infer()).status >= 500
        made.liar.lose_answer = False
        for _ in range(3):
            await made.infer()
        await asyncio.sleep(60)
        channel = channel_of(made)
        assert made.booked() == made.earned()
        assert (channel.unproved.count, channel.unresolved) == (0, {})
        assert "receipt_invalid" not in made.known[0].reasons


@pytest.mark.parametrize("side", ["node", "gateway"])
async def test_a_crash_leaves_both_books_equal(side: str) -> None:
    async with pool(window=32) as made:
        await trusted(made)
        if side == "node":
            await made.nodes[0].crash()
            await made.nodes[0].start()
            await asyncio.sleep(40)  # found again
        else:
            await made.restart_gateway()
        for _ in range(20):
            assert (await made.infer()).status == 200
        await asyncio.sleep(60)
        assert made.booked() == made.earned() == 32 * 2 * 100_000
        assert channel_of(made).unproved.count == 0
        assert "receipt_invalid" not in made.known[0].reasons


def _forged(short: ChainedReceipt) -> ChainedReceipt:
    proof = ChainProof(1, 1, Key(sha256(b"stranger")).sign(bytes(32)))
    return replace(short, proof=short.proof and replace(short.proof, signature=proof.signature))


LIES: dict[str, Callable[[ChainedReceipt], ChainedReceipt]] = {
    "a higher charge": lambda short: replace(short, charge_pico_usd=short.charge_pico_usd + 1),
    "more units": lambda short: replace(short, output_units=1),
    "a wrong total": lambda short: replace(short, charged_total_pico_usd=1),
    "another link": lambda short: replace(short, link=sha256(b"another")),
    "a place taken": lambda short: replace(short, position=0),
    "a forged proof": _forged,
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_in_a_chain_is_not_booked_and_ends_the_window(lie: str) -> None:
    async with pool(window=32) as made:
        await trusted(made)
        await asyncio.sleep(1)  # the next answer ends a chain
        await made.infer()
        if lie == "a forged proof":
            await asyncio.sleep(1)
        before = made.booked()
        made.liar.on_chained = LIES[lie]
        answer = await made.infer()
        assert (answer.status, answer.code) == (502, "receipt_invalid")
        assert made.booked() == before
        made.liar.on_chained = None
        made.liar.shorts.clear()
        await made.infer()
        assert made.liar.shorts == [], "it is a stranger again"
        assert channel_of(made).honest_pico_usd < 10**6


async def test_an_altered_answer_does_not_fit_its_chain() -> None:
    async with pool(window=32) as made:
        await trusted(made)
        made.liar.on_body = lambda body: body.replace(b"4.0", b"5.0")
        answer = await made.infer()
        assert (answer.status, answer.code) == (502, "receipt_invalid")


async def test_a_node_that_never_signs_its_chains_is_a_stranger_again() -> None:
    async with pool(window=32) as made:
        made.liar.on_chained = lambda short: replace(short, proof=None)
        made.liar.on_late = lambda page: []
        await trusted(made)
        assert channel_of(made).honest_pico_usd
        await asyncio.sleep(10)
        channel = channel_of(made)
        assert (channel.honest_pico_usd, channel.unproved.count) == (0, 0)
        assert made.known[0].reasons["receipt_invalid"] == 1


# -- a node that lost its book --------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 32])
@pytest.mark.parametrize("claimed", [False, True])
async def test_a_node_that_lost_its_disk_goes_on_from_what_its_payer_has(
    window: int, claimed: bool
) -> None:
    async with pool(window=window) as made:
        for _ in range(33):
            assert (await made.infer()).status == 200
        if claimed:
            await made.nodes[0].claimer.claim()
        before = made.booked()
        await made.nodes[0].crash()
        made.nodes[0].journal = MemoryJournal()
        await made.nodes[0].start()
        await asyncio.sleep(40)  # found again
        answers = await asyncio.gather(*[made.infer() for _ in range(20)])
        assert {answer.status for answer in answers} == {200}
        assert made.booked() == made.earned() == before + 20 * 200_000
        await made.nodes[0].claimer.claim()
        (theirs,) = made.nodes[0].node.ledger.channels.values()
        assert theirs.claimed == made.booked() // 10**6, "all of it can be claimed"


async def test_charges_that_went_down_with_a_book_leave_no_gap_for_ever() -> None:
    async with pool() as made:
        await made.infer()
        made.liar.lose_answer = True
        await made.infer()  # charged by the node as its second; the payer never hears of it
        made.liar.lose_answer = False
        await made.nodes[0].crash()
        made.nodes[0].journal = MemoryJournal()
        await made.nodes[0].start()
        await asyncio.sleep(60)
        for _ in range(5):
            assert (await made.infer()).status == 200
        assert made.booked() == made.earned() == 6 * 200_000
        channel = channel_of(made)
        assert (channel.next_seq, channel.booked_ahead, channel.unresolved) == (7, set(), {})


async def test_a_caller_who_wants_signed_receipts_gets_them_from_a_trusted_node_too() -> None:
    async with pool(window=32) as made:
        await trusted(made)
        assert headers.RECEIPT not in (await made.infer()).headers
        wish = [KEY_HEADER, (headers.RECEIPTS, headers.SIGNED)]
        assert headers.RECEIPT in (await made.infer(sent=wish)).headers


@pytest.mark.parametrize(
    "errand",
    [
        relay.embeddings(EmbeddingsRequest("m", ("x",))),
        relay.transcription(TranscriptionRequest("m", b"RIFF"), b"", b"", 1_000),
        relay.images(ImagesRequest("m", "x", seed=1)),
    ],
    ids=["embeddings", "speech", "images"],
)
def test_the_wish_for_signed_receipts_counts_for_every_whole_answer(errand: relay.Errand) -> None:
    assert relay.receipted(errand, {}).chained
    assert not relay.receipted(errand, {headers.RECEIPTS: headers.SIGNED}).chained
