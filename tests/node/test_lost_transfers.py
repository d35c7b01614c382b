"""A one-off payment whose booking was lost is found on the chain: the node died in between, or the
chain was silent. Money that somebody else sent is nobody's answer here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from inferpool.chain.memory import FailingChain, Failure
from inferpool.payments.journal import MemoryJournal
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.errors import Unavailable
from inferpool.transport.base import TransportError
from tests.gateway.test_every_write import Doom
from tests.node.parts import CHAT, Answer, Payer, World, chat_body, world
from tests.node.test_payment import with_deposit

PRICE = 200
SILENT = Unavailable("no receipt after 120 s", code="chain_unavailable")


async def buyer(made: World) -> Payer:
    payer = await made.payer(deposit=0)
    made.chain.fund(payer.key.address, 10_000)
    return payer


async def buy(payer: Payer, transfer: object) -> Answer:
    return await payer.world.send("POST", CHAT, payer.paid_once(transfer), chat_body())  # type: ignore[arg-type]


async def earned(made: World) -> int:
    terms = made.node.node.gate.terms
    return await made.chain.token_balance(terms.asset, terms.payee)


@pytest.mark.parametrize("crash", [False, True], ids=["same run", "after a crash"])
async def test_a_transfer_that_was_mined_while_the_chain_was_silent_buys_its_answer(
    crash: bool,
) -> None:
    async with world() as made:
        payer, gate = await buyer(made), made.node.node.gate
        transfer, chain = payer.transfer(PRICE), gate._chain
        gate.one_offs._chain = FailingChain(
            chain, lambda name: Failure(SILENT, after=True) if "authorized" in name else None
        )
        assert (await buy(payer, transfer)).status == 503
        assert await earned(made) == PRICE, "it was mined all the same"
        gate.one_offs._chain = chain
        if crash:
            await made.restart()
        assert (await buy(payer, transfer)).status == 200
        assert (await buy(payer, transfer)).code == "payment_used"
        assert await earned(made) == PRICE, "it was paid once"


@pytest.mark.parametrize("on_disk", [False, True], ids=["before it is on disk", "after"])
async def test_no_write_is_a_bad_moment_to_die(on_disk: bool) -> None:
    async def life(at: int) -> int:
        async with world() as made:
            payer = await buyer(made)
            transfer = payer.transfer(PRICE)
            doom = Doom(made.node, at, on_disk=on_disk)
            with suppress(TransportError):
                await buy(payer, transfer)
            count = doom.count
            doom.at = 0
            if doom.over is not None:
                await doom.over
                await made.pipe.close()
                await made.restart()
                answer = await buy(payer, transfer)
                signed = made.node.node.ledger.latest(10)
                # Signed and on disk is used: who died then had all but sent it.
                assert answer.status == 200 or (answer.code == "payment_used" and len(signed) == 1)
                assert len(made.node.node.ledger.latest(10)) == 1, "one answer for one payment"
            assert await earned(made) == PRICE, "it was paid once"
            return count

    unharmed = await life(0)
    assert unharmed >= 2, "the transfer, and the receipt"
    for at in range(1, unharmed + 1):
        await life(at)


async def test_what_another_sent_to_the_same_purse_buys_nothing_here() -> None:
    """Nodes of one owner may have one payout address: each payment is one answer at one of them."""
    async with world() as made:
        payer = await buyer(made)
        transfer, terms = payer.transfer(PRICE), made.node.node.gate.terms
        await made.chain.with_sender(b"\7" * 20).transfer_authorized(terms.asset, transfer)
        assert await earned(made) == PRICE
        assert (await buy(payer, transfer)).code == "transfer_failed"


async def test_nobody_has_the_chain_searched_with_a_strangers_nonce() -> None:
    async with world() as made:
        payer, liar = await buyer(made), await buyer(made)
        transfer = payer.transfer(PRICE)
        assert (await buy(payer, transfer)).status == 200
        asked: list[str] = []
        gate = made.node.node.gate
        gate.one_offs._ledger = PayeeLedger(MemoryJournal(), gate.terms.chain_id, 6)  # it forgot

        def heard(name: str) -> None:
            asked.append(name)

        gate.one_offs._chain = FailingChain(gate._chain, heard)
        forged = replace(transfer, signature=liar.transfer(PRICE).signature)
        assert (await buy(payer, forged)).code == "transfer_failed"
        assert "transfer_authorized" in asked
        assert "transferred" not in asked


async def test_a_deposit_whose_answer_was_lost_is_good_again() -> None:
    """The payer sends the same bytes; the chain has its money already."""
    async with world() as made:
        payer = await made.payer(deposit=0)
        made.chain.fund(payer.key.address, 5_000)
        gate, chain = made.node.node.gate, made.node.node.gate._chain
        gate._chain = FailingChain(
            chain, lambda name: Failure(SILENT, after=True) if name == "deposit" else None
        )
        body = chat_body()
        payer.channel.balance = 5_000
        job = ChatRequest.parse(body).job
        pairs = with_deposit(payer, payer.paid(job, payer.next_id()), 5_000, salt=5)
        assert (await made.send("POST", CHAT, pairs, body)).status == 503
        gate._chain = chain
        assert (await made.send("POST", CHAT, pairs, body)).status == 200
        assert await made.chain.token_balance(gate.terms.asset, payer.key.address) == 0
