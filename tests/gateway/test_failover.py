"""A node that dies, hangs or is cut: another goes on, no token lost, one price for the client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferpool.protocol.limits import READER_STALL_S, UNRESOLVED_HOLD_S
from inferpool.transport.base import ConnectFailed, ConnectionCut
from inferpool.transport.memory import MemoryTransport
from tests.gateway.parts import CHAT, KEY_HEADER, Fake, Liar, Pool, expected_text, pool, url_of


def price_of(answer: Any) -> int:
    return int(answer.proof["cost_pico_usd"])


def cut_after(liar: Liar, tokens: int) -> None:
    """Cut the pipe after so many tokens of the next stream; then be honest again."""
    left = [tokens]

    def on_event(event: bytes) -> list[bytes]:
        if b'"ids"' in event:
            left[0] -= 1
            if left[0] < 0:
                liar.on_event = None
                raise ConnectionCut("cut by the test")
        return [event]

    liar.on_event = on_event


def first(made: Pool) -> None:
    """Make the first node the one that is tried first."""
    for known in made.known:
        known.blocked_until_ms = 0 if known.url == url_of(0) else 2**60


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_a_stream_that_is_cut_goes_on_elsewhere(tokens: int, stream: bool) -> None:
    """Before the first token, after it, and in the middle: the text is that of one answer."""
    async with pool(2) as made:
        first(made)
        cut_after(made.liar, tokens)
        answer = await made.chat(stream=stream, max_tokens=12)
        assert answer.status == 200
        text = answer.text if stream else answer.json["choices"][0]["message"]["content"]
        assert text == expected_text("hello", 5, 12)
        assert answer.done or not stream
        assert answer.proof["legs"] == 2
        assert answer.proof["output_units"] == 12
        # One answer, one price: what one node would have charged for all of it.
        undisturbed = await made.chat(max_tokens=12)
        assert price_of(answer) == price_of(undisturbed)
        assert made.account.spent_pico_usd == 2 * price_of(undisturbed)


async def test_the_budget_is_free_again_once_late_receipts_are_in() -> None:
    async with pool(2) as made:
        first(made)
        cut_after(made.liar, 5)
        await made.chat(stream=True)
        await asyncio.sleep(300)
        assert made.account.held_pico_usd == 0
        assert made.booked() == made.earned(), "each node got a receipt booked for what it sent"
        channels = [channel for _, channel in made.gateway.gateway.ledger.channels.values()]
        assert all(not channel.held and not channel.unresolved for channel in channels)


async def test_a_node_that_refuses_connections_is_passed_by() -> None:
    async with pool(2) as made:
        first(made)

        def instead(method: str, path: str) -> Fake | None:
            if method == "POST":
                raise ConnectFailed("nobody listens")
            return None

        made.liar.instead = instead
        for _ in range(3):
            assert (await made.chat()).status == 200
            assert (await made.infer()).status == 200
        assert made.nodes[0].node.ledger.channels == {}
        node = next(known for known in made.known if known.url == url_of(0))
        assert node.reasons


async def test_an_engine_that_hangs_behind_a_front_end_that_beats() -> None:
    """Heartbeats go on and the engine does not: three seconds, then another node."""
    async with pool(2) as made:
        first(made)
        made.nodes[0].engine.hang_after = 4
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await made.chat(stream=True)
        assert answer.text == expected_text("hello", 5, 10)
        assert 3.0 <= loop.time() - begun <= 3.6
        assert answer.done


async def test_a_node_that_queues_is_not_given_up_for_it() -> None:
    async with pool() as made:
        made.nodes[0].engine.prefill_delay_s = 20.0
        answer = await made.chat(stream=True)
        assert answer.text == expected_text("hello", 5, 10)
        assert answer.proof["legs"] == 1


async def test_an_engine_that_fails_in_the_middle_goes_on_elsewhere_and_is_paid_its_part() -> None:
    async with pool(2) as made:
        first(made)
        made.nodes[0].engine.fail_after = 4
        answer = await made.chat(stream=True)
        assert answer.text == expected_text("hello", 5, 10)
        assert answer.done
        channels = [node.node.ledger.channels for node in made.nodes]
        assert all(len(found) == 1 for found in channels)
        assert made.booked() == made.earned()
        assert made.account.spent_pico_usd == price_of(answer) < made.booked()


async def test_a_budget_for_one_answer_pays_for_one_answer_whoever_fails() -> None:
    """The key's limit is what one answer may cost; two legs must not overdraw it."""
    async with pool(2, limit_pico_usd=17 * 150_000 + 10 * 600_000) as made:
        first(made)
        made.nodes[0].engine.fail_after = 9
        answer = await made.chat(stream=True)
        assert answer.text == expected_text("hello", 5, 10)
        account = made.account
        assert account.limit_pico_usd is not None
        assert account.spent_pico_usd + account.held_pico_usd <= account.limit_pico_usd
        assert (await made.chat()).code == "budget_exceeded"


