"""Budgets and deposits: held, settled, released; and never more locked up than the caps say."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inferpool.chain.memory import FailingChain, Failure
from inferpool.gateway.treasury import Caps
from inferpool.protocol.errors import PaymentRequired, Unavailable
from inferpool.sim.parts import key_of
from tests.gateway.parts import SEED, Pool, offer_of, pool, signed_offer

ONE = 17 * 150_000 + 10 * 600_000  # pico-USD: what `Pool.chat` may cost at most


async def deposited(made: Pool) -> int:
    """Base units that left the payer's wallet."""
    payer = key_of(SEED, "gateway-0/payer").address
    terms = made.nodes[0].node.gate.terms
    return int(10**9 - await made.chain.token_balance(terms.asset, payer))


# -- budgets --------------------------------------------------------------------------------------


async def test_of_twenty_at_once_a_budget_for_three_lets_three_in() -> None:
    async with pool(limit_pico_usd=3 * ONE) as made:
        made.nodes[0].engine.token_delay_s = 0.5
        answers = await asyncio.gather(*(made.chat(stream=True) for _ in range(20)))
        codes = sorted(answer.status for answer in answers)
        assert codes == [200] * 3 + [402] * 17
        refused = next(answer for answer in answers if answer.status == 402)
        assert refused.code == "budget_exceeded"
        assert refused.json["error"]["type"] == "insufficient_quota"
        assert b"payment-required" not in refused.headers, "no x402: the key is what is empty"
        account = made.account
        assert account.held_pico_usd == 0
        assert account.spent_pico_usd == made.booked() <= 3 * ONE


async def test_a_budget_is_charged_what_was_used_and_the_rest_is_free() -> None:
    async with pool(limit_pico_usd=2 * ONE) as made:
        first = await made.chat(max_tokens=1)
        assert made.account.spent_pico_usd == first.proof["cost_pico_usd"] < ONE
        assert made.account.free_pico_usd == 2 * ONE - made.account.spent_pico_usd


@pytest.mark.parametrize("code", ["model_not_found", "budget_exceeded"])
async def test_what_was_never_sent_holds_nothing(code: str) -> None:
    async with pool(limit_pico_usd=ONE) as made:
        changes = {"model": "gpt-9"} if code == "model_not_found" else {"max_tokens": 1000}
        assert (await made.chat(**changes)).code == code
        assert (made.account.held_pico_usd, made.account.spent_pico_usd) == (0, 0)


async def test_a_lost_answer_stays_held_until_its_receipt_came_and_is_then_spent() -> None:
    async with pool(limit_pico_usd=ONE) as made:
        made.liar.lose_answer = True
        assert (await made.infer()).status == 502
        held, spent = made.account.held_pico_usd, made.account.spent_pico_usd
        assert held + spent > 0, "it may have been worked on"
        made.liar.lose_answer = False
        await asyncio.sleep(300)
        assert made.account.held_pico_usd == 0
        assert made.account.spent_pico_usd == made.booked() == made.earned() > 0


async def test_spending_outlives_a_crash() -> None:
    async with pool(limit_pico_usd=10 * ONE) as made:
        await made.chat()
        await made.infer()
        await asyncio.sleep(1)
        spent = made.account.spent_pico_usd
        await made.restart_gateway()
        assert made.account.spent_pico_usd == spent == made.booked()
        assert made.account.limit_pico_usd == 10 * ONE
        assert (await made.chat()).status == 200


async def test_what_was_in_flight_in_a_crash_is_booked_after_it() -> None:
    async with pool() as made:
        await made.chat()
        streams = [asyncio.create_task(made.chat(stream=True, max_tokens=500)) for _ in range(3)]
        await asyncio.sleep(2)
        await made.restart_gateway()
        await asyncio.gather(*streams, return_exceptions=True)
        await asyncio.sleep(300)
        (known,) = made.known
        channel = made.gateway.gateway.treasury.known(known.address)
        assert channel is not None
        await made.gateway.gateway.reconciler.ask(known, channel)
        assert made.booked() == made.earned() > 3 * ONE // 2
        assert (await made.chat()).status == 200, "and the channel goes on"


# -- deposits -------------------------------------------------------------------------------------


async def test_one_channel_is_opened_however_many_ask_at_once() -> None:
    async with pool() as made:
        answers = await asyncio.gather(*(made.chat() for _ in range(10)))
        assert {answer.status for answer in answers} == {200}
        assert await deposited(made) == 3000
        assert len(made.gateway.gateway.ledger.channels) == 1


async def test_a_channel_is_topped_up_when_it_is_used_up() -> None:
    async with pool() as made:
        for _ in range(4):
            answer = await made.chat(max_tokens=1000)
            assert answer.status == 200
            await made.chat(max_tokens=1000)
        charged = made.booked() // 10**6
        assert charged > 3000
        assert charged < await deposited(made) <= charged + 2 * 3000
        assert len(made.gateway.gateway.ledger.channels) == 1


async def test_caps_bound_what_one_node_and_all_nodes_hold() -> None:
    async with pool(3) as made:
        treasury = made.gateway.gateway.treasury
        treasury.caps = Caps(deposit=3000, per_node=3000, total=6000)
        offers = [offer_of(node).offer for node in made.nodes]
        for offer in offers[:2]:
            await treasury.channel(offer)
        with pytest.raises(PaymentRequired) as raised:
            await treasury.channel(offers[2])
        assert raised.value.code == "capital_exceeded"
        channel = await treasury.channel(offers[0])
        with pytest.raises(PaymentRequired):
            await treasury.top_up(offers[0], channel, 3001)
        assert await deposited(made) == 6000


