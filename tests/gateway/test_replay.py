"""Retries: joined, replayed or served anew, and paid once; never more memory than is said."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferpool.gateway import replay
from inferpool.transport.memory import MemoryTransport
from tests.gateway.parts import CHAT, INFER, KEY_HEADER, Answer, Pairs, Pool, pool

BODY = {
    "model": "fake-chat",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 20,
    "seed": 5,
}
ROWS = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [1.0] * 8}]}


def retry(count: int) -> Pairs:
    return [KEY_HEADER, (b"x-stainless-retry-count", b"%d" % count)]


def named(key: bytes) -> Pairs:
    return [KEY_HEADER, (b"idempotency-key", key)]


async def ask(made: Pool, pairs: Pairs, *, stream: bool = False, **changes: Any) -> Answer:
    return await made.send("POST", CHAT, {**BODY, "stream": stream, **changes}, pairs)


async def leave(made: Pool, pairs: Pairs, after_s: float, *, stream: bool = False) -> None:
    """Ask, and hang up."""
    pipe = MemoryTransport(made.gateway.app, client=("127.0.0.1", 1))
    data = json.dumps({**BODY, "stream": stream}).encode()
    asked = asyncio.create_task(pipe.request("POST", CHAT, pairs, data, timeout_s=900.0))
    await asyncio.sleep(after_s)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    if not asked.cancelled():
        await asked.result().close()


async def booked_and_spent(made: Pool) -> tuple[int, int]:
    await asyncio.sleep(300)
    assert made.booked() == made.earned()
    assert made.account.held_pico_usd == 0
    return made.booked(), made.account.spent_pico_usd


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("by", ["key", "sdk"])
async def test_an_answer_that_was_lost_on_the_way_is_replayed(stream: bool, by: str) -> None:
    async with pool() as made:
        first = await ask(made, named(b"k") if by == "key" else retry(0), stream=stream)
        again = await ask(made, named(b"k") if by == "key" else retry(1), stream=stream)
        assert first.status == again.status == 200
        assert again.body == first.body
        assert again.headers[b"inferpool-replayed"] == b"1"
        assert again.headers[b"x-request-id"] == first.headers[b"x-request-id"]
        assert b"inferpool-replayed" not in first.headers
        booked, spent = await booked_and_spent(made)
        assert booked == spent == first.proof["cost_pico_usd"]


async def test_tensors_are_replayed_too() -> None:
    async with pool() as made:
        first = await made.send("POST", INFER, ROWS, retry(0))
        again = await made.send("POST", INFER, ROWS, retry(2))
        assert (again.status, again.body) == (200, first.body)
        assert made.booked() == 200_000


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_twin_that_still_runs_is_joined(stream: bool) -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.2
        first = asyncio.create_task(ask(made, retry(0), stream=stream))
        await asyncio.sleep(1)
        again = await ask(made, retry(1), stream=stream)
        assert again.body == (await first).body
        booked, spent = await booked_and_spent(made)
        assert booked == spent == again.proof["cost_pico_usd"]


async def test_a_named_request_goes_on_while_nobody_reads() -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.2
        await leave(made, named(b"k"), 1.0)
        again = await ask(made, named(b"k"))
        assert again.status == 200
        assert again.headers[b"inferpool-replayed"] == b"1"
        booked, spent = await booked_and_spent(made)
        assert booked == spent == again.proof["cost_pico_usd"]


@pytest.mark.parametrize("pause_s", [0.4, 100.0], ids=["at once", "after its receipt came"])
async def test_what_was_cut_before_its_answer_began_is_not_billed(pause_s: float) -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.2
        await leave(made, retry(0), 1.5)
        await asyncio.sleep(pause_s)
        again = await ask(made, retry(1))
        assert again.status == 200
        assert b"inferpool-replayed" not in again.headers
        booked, spent = await booked_and_spent(made)
        assert spent == again.proof["cost_pico_usd"] < booked, "the node has its due"


async def test_only_two_tries_are_forgiven() -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.2
        for count in range(4):
            await leave(made, retry(count), 1.5)
            await asyncio.sleep(1)
        booked, spent = await booked_and_spent(made)
        assert 0 < spent < booked


async def test_a_stream_that_was_read_is_billed_though_its_reader_left() -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.2
        await leave(made, retry(0), 1.5, stream=True)
        again = await ask(made, retry(1), stream=True)
        booked, spent = await booked_and_spent(made)
        assert again.status == 200
        assert booked == spent > again.proof["cost_pico_usd"], "it had its text, and pays for it"


async def test_errors_are_not_replayed() -> None:
    async with pool() as made:
        await made.nodes[0].crash()
        assert (await ask(made, named(b"k"))).status == 503
        await made.nodes[0].start()
        await asyncio.sleep(120)
        assert (await ask(made, named(b"k"))).status == 200


async def test_without_a_sign_of_a_retry_each_request_is_its_own() -> None:
    async with pool() as made:
        for pairs in ([KEY_HEADER], retry(0), retry(0)):
            assert (await ask(made, list(pairs))).status == 200
        assert len(made.gateway.gateway.ledger.attempts(10)) == 3


async def test_keys_are_of_their_account_and_of_one_body() -> None:
    async with pool() as made:
        await ask(made, named(b"k"))
        other = await ask(made, named(b"k"), max_tokens=2)
        assert (other.status, other.code) == (409, "duplicate_request")
        made_key = (
            await made.send(
                "POST", "/inferpool/admin/keys", {"name": "web"},
                [(b"authorization", b"Bearer control")],
            )
        ).json["key"]  # fmt: skip
        pairs = [(b"authorization", b"Bearer " + made_key.encode()), (b"idempotency-key", b"k")]
        theirs = await ask(made, pairs)
        assert theirs.status == 200
        assert b"inferpool-replayed" not in theirs.headers


async def test_answers_are_forgotten_after_two_minutes() -> None:
    async with pool() as made:
        await ask(made, named(b"k"))
        await asyncio.sleep(121)
        again = await ask(made, named(b"k"))
        assert b"inferpool-replayed" not in again.headers


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool() as made:
        monkeypatch.setattr(replay, "REPLAY_BYTES_MAX", 10_000)
        replays = made.gateway.app._replays
        for number in range(20):
            await ask(made, named(b"%d" % number))
            assert replays.size <= 10_000
            assert replays.size == sum(twin.size for twin in replays._twins.values())
        assert b"inferpool-replayed" in (await ask(made, named(b"19"))).headers
        assert b"inferpool-replayed" not in (await ask(made, named(b"0"))).headers
        monkeypatch.setattr(replay, "REPLAY_ONE_BYTES_MAX", 1500)
        long = await ask(made, named(b"long"))
        assert long.status == 200
        assert b"inferpool-replayed" not in (await ask(made, named(b"long"))).headers