async def test_a_whole_answer_that_nobody_can_go_on_with_is_made_again() -> None:
    """With a stop text nobody can; the client has nothing yet, so another node begins anew."""
    async with pool(2) as made:
        first(made)
        made.nodes[0].engine.fail_after = 6
        answer = await made.chat(stop=["never said"])
        content = answer.json["choices"][0]["message"]["content"]
        assert content == expected_text("hello", 5, 10)
        assert answer.proof["legs"] == 2
        undisturbed = await made.chat(stop=["never said"])
        assert price_of(answer) == price_of(undisturbed)
        assert made.account.spent_pico_usd == 2 * price_of(undisturbed)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_failed_leg_that_cost_more_than_the_answer_is_the_gateways(stream: bool) -> None:
    """The first node fails after nine dear tokens that nobody got; the next one's answer is short
    and cheap: that is what the client pays. Both nodes keep what they charged."""
    async with pool(2) as made:
        made.nodes[0].node.services.hosted[0].reprice(600_000, 2_400_000)
        made.nodes[0].node.offers._signed = None
        for known in made.known:
            await made.gateway.gateway.directory.look(known)
        first(made)
        made.nodes[0].engine.fail_after = 9
        made.nodes[1].engine.answer_tokens = 3
        asks = {"stop": ["never said"], "inferpool": {"hold": True}}
        answer = await made.chat(stream=stream, **asks)
        assert answer.proof["legs"] == 2
        assert answer.proof["output_units"] == 3
        cheap = made.nodes[1].node.ledger.channels
        price = sum(channel.total_pico_usd for channel in cheap.values())
        assert price_of(answer) == price == made.account.spent_pico_usd
        assert made.booked() == made.earned() > 2 * price
        assert made.account.held_pico_usd == 0
        await made.restart_gateway()
        assert made.account.spent_pico_usd == price, "as on disk"


async def late_receipts(made: Pool) -> None:
    """Ask each node for what it has of ours."""
    gateway = made.gateway.gateway
    for known in made.known:
        channel = gateway.treasury.known(known.address)
        assert channel is not None
        await gateway.reconciler.ask(known, channel)


async def test_a_receipt_that_is_found_after_a_restart_bills_no_answer_twice() -> None:
    async with pool(2) as made:
        first(made)
        cut_after(made.liar, 5)
        made.liar.on_late = lambda _: []
        answer = await made.chat(stream=True)
        price = price_of(answer)
        assert made.account.spent_pico_usd == price
        await made.gateway.crash()
        made.liar.on_late = None
        await made.gateway.start()
        await late_receipts(made)
        assert made.booked() == made.earned() > price
        assert made.account.spent_pico_usd == price, "the other node's answer was paid for"


async def test_a_hold_waits_for_a_node_that_is_gone_no_longer_than_its_bound() -> None:
    async with pool() as made:
        made.liar.lose_answer = True

        def gone(method: str, path: str) -> Fake | None:
            if path.startswith("/inferpool/receipts"):
                raise ConnectFailed("nobody listens")
            return None

        made.liar.instead = gone
        assert (await made.chat()).status == 502
        await asyncio.sleep(300)
        assert made.account.held_pico_usd > 0, "it may come back"
        await asyncio.sleep(UNRESOLVED_HOLD_S)
        assert made.account.held_pico_usd == 0
        made.liar.instead = lambda method, path: None
        await late_receipts(made)
        assert made.booked() == made.earned() > 0, "what it did is still its own"
        assert made.account.spent_pico_usd == 0


async def test_who_was_told_an_error_is_not_billed_as_long_as_its_hold_stands() -> None:
    async with pool() as made:
        made.liar.lose_answer = True

        def silent(method: str, path: str) -> Fake | None:
            if path.startswith("/inferpool/receipts"):
                raise ConnectFailed("nobody listens")
            return None

        made.liar.instead = silent
        assert (await made.chat()).status == 502
        await asyncio.sleep(UNRESOLVED_HOLD_S - 100)
        assert made.account.held_pico_usd > 0
        made.liar.instead = lambda method, path: None
        await late_receipts(made)
        assert made.booked() == made.earned() > 0
        assert made.account.spent_pico_usd == made.account.held_pico_usd == 0


async def test_nothing_is_remembered_of_errors_that_nobody_can_charge_for() -> None:
    async with pool() as made:

        def gone(method: str, path: str) -> Fake | None:
            raise ConnectFailed("nobody listens")

        made.liar.instead = gone
        assert (await made.chat()).status >= 500
        assert not made.gateway.gateway.flights.forgiven


