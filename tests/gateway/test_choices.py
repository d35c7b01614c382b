"""`n`: several answers to one request, each an attempt of its own; and `logit_bias`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferpool.transport.base import ConnectionCut
from tests.gateway.parts import Answer, Pool, expected_text, pool, url_of

CALL: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "now"}}],
    "tool_choice": "required",
    "max_tokens": 100,
}


def texts(answer: Answer) -> list[str]:
    """The text of each choice, streamed or not."""
    if answer.body.startswith(b"{"):
        choices = answer.json["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        return [choice["message"]["content"] for choice in choices]
    found: dict[int, str] = {}
    for event in answer.events:
        for choice in event.get("choices", ()) if isinstance(event, dict) else ():
            found.setdefault(choice["index"], "")
            found[choice["index"]] += choice["delta"].get("content") or ""
    return [found[index] for index in sorted(found)]


def proofs(answer: Answer) -> list[Any]:
    if answer.body.startswith(b"{"):
        return list(answer.proof["choices"])
    return [e["inferpool"] for e in answer.events if isinstance(e, dict) and "inferpool" in e]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_each_choice_has_its_seed_and_all_have_one_price(stream: bool) -> None:
    async with pool(2) as made:
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer = await made.chat(stream=stream, n=3, **options)
        assert answer.status == 200
        assert texts(answer) == [expected_text("hello", seed, 10) for seed in (5, 6, 7)]
        one = (await made.chat()).proof["cost_pico_usd"]
        assert [proof["cost_pico_usd"] for proof in proofs(answer)] == [one] * 3
        assert made.account.spent_pico_usd == 4 * one == made.booked() == made.earned()
        usage = answer.events[-2]["usage"] if stream else answer.json["usage"]
        assert usage["completion_tokens"] == 30
        if not stream:
            assert answer.proof["cost_pico_usd"] == 3 * one
            assert int(answer.headers[b"inferpool-cost-pico-usd"]) == 3 * one
        assert made.account.held_pico_usd == 0


def cut_after(made: Pool, tokens: int) -> None:
    """Cut one stream of the first node after so many tokens of all its streams."""
    left = [tokens]

    def on_event(event: bytes) -> list[bytes]:
        if b'"ids"' in event:
            left[0] -= 1
            if left[0] == -1:
                raise ConnectionCut("cut by the test")
        return [event]

    made.liar.on_event = on_event


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_one_choice_goes_on_elsewhere(stream: bool) -> None:
    async with pool(2) as made:
        for known in made.known:
            known.blocked_until_ms = 0 if known.url == url_of(0) else 2**60
        cut_after(made, 9)
        answer = await made.chat(stream=stream, n=3)
        assert texts(answer) == [expected_text("hello", seed, 10) for seed in (5, 6, 7)]
        assert sorted(proof["legs"] for proof in proofs(answer)) == [1, 1, 2]
        await asyncio.sleep(700)
        assert made.booked() == made.earned()
        assert made.account.held_pico_usd == 0


async def test_calls_of_different_choices_have_different_ids() -> None:
    async with pool() as made:
        for stream in (True, False):
            answer = await made.chat(stream=stream, n=2, **CALL)
            ids = set(json.loads(json.dumps(answer.body.decode())).split('"id":"call_')[1:])
            assert len({part.split('"')[0] for part in ids}) == 2


async def test_a_stream_of_which_one_choice_cannot_be_finished_ends_in_an_error() -> None:
    async with pool() as made:
        made.nodes[0].engine.fail_after = 4
        answer = await made.chat(stream=True, n=2)
        assert answer.error == "engine_failed"
        assert not answer.done
        await asyncio.sleep(700)
        assert 0 < made.account.spent_pico_usd <= made.booked() == made.earned()
        assert made.account.held_pico_usd == 0


async def test_whole_answers_come_together_or_cost_nothing() -> None:
    async with pool() as made:
        made.nodes[0].engine.fail_after = 4
        answer = await made.chat(n=2)
        assert (answer.status, answer.code) == (502, "engine_failed")
        assert answer.headers[b"x-request-id"].startswith(b"req_")
        await asyncio.sleep(700)
        assert made.account.spent_pico_usd == made.account.held_pico_usd == 0
        assert made.booked() == made.earned() > 0


async def test_a_budget_covers_all_choices_or_none() -> None:
    one = 17 * 150_000 + 10 * 600_000
    async with pool(limit_pico_usd=2 * one) as made:
        answer = await made.chat(n=3)
        assert answer.code == "budget_exceeded"
        assert made.account.held_pico_usd == made.account.spent_pico_usd == 0
        assert made.nodes[0].node.ledger.channels == {}
        assert (await made.chat(n=2)).status == 200


async def test_a_caller_that_leaves_ends_every_choice() -> None:
    from tests.gateway.parts import CHAT, KEY_HEADER

    async with pool() as made:
        body = {"model": "fake-chat", "messages": [{"role": "user", "content": "x"}]}
        sent = json.dumps({**body, "max_tokens": 1000, "stream": True, "n": 3}).encode()
        pipe = made.gateway.transport()
        response = await pipe.request("POST", CHAT, [KEY_HEADER], sent, timeout_s=30)
        chunks = 0
        async for _ in response.chunks():
            chunks += 1
            if chunks == 8:
                break
        await response.close()
        await asyncio.sleep(1)
        assert made.nodes[0].engine.free == 4, "every slot is free"
        await asyncio.sleep(700)
        assert 0 < made.booked() == made.earned() == made.account.spent_pico_usd
        assert made.account.held_pico_usd == 0


async def test_the_bias_of_a_token() -> None:
    async with pool() as made:
        forced = await made.chat(logit_bias={"7": 100}, max_tokens=3)
        assert forced.json["choices"][0]["message"]["content"] == " w7 w7 w7"
        usual = expected_text("hello", 5, 1)
        banned = await made.chat(logit_bias={usual[2:]: -100, "1": 0.5}, max_tokens=1)
        assert banned.json["choices"][0]["message"]["content"] == f" w{int(usual[2:]) + 1}"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": "2"}, "n"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "1"}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ],
)
async def test_refused_by_name(changes: dict[str, Any], param: str) -> None:
    async with pool() as made:
        answer = await made.chat(**changes)
        assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_every_error_has_a_name_to_ask_about_it_by() -> None:
    async with pool() as made:
        for answer in (
            await made.chat(temperature=9),
            await made.chat(model="nobody-has-it"),
            await made.send("GET", "/v1/nothing"),
            await made.send("POST", "/v1/chat/completions", {}, []),
        ):
            assert answer.status >= 400
            assert len(answer.headers[b"x-request-id"]) == len("req_") + 24
