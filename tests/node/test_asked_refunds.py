"""A payer asks for its unused money by x402's refund payload, and has it at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferpool.chain.memory import FailingChain, Failure
from inferpool.payments import x402
from inferpool.payments.standing import Channels
from inferpool.protocol import headers
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.voucher import Voucher, voucher_digest
from tests.node.parts import CHAT, Answer, Payer, World, chat_body, held_up, world

REFUND = "/inferpool/refund"


async def ask(payer: Payer, charged: int | None = None, key: Any = None, **more: Any) -> Answer:
    channel = payer.channel
    amount = channel.charged if charged is None else charged
    digest = voucher_digest(channel.channel_id, amount, channel.chain_id)
    voucher = Voucher(channel.channel_id, amount, (key or payer.key).sign(digest))
    header = x402.refund_signature(channel.config, voucher, payer.offer.terms, **more)
    return await payer.world.send("GET", REFUND, [(headers.PAYMENT_SIGNATURE, header)])


async def held(made: World, payer: Payer) -> int:
    return await made.chain.token_balance(payer.channel.config.token, payer.key.address)


async def test_all_that_is_free_comes_back_and_what_was_earned_is_claimed() -> None:
    async with world() as made:
        payer = await made.payer()
        await payer.chat()
        charged = payer.channel.charged
        answer = await ask(payer)
        assert answer.status == 200
        assert answer.json["refunded_base_units"] == 100_000 - charged
        assert await held(made, payer) == 100_000 - charged
        state = await made.chain.channel(payer.channel.channel_id)
        assert state.balance == state.total_claimed == charged
        assert (await ask(payer)).code == "refund_empty"


async def test_a_part_comes_back_and_the_channel_goes_on() -> None:
    async with world() as made:
        payer = await made.payer()
        await payer.chat()
        assert (await ask(payer, amount=999)).code == "refund_amount", "not worth a transaction"
        assert (await ask(payer, amount=100_000)).code == "refund_amount"
        assert (await ask(payer, amount=5_000)).status == 200
        assert await held(made, payer) == 5_000
        payer.channel.balance -= 5_000
        assert (await payer.chat()).status == 200


async def test_only_its_payer_may_ask_and_only_by_what_was_charged() -> None:
    async with world() as made:
        payer, stranger = await made.payer(), await made.payer()
        await payer.chat()
        assert (await ask(payer, key=stranger.key)).code == "voucher_signature"
        wrong = await ask(payer, charged=payer.channel.charged + 1)
        assert wrong.code == "voucher_amount"
        assert wrong.view is not None
        assert wrong.view.charged == payer.channel.charged, "from which it can sign again"
        assert (await made.send("GET", REFUND)).status == 402
        body = payer.paid_once(payer.transfer(200))
        assert (await made.send("GET", REFUND, body)).code == "payment_required"
        assert await held(made, payer) == await held(made, stranger) == 0


async def test_nothing_moves_while_a_request_is_in_flight() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        stream = await payer.open_chat(request_id, max_tokens=200)
        await asyncio.sleep(1)
        assert (await ask(payer, charged=0)).status == 429
        await stream.close()
        await asyncio.sleep(5)
        assert await held(made, payer) == 0


async def test_nothing_is_served_while_money_moves_whatever_makes_the_chain_be_read() -> None:
    async with world() as made:
        payer = await made.payer()
        await payer.chat()
        begun, mined = held_up(made, "refund")
        asked = asyncio.create_task(ask(payer))
        await begun.wait()
        above = Voucher(payer.channel.channel_id, payer.channel.balance + 1, bytes(65))
        job = ChatRequest.parse(chat_body()).job
        pairs = payer.paid(job, payer.next_id(), voucher=above)
        refused = await made.send("POST", CHAT, pairs, chat_body())
        assert refused.status == 402, "and the channel was read anew"
        assert (await payer.chat()).code == "channel_closing"
        assert (await ask(payer)).status == 429, "of two refunds one is sent"
        mined.set()
        assert (await asked).status == 200


async def test_channels_without_money_leave_nothing_behind() -> None:
    async with world() as made:
        for number in range(3):
            stranger = await made.payer(deposit=0, salt=bytes([number]) * 32)
            stranger.channel.balance = 10_000
            assert (await stranger.chat()).code == "channel_not_found"
        assert not made.node.node.gate._fresh


@pytest.mark.parametrize("crash", [False, True], ids=["same run", "after a crash"])
async def test_a_refund_without_an_answer_is_not_worked_for_until_it_is_known(crash: bool) -> None:
    """It may be mined any time later; what was served meanwhile would be paid by nobody."""
    async with world() as made:
        payer = await made.payer()
        await payer.chat()
        gate = made.node.node.gate
        chain = gate._chain
        away = Unavailable("no receipt after 120 s", code="chain_unavailable")
        silent = FailingChain(chain, lambda name: Failure(away) if name == "refund" else None)
        channels = Channels(silent, made.node.node.ledger, gate, made.node.claimer)
        with pytest.raises(Unavailable):
            await channels.refund(payer.channel.channel_id, None)
        if crash:
            await made.restart()
            payer.offer = (await made.offer()).offer
        assert (await payer.chat()).code == "channel_closing", "it may be mined at any moment"
        await chain.refund(payer.channel.config, 100_000)
        charged = payer.channel.charged
        assert await held(made, payer) == 100_000 - charged, "now it was"
        assert (await payer.chat()).code == "voucher_balance"
        await payer.deposit(50_000)
        payer.channel.balance = 50_000
        assert (await payer.chat()).status == 200
        assert (await made.node.claimer.claim()).left_out == ()
        state = await made.chain.channel(payer.channel.channel_id)
        assert state.total_claimed == payer.channel.charged, "all that was charged is paid"


@pytest.mark.parametrize("silent_first", [False, True], ids=["refused", "silent, then refused"])
async def test_a_refund_that_the_chain_refuses_blocks_no_channel(silent_first: bool) -> None:
    """It never comes, so that work goes on; unless one before it is still to be heard of."""
    async with world() as made:
        payer = await made.payer()
        await payer.chat()
        gate, channel_id = made.node.node.gate, payer.channel.channel_id
        gas = Refused("insufficient funds for gas", code="chain_reverted")
        away = Unavailable("no receipt after 120 s", code="chain_unavailable")
        errors = [away, gas] if silent_first else [gas]
        failures = iter([Failure(error) for error in errors])
        chain = FailingChain(gate._chain, lambda name: next(failures) if name == "refund" else None)
        channels = Channels(chain, made.node.node.ledger, gate, made.node.claimer)
        for error in errors:
            with pytest.raises(type(error)):
                await channels.refund(channel_id, None)
        assert (await payer.chat()).status == (402 if silent_first else 200)
        await made.restart()
        payer.offer = (await made.offer()).offer
        assert (await payer.chat()).status == (402 if silent_first else 200)
