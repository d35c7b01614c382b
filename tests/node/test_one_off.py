"""Payments by one transfer (scheme exact): settled first, one answer each, none twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inferpool.payments import x402
from inferpool.payments.earnings import Rates, report
from inferpool.payments.earnings_book import read_book
from inferpool.protocol import headers
from inferpool.protocol.encoding import from_base64, sha256
from tests.node.parts import (
    CHAT,
    INFER,
    Answer,
    Payer,
    World,
    chat_body,
    held_up,
    tensor_body,
    world,
)

PRICE = 200  # the least of a one-off payment here; the requests' own maxima are below it


async def buyer(made: World, funds: int = 10_000) -> Payer:
    payer = await made.payer(deposit=0)
    made.chain.fund(payer.key.address, funds)
    return payer


async def buy(payer: Payer, transfer: Any = None, **more: Any) -> Answer:
    pairs = payer.paid_once(transfer or payer.transfer(PRICE), **more)
    return await payer.world.send("POST", CHAT, pairs, chat_body())


async def balance(made: World, owner: bytes | None = None) -> int:
    terms = made.node.node.gate.terms
    return await made.chain.token_balance(terms.asset, owner or terms.payee)


async def test_it_is_offered_with_its_price_and_in_words() -> None:
    async with world() as made:
        asked = await made.send("POST", CHAT, body=chat_body())
        assert asked.status == 402
        assert "scheme exact: 200 base units" in asked.json["error"]["message"]
        assert b'"exact"' in from_base64(asked.headers[headers.PAYMENT_REQUIRED].decode())


async def test_the_money_is_there_before_the_answer() -> None:
    async with world() as made:
        payer = await buyer(made)
        seen: list[int] = []
        generate = made.node.engine.generate

        def watched(*arguments: Any) -> Any:
            seen.append(made.chain._world.tokens.balances[_holder(made)])
            return generate(*arguments)

        made.node.engine.generate = watched  # type: ignore[method-assign]
        answer = await buy(payer)
        assert answer.status == 200
        assert seen == [PRICE]
        receipt = answer.receipt.receipt
        assert 0 < receipt.charge_pico_usd < PRICE * 10**6, "it counts what was used"
        assert await balance(made) == PRICE
        assert (await made.node.claimer.claim()).channels == 0, "there is nothing to claim"


def _holder(made: World) -> tuple[bytes, bytes]:
    terms = made.node.node.gate.terms
    return terms.asset, terms.payee


async def test_a_payment_that_bought_an_answer_is_refused_also_after_a_restart() -> None:
    async with world() as made:
        payer = await buyer(made)
        transfer = payer.transfer(PRICE)
        assert (await buy(payer, transfer)).status == 200
        assert (await buy(payer, transfer)).code == "payment_used"
        await made.restart()
        assert (await buy(payer, transfer)).code == "payment_used"
        assert await balance(made) == PRICE


async def test_of_two_at_once_one_is_served() -> None:
    async with world() as made:
        payer = await buyer(made)
        transfer = payer.transfer(PRICE)
        answers = await asyncio.gather(buy(payer, transfer), buy(payer, transfer))
        assert sorted(answer.status for answer in answers) == [200, 402]
        assert await balance(made) == PRICE


@pytest.mark.parametrize("crash", [False, True], ids=["same run", "after a crash"])
async def test_a_payment_without_an_answer_is_good_again(crash: bool) -> None:
    async with world() as made:
        payer = await buyer(made)
        transfer = payer.transfer(PRICE)
        made.node.engine.fail_after = 0
        failed = await buy(payer, transfer)
        assert failed.status == 502
        assert await balance(made) == PRICE
        made.node.engine.fail_after = None
        if crash:
            await made.restart()
        assert (await buy(payer, transfer)).status == 200
        assert await balance(made) == PRICE, "it was paid once"
        assert (await buy(payer, transfer)).code == "payment_used"


async def test_what_does_not_fit_moves_no_money() -> None:
    async with world() as made:
        payer, liar = await buyer(made), await buyer(made)
        good = payer.transfer(PRICE)
        wrong = [
            (replace(good, signature=liar.transfer(PRICE).signature), "transfer_failed"),
            (payer.transfer(PRICE, valid_before_s=1), "transfer_failed"),
            (payer.transfer(PRICE, to=liar.key.address), "payment_terms"),
            (payer.transfer(PRICE - 1), "payment_terms"),
            (payer.transfer(PRICE + 1), "payment_terms"),
        ]
        for transfer, code in wrong:
            assert (await buy(payer, transfer, amount=PRICE)).code == code
        pairs = payer.paid_once(payer.transfer(20_000), amount=20_000)
        assert (await made.send("POST", INFER, pairs, tensor_body())).code == "payment_terms"
        poor = await buyer(made, funds=0)
        assert (await buy(poor)).code == "transfer_failed"
        assert await balance(made) == 0
        assert await balance(made, payer.key.address) == 10_000


async def test_a_nonce_that_was_used_elsewhere_buys_nothing() -> None:
    """The chain refuses it, and the payee has no transfer of its own to show for it."""
    async with world() as made:
        payer = await buyer(made)
        nonce = sha256(b"once")
        elsewhere = payer.transfer(PRICE, nonce, to=sha256(b"friend")[:20])
        await made.chain.transfer_authorized(made.node.node.gate.terms.asset, elsewhere)
        assert (await buy(payer, payer.transfer(PRICE, nonce))).code == "transfer_failed"


async def test_all_of_it_is_earned() -> None:
    async with world() as made:
        payer = await buyer(made)
        await buy(payer)
        await buy(payer)
        earned, claims, _ = read_book(made.node.journal, 10**6)
        found = report(earned, claims, [], Rates(0, 0), 10**6)
        assert found.total.earned == found.claimed == 2 * PRICE * 10**6
        assert found.unclaimed == 0
        assert found.gas_wei > 0
        assert list(found.by_payer) == [payer.channel.config.to_wire()["payer"]]


async def test_an_answer_that_is_not_on_disk_yet_has_used_its_payment() -> None:
    async with world() as made:
        payer = await buyer(made)
        transfer = payer.transfer(PRICE)
        made.node.journal._delay_s = 20
        first = asyncio.create_task(buy(payer, transfer))
        await asyncio.sleep(30)  # of the loop's own time: the payment is on disk, its receipt not
        assert not first.done()
        assert (await buy(payer, transfer)).code == "payment_used"
        assert (await first).status == 200


async def test_a_caller_who_leaves_while_its_payment_is_mined_can_come_again() -> None:
    async with world() as made:
        payer = await buyer(made)
        transfer = payer.transfer(PRICE)
        begun, mined = held_up(made, "transfer_authorized")
        payment = x402.parse_payment(payer.paid_once(transfer)[0][1])
        assert isinstance(payment, x402.ExactPayment)
        one_offs = made.node.node.gate.one_offs
        left = asyncio.create_task(one_offs.admit(payment, payer.next_id(), 100, 0))
        await begun.wait()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert (await buy(payer, transfer)).code == "payment_used", "it is on the way"
        mined.set()
        await asyncio.sleep(1)
        assert (await buy(payer, transfer)).status == 200
        assert await balance(made) == PRICE, "it was paid once"