async def test_caps_hold_for_deposits_that_are_made_side_by_side() -> None:
    async with pool(5) as made:
        treasury = made.gateway.gateway.treasury
        treasury.caps = Caps(deposit=3000, per_node=3000, total=6000)
        results = await asyncio.gather(
            *(treasury.channel(offer_of(node).offer) for node in made.nodes),
            return_exceptions=True,
        )
        refused = [item for item in results if isinstance(item, PaymentRequired)]
        assert len(refused) == 3
        assert await deposited(made) == 6000


async def test_a_node_that_changes_its_terms_again_and_again_stays_within_its_cap() -> None:
    """Each other receiver authoriser is another channel: the old ones' money is still locked."""
    async with pool() as made:
        treasury = made.gateway.gateway.treasury
        treasury.caps = Caps(deposit=3000, per_node=7000, total=100_000)
        offer = offer_of(made.nodes[0]).offer
        opened = 0
        for number in range(6):
            changed = replace(
                offer, terms=replace(offer.terms, receiver_authorizer=bytes([number + 1] * 20))
            )
            try:
                await treasury.channel(changed)
                opened += 1
            except PaymentRequired as error:
                assert error.code == "capital_exceeded"
        assert opened == 2
        assert await deposited(made) == 6000


async def test_the_total_cap_holds_over_channels_of_terms_that_are_gone() -> None:
    async with pool(2) as made:
        treasury = made.gateway.gateway.treasury
        treasury.caps = Caps(deposit=3000, per_node=100_000, total=9000)
        offer = offer_of(made.nodes[0]).offer
        for number in range(3):
            terms = replace(offer.terms, receiver_authorizer=bytes([number + 1] * 20))
            await treasury.channel(replace(offer, terms=terms))
        with pytest.raises(PaymentRequired):
            await treasury.channel(offer_of(made.nodes[1]).offer)
        await made.restart_gateway()
        treasury = made.gateway.gateway.treasury
        treasury.caps = Caps(deposit=3000, per_node=100_000, total=9000)
        with pytest.raises(PaymentRequired):
            await treasury.channel(offer_of(made.nodes[1]).offer)
        assert await deposited(made) == 9000


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_deposit_that_fails_is_found_again_and_not_made_twice(after: bool) -> None:
    """The answer of the chain is lost after the money has moved: the same channel is used."""
    async with pool() as made:
        treasury = made.gateway.gateway.treasury
        away = Failure(Unavailable("away", code="chain_unavailable"), after=after)
        failing = [away]
        treasury.chain = FailingChain(
            treasury.chain, lambda name: failing.pop() if name == "deposit" and failing else None
        )
        assert (await made.chat()).status == 503
        assert (await made.chat()).status == 200
        assert await deposited(made) == 3000
        channel = treasury.known(made.known[0].address)
        assert channel is not None
        assert channel.balance == 3000


@pytest.mark.parametrize(
    "changes", [{"chain_id": 1}, {"withdraw_delay_s": 86_401}], ids=["chain", "delay"]
)
async def test_terms_that_are_not_taken_get_no_money(changes: dict[str, int]) -> None:
    async with pool() as made:
        offer = offer_of(made.nodes[0]).offer
        with pytest.raises(PaymentRequired) as raised:
            await made.gateway.gateway.treasury.channel(
                replace(offer, terms=replace(offer.terms, **changes))
            )
        assert raised.value.code == "payment_terms"
        assert await deposited(made) == 0


async def test_a_greedy_least_deposit_is_capped() -> None:
    async with pool() as made:
        made.nodes[0].node.offers.terms = replace(
            made.nodes[0].node.offers.terms, min_deposit=2_000_000
        )
        made.nodes[0].node.offers._signed = None
        offer = offer_of(made.nodes[0]).offer
        with pytest.raises(PaymentRequired) as raised:
            await made.gateway.gateway.treasury.channel(offer)
        assert raised.value.code == "capital_exceeded"
        assert await deposited(made) == 0


async def test_an_absurdly_dear_offer_locks_nobody_out_of_a_budget() -> None:
    """A stranger offers the model with a huge overhead: cheap to expect, endless at most."""
    async with pool(2, limit_pico_usd=2 * ONE, start=False) as made:
        offer = offer_of(made.nodes[0]).offer
        absurd = replace(offer.services[0], template_overhead=2**32 - 1)
        dear = replace(offer, services=(absurd, offer.services[1]))
        made.pipe(made.nodes[0].url)
        made.liar.on_offer = lambda _: signed_offer(dear, made.liar.key).encode()
        await made.gateway.start()
        try:
            assert len(made.known) == 2
            assert (await made.chat()).status == 200
        finally:
            await made.gateway.machine.cut()
            await made.gateway.gateway.close()


async def test_a_dearer_second_node_is_covered_too_or_not_tried() -> None:
    """The first node dies in mid-answer; the other one costs four times as much."""
    for answers, status in ((9, 200), (1, 502)):
        async with pool(2, limit_pico_usd=answers * ONE) as made:
            made.nodes[1].node.services.hosted[0].reprice(600_000, 2_400_000)
            made.nodes[1].node.offers._signed = None
            for known in made.known:
                await made.gateway.gateway.directory.look(known)
                known.blocked_until_ms = 0 if known.url == made.nodes[0].url else 2**60
            made.nodes[0].engine.fail_after = 0
            assert (await made.chat()).status == status
            await asyncio.sleep(300)
            account = made.account
            assert account.held_pico_usd == 0
            assert account.spent_pico_usd <= answers * ONE
            assert bool(made.nodes[1].node.ledger.channels) == (status == 200)
