"""A small call that is late is asked of a second node, if the caller allows it; both are paid."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferpool.protocol.encoding import to_hex
from tests.gateway.parts import INFER, KEY_HEADER, Pool, node_key, pool, url_of

PAIRS = [KEY_HEADER, (b"inferpool-hedge", b"1")]
ROW = 100_000  # pico-USD


async def infer(made: Pool, pairs: Any = None, rows: int = 1) -> Any:
    tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [1.0] * 4 * rows}
    return await made.send("POST", INFER, {"inputs": [tensor]}, PAIRS if pairs is None else pairs)


def slow_first(made: Pool, delay_s: float) -> None:
    """The first node comes first, and takes its time."""
    for known in made.known:
        known.blocked_until_ms = 0 if known.url == url_of(0) else 2**60
    made.nodes[0].node.services.hosted[1].engine.delay_s = delay_s


def served_by(answer: Any) -> str:
    return str(answer.headers[b"inferpool-node"].decode())


async def test_a_late_node_is_overtaken_and_both_books_agree() -> None:
    async with pool(2) as made:
        slow_first(made, 20.0)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await infer(made)
        assert answer.status == 200
        assert answer.json["outputs"][0]["data"] == [4.0]
        assert loop.time() - begun < 3.0, "it did not wait for the first"
        assert served_by(answer) == to_hex(node_key(1).address)
        assert all(known.in_flight == 0 for known in made.known), "the loser was cancelled"
        assert made.account.held_pico_usd == ROW, "the loser may still charge"
        await asyncio.sleep(300)
        assert made.account.held_pico_usd == 0
        assert made.booked() == made.earned()
        assert made.account.spent_pico_usd == made.booked(), "the caller wanted it so"


async def test_without_leave_nobody_else_is_asked() -> None:
    async with pool(2) as made:
        slow_first(made, 5.0)
        for pairs in ([KEY_HEADER], [KEY_HEADER, (b"inferpool-hedge", b"0")]):
            assert served_by(await infer(made, pairs)) == to_hex(node_key(0).address)
        assert made.nodes[1].node.ledger.channels == {}
        bad = await infer(made, [KEY_HEADER, (b"inferpool-hedge", b"yes")])
        assert (bad.status, bad.json["error"][:10]) == (400, "The header")


async def test_a_node_in_time_is_not_doubled() -> None:
    async with pool(2) as made:
        slow_first(made, 0.001)
        for _ in range(30):
            assert (await infer(made)).status == 200
        assert made.nodes[1].node.ledger.channels == {}
        assert made.account.spent_pico_usd == 30 * ROW


@pytest.mark.parametrize("rows", [1, 2])
async def test_the_budget_holds_both_or_only_one_is_asked(rows: int) -> None:
    """One row fits twice into a budget of three; two rows fit once."""
    async with pool(2, limit_pico_usd=3 * ROW) as made:
        slow_first(made, 20.0)
        answer = await infer(made, rows=rows)
        assert answer.status == 200
        assert served_by(answer) == to_hex(node_key(1 if rows == 1 else 0).address)
        await asyncio.sleep(300)
        account = made.account
        assert account.held_pico_usd == 0
        assert account.spent_pico_usd == made.booked() == made.earned() <= 3 * ROW


async def test_where_both_fail_a_third_is_asked() -> None:
    async with pool(3) as made:
        slow_first(made, 20.0)
        for node in made.nodes[:2]:
            node.node.services.hosted[1].engine.fail = True
        answer = await infer(made)
        assert answer.status == 200
        assert served_by(answer) == to_hex(node_key(2).address)
        await asyncio.sleep(300)
        assert made.account.held_pico_usd == 0
        assert made.account.spent_pico_usd >= ROW


async def test_a_late_receipt_is_not_the_clients_while_another_node_serves_it() -> None:
    """The first node's answer is lost and its receipt found while the second works: one price."""
    async with pool(2, limit_pico_usd=2 * ROW) as made:
        slow_first(made, 0.001)
        made.liar.lose_answer = True
        made.nodes[1].node.services.hosted[1].engine.delay_s = 30.0
        asking = asyncio.create_task(infer(made, [KEY_HEADER]))
        await asyncio.sleep(20)
        assert made.booked() == ROW, "the lost one's receipt is here"
        assert made.account.held_pico_usd == ROW, "and the other's answer is held for"
        answer = await asking
        assert answer.status == 200
        await asyncio.sleep(300)
        assert made.booked() == made.earned() == 2 * ROW
        assert made.account.spent_pico_usd == ROW, "the lost one is the gateway's own cost"
