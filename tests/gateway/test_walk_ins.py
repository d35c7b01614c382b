"""A gateway sells to callers without a key, by x402: what they are told, charged, and owe."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferpool.protocol import headers
from inferpool.protocol.limits import UNRESOLVED_HOLD_S
from inferpool.protocol.receipt import SignedReceipt
from inferpool.transport.base import ConnectFailed
from inferpool.transport.memory import MemoryTransport
from tests.gateway.parts import CHAT, INFER, KEY_HEADER, Fake, Pool, expected_text, pool
from tests.gateway.walkers import Walker, accepts, charged, chat_body, tensor_body, walker


def payee(made: Pool) -> Any:
    walk_ins = made.gateway.gateway.walk_ins
    assert walk_ins is not None
    return walk_ins


async def settled(made: Pool) -> int:
    """Base units that the gateway has received, once it claimed."""
    assert made.gateway.claimer is not None
    terms = payee(made).gate.terms
    before = await made.chain.token_balance(terms.asset, terms.payee)
    report = await made.gateway.claimer.claim()
    assert report.left_out == ()
    return await made.chain.token_balance(terms.asset, terms.payee) - before


def at_rest(made: Pool) -> None:
    walk_ins = payee(made)
    assert not walk_ins.running
    assert not walk_ins.waiting
    assert walk_ins.account.held_pico_usd == 0
    for channel in walk_ins.ledger.channels.values():
        assert channel.held_total == channel.prepaid_total == 0


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat_body()), (INFER, tensor_body())])
async def test_without_a_key_the_402_says_how_to_pay(path: str, body: Any) -> None:
    async with pool(sells=True) as made:
        asked = await made.send("POST", path, body, [])
        assert asked.status == 402
        assert asked.code == "payment_required"
        words = asked.json["error"] if path == INFER else asked.json["error"]["message"]
        for needed in ("base units", "batch-settlement", "PAYMENT-SIGNATURE", "scheme exact"):
            assert needed in words
        assert [entry["scheme"] for entry in accepts(asked)] == ["batch-settlement", "exact"]
        assert asked.headers[b"x-should-retry"] == b"false"


async def test_a_gateway_that_does_not_sell_asks_for_a_key() -> None:
    async with pool() as made:
        assert (await made.send("POST", CHAT, chat_body(), [])).status == 401
        assert (await made.send("GET", "/inferpool/receipts?channel=0x00", None, [])).status == 400


async def test_a_wrong_key_is_no_walk_in_and_a_right_one_pays_as_before() -> None:
    async with pool(sells=True) as made:
        wrong = [(b"authorization", b"Bearer nothing")]
        assert (await made.send("POST", CHAT, chat_body(), wrong)).status == 401
        assert (await made.send("POST", CHAT, chat_body(), [KEY_HEADER])).status == 200
        assert not payee(made).ledger.channels


async def test_each_kind_of_answer_is_charged_exactly_and_claimed() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        answers = [
            await payer.chat(),
            await payer.chat(stream=True),
            await payer.infer(),
            await payer.infer(rows=40),
        ]
        assert answers[0].json["choices"][0]["message"]["content"] == expected_text("hello", 5, 10)
        assert answers[1].text == expected_text("hello", 5, 10)
        total = sum(map(charged, answers))
        assert total == payer.channel.charged
        assert payer.channel.total_pico_usd == made.earned(), "no fee: what the node took"
        assert answers[1].proof["payment"]["extra"]["chargedAmount"].isdigit()
        at_rest(made)
        assert await settled(made) == total > 0


async def test_the_fee_is_on_top_for_walk_ins_too() -> None:
    async with pool(sells=True) as made:
        made.gateway.gateway.fee_bps = 500
        payer = await walker(made)
        await payer.infer(rows=100)
        assert payer.channel.total_pico_usd == made.earned() * 105 // 100


async def test_a_foreign_stream_reports_its_maximum_and_credits_the_rest() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made, own=False)
        price = await payer.price(CHAT, chat_body())
        stream = await payer.chat(stream=True)
        assert headers.PAYMENT_RESPONSE in stream.headers, "before the first byte"
        assert charged(stream) == price
        following = await payer.infer(rows=20)
        assert charged(following) == 0, "the credit covers it"
        assert made.earned() // 10**6 <= price
        # The credit goes on until it is used up: then all that was told is what was earned.
        while charged(following) == 0:
            following = await payer.infer(rows=40)
        (channel,) = payee(made).ledger.channels.values()
        assert channel.reported == channel.earned == made.earned() // 10**6
        assert await settled(made) == channel.reported


async def test_many_at_once_on_one_channel_of_our_payer() -> None:
    async with pool(nodes=2, sells=True) as made:
        payer = await walker(made)
        price = await payer.price(INFER, tensor_body())
        answers = await asyncio.gather(*(payer.ask(INFER, tensor_body(), price) for _ in range(30)))
        assert {answer.status for answer in answers} == {200}
        assert payer.channel.total_pico_usd == made.earned()
        at_rest(made)


async def test_a_payment_that_is_too_small_or_of_other_terms_is_told_the_price() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        price = await payer.price(CHAT, chat_body())
        small = await payer.chat(amount=price - 1)
        assert small.status == 402
        assert small.code == "payment_terms"
        assert int(accepts(small)[0]["amount"]) == price
        assert (await payer.chat(amount=price)).status == 200
        poor = await walker(made, deposit=1)
        poor.channel.balance = 10**6  # it lies
        assert (await poor.chat()).code == "voucher_balance"
        at_rest(made)


async def test_more_than_the_price_lets_dearer_nodes_in_and_costs_no_more() -> None:
    async with pool(nodes=2, sells=True) as made:
        for hosted in made.nodes[1].node.services.hosted:
            hosted.reprice(
                3 * hosted.price_in_pico_usd_per_unit, hosted.price_out_pico_usd_per_unit
            )
        made.nodes[1].node.announce()
        await made.gateway.gateway.directory.look(made.known[1])
        await made.gateway.gateway.directory.look(made.known[0])
        payer = await walker(made)
        price = await payer.price(INFER, tensor_body(100))
        made.nodes[0].engine.up = False
        assert (await payer.ask(INFER, tensor_body(100), 3 * price)).status == 200
        assert payer.channel.total_pico_usd == made.earned()


async def test_who_leaves_in_mid_stream_pays_for_what_came() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        body = chat_body(stream=True, max_tokens=30)
        price = await payer.price(CHAT, body)
        pipe = MemoryTransport(made.gateway.app)
        response = await pipe.request(
            "POST", CHAT, payer.paid(payer.next_id(), price), json.dumps(body).encode(),
            timeout_s=60,
        )  # fmt: skip
        async for _ in response.chunks():
            break
        await response.close()
        await pipe.close()
        await asyncio.sleep(30)
        at_rest(made)
        (channel,) = payee(made).ledger.channels.values()
        assert 0 < channel.total_pico_usd == made.earned()
        page = await payer.receipts()
        (signed,) = [SignedReceipt.from_wire(item) for item in page.json["receipts"]]
        assert signed.receipt.charge_pico_usd == channel.total_pico_usd
        assert (await payer.receipts(payer.pool.gateway.gateway.treasury.payer)).status == 422


async def test_who_hangs_up_is_free_again_though_the_node_never_comes_back() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        body = chat_body(stream=True, max_tokens=30)
        price = await payer.price(CHAT, body)

        def gone(method: str, path: str) -> Fake | None:
            if path.startswith("/inferpool/receipts"):
                raise ConnectFailed("nobody listens")
            return None

        made.liar.instead = gone
        pipe = MemoryTransport(made.gateway.app)
        paid = payer.paid(payer.next_id(), price)
        response = await pipe.request("POST", CHAT, paid, json.dumps(body).encode(), timeout_s=60)
        async for _ in response.chunks():
            break
        await response.close()
        await pipe.close()
        await asyncio.sleep(300)
        (channel,) = payee(made).ledger.channels.values()
        assert channel.held, "the node may come back"
        await asyncio.sleep(UNRESOLVED_HOLD_S)
        assert not channel.held
        assert channel.total_pico_usd == 0, "nothing was billed"
        assert not payee(made).waiting
        assert not payee(made).running


async def test_a_request_that_no_node_answers_costs_nothing() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        price = await payer.price(CHAT, chat_body())
        made.nodes[0].engine.fail_after = 3
        failed = await payer.chat(amount=price)
        assert failed.status in (502, 503)
        assert headers.PAYMENT_RESPONSE not in failed.headers
        await asyncio.sleep(200)
        at_rest(made)
        assert made.earned() > 0, "what its node charged is the gateway's own cost"
        assert not any(item.total_pico_usd for item in payee(made).ledger.channels.values())
        made.nodes[0].engine.fail_after = None
        assert (await payer.chat()).status == 200, "the voucher is good for the next one"


async def test_one_request_id_is_served_once_and_no_key_of_another_is_replayed() -> None:
    async with pool(sells=True) as made:
        payer, other = await walker(made), await walker(made)
        price = await payer.price(INFER, tensor_body())
        pairs = payer.paid(payer.next_id(), price)
        twice = await asyncio.gather(
            *(made.send("POST", INFER, tensor_body(), pairs) for _ in range(2))
        )
        assert sorted(answer.status for answer in twice) == [200, 409]
        idempotent = (headers.IDEMPOTENCY_KEY, b"mine")
        one = other.paid(other.next_id(), price)
        assert (await made.send("POST", INFER, tensor_body(), [*one, idempotent])).status == 200
        stolen = await made.send("POST", INFER, tensor_body(), [idempotent])
        assert stolen.status == 402, "who does not pay gets nobody's answer"


async def test_a_crash_of_the_gateway_loses_no_earned_money() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        await payer.chat()
        await payer.infer(rows=50)
        before = payer.channel.total_pico_usd
        await made.restart_gateway()
        (channel,) = payee(made).ledger.channels.values()
        assert channel.total_pico_usd == before
        assert (await payer.infer()).status == 200
        assert await settled(made) == payer.channel.charged


async def test_a_withdrawal_is_answered_by_a_claim_and_no_more_work() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        await payer.chat()
        await made.chain.with_sender(payer.key).initiate_withdraw(payer.channel.config, 100_000)
        assert made.gateway.claimer is not None
        await made.gateway.claimer.watch_once()
        state = await made.chain.channel(payer.channel.channel_id)
        assert state.total_claimed == payer.channel.charged
        assert (await payer.chat()).code == "channel_closing"


async def test_a_node_that_dies_in_mid_answer_is_nothing_to_the_walk_in() -> None:
    async with pool(nodes=2, sells=True) as made:
        payer = await walker(made)
        price = await payer.price(CHAT, chat_body(max_tokens=40, stream=True))

        async def kill() -> None:
            await asyncio.sleep(0.5)
            busy = max(made.nodes, key=lambda node: node.node.busy)
            await busy.crash()

        killer = asyncio.create_task(kill())
        answer = await payer.chat(price, stream=True, max_tokens=40)
        await killer
        assert answer.text == expected_text("hello", 5, 40)
        assert answer.proof["legs"] == 2
        receipt = payer.receipt_of(answer)
        assert receipt.output_units == 40
        assert charged(answer) <= price
        await asyncio.sleep(60)
        assert payer.channel.total_pico_usd == receipt.charge_pico_usd


async def test_an_error_frees_the_payment_though_its_node_never_speaks_again() -> None:
    async with pool(sells=True) as made:
        payer = await walker(made)
        price = await payer.price(CHAT, chat_body(max_tokens=40))

        async def kill() -> None:
            await asyncio.sleep(0.5)
            await made.nodes[0].crash()

        killer = asyncio.create_task(kill())
        failed = await payer.chat(price, max_tokens=40)
        await killer
        assert failed.status in (502, 503)
        assert made.gateway.gateway.flights.unresolved, "it may have charged the gateway"
        at_rest(made)


async def test_one_off_payments_buy_answers_at_a_gateway() -> None:
    from tests.node.parts import Payer as Buyer

    async with pool(sells=True) as made:
        terms = payee(made).gate.terms
        buyer = Buyer.__new__(Buyer)
        buyer.key, buyer.count = Walker(made, made.gateway.gateway.treasury.authorizer).key, 0
        buyer.offer = type("Asked", (), {"terms": terms})()
        made.chain.fund(buyer.key.address, 1000)
        transfer = buyer.transfer(200)
        pairs = buyer.paid_once(transfer)
        answer = await made.send("POST", CHAT, chat_body(), pairs)
        assert answer.status == 200
        assert await made.chain.token_balance(terms.asset, buyer.key.address) == 800
        assert (await made.send("POST", CHAT, chat_body(), pairs)).code == "payment_used"
        streamed = await made.send(
            "POST", CHAT, chat_body(stream=True), buyer.paid_once(buyer.transfer(200))
        )
        assert streamed.done
        at_rest(made)