async def test_what_a_node_denied_and_charges_after_all_is_no_clients() -> None:
    """Its hold is gone, and others may have spent that budget since."""
    async with pool() as made:
        made.liar.lose_answer = True

        def denies(method: str, path: str) -> Fake | None:
            return Fake([], status=404) if path.startswith("/inferpool/receipts") else None

        made.liar.instead = denies
        assert (await made.infer()).status == 502
        await asyncio.sleep(300)
        assert made.account.held_pico_usd == 0, "the node says that it owes nothing"
        made.liar.instead = lambda method, path: None
        await late_receipts(made)
        assert made.booked() == made.earned() > 0, "its voucher covers it"
        assert made.account.spent_pico_usd == 0


async def test_of_two_late_receipts_the_last_nodes_is_the_clients() -> None:
    """The first node is cut, and the second dies between its last token and its receipt."""
    async with pool(2) as made:
        first(made)
        cut_after(made.liar, 5)
        made.pipe(url_of(1))
        made.liars[url_of(1)].on_receipt = lambda _: None
        answer = await made.chat(stream=True)
        assert answer.text == expected_text("hello", 5, 10)
        await asyncio.sleep(300)
        assert made.booked() == made.earned()
        second = sum(c.total_pico_usd for c in made.nodes[1].node.ledger.channels.values())
        assert made.account.spent_pico_usd == second < made.booked()
        assert made.account.held_pico_usd == 0


async def test_a_stream_that_nobody_can_go_on_with_ends_in_an_error() -> None:
    async with pool(2) as made:
        first(made)
        made.nodes[0].engine.fail_after = 6
        answer = await made.chat(stream=True, stop=["never said"])
        assert answer.error == "engine_failed"
        assert not answer.done
        assert answer.text
        assert expected_text("hello", 5, 6).startswith(answer.text)
        assert made.nodes[1].node.ledger.channels == {}
        assert made.account.spent_pico_usd == made.booked(), "what was delivered is billed"


async def test_without_another_node_the_client_is_told() -> None:
    async with pool() as made:
        made.nodes[0].engine.fail_after = 4
        answer = await made.chat(stream=True)
        assert answer.error == "engine_failed"
        assert not answer.done
        assert answer.text == expected_text("hello", 5, 4)
        answer = await made.infer()
        made.nodes[0].node.services.hosted[1].engine.fail = True
        answer = await made.infer()
        assert (answer.status, answer.code) == (502, "engine_failed")


async def test_a_node_that_restarted_is_asked_for_its_new_offer_and_tried_again() -> None:
    """Its old offer has ended with it; the client notices nothing."""
    async with pool() as made:
        assert (await made.chat()).status == 200
        for call in (made.chat, made.infer):
            await made.nodes[0].crash()
            await made.nodes[0].start()
            known = made.known[0]
            known.lease_ms = 2**60  # as if it had not been missed
            answer = await call()
            assert answer.status == 200
            assert known.offer.epoch == made.nodes[0].starts
        assert made.booked() == made.earned()


async def test_a_client_that_leaves_stops_the_work_and_pays_what_was_sent() -> None:
    async with pool() as made:
        pipe = made.gateway.transport()
        body = (
            b'{"model":"fake-chat","messages":[{"role":"user","content":"x"}],'
            b'"max_tokens":1000,"stream":true}'
        )
        from tests.gateway.parts import CHAT, KEY_HEADER

        response = await pipe.request("POST", CHAT, [KEY_HEADER], body, timeout_s=30)
        chunks = 0
        async for _ in response.chunks():
            chunks += 1
            if chunks == 6:
                break
        await response.close()
        await asyncio.sleep(1)
        assert made.nodes[0].engine.free == 4, "the engine's slot is free"
        await asyncio.sleep(300)
        assert 0 < made.booked() == made.earned() < 30 * 600_000
        assert made.account.spent_pico_usd == made.booked()
        assert made.account.held_pico_usd == 0


async def test_a_client_that_neither_reads_nor_leaves_holds_no_slot_for_ever() -> None:
    async with pool(1) as made:
        pipe = MemoryTransport(made.gateway.app, client=("127.0.0.1", 1))
        asked = {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 1024,
            "stream": True,
        }
        body = json.dumps(asked).encode()
        response = await pipe.request("POST", CHAT, [KEY_HEADER], body, timeout_s=900.0)
        assert response.status == 200
        (known,) = made.known
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while known.in_flight and loop.time() - begun < 10 * READER_STALL_S:  # noqa: ASYNC110
            await asyncio.sleep(1)
        assert READER_STALL_S <= loop.time() - begun < 2 * READER_STALL_S
        assert not known.reasons, "that is not its node's fault"
        await response.close()
        await pipe.close()
