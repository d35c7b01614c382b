"""JSON and calls through the gateway: whole or not at all, whatever happens to the node."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferpool.engines.invention import SAID
from inferpool.protocol.limits import HELD_UNITS_MAX
from inferpool.transport.base import ConnectionCut
from tests.gateway.parts import Answer, Pool, pool, url_of

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "f", "strict": True, "schema": SCHEMA}}
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
CALLS: dict[str, Any] = {
    "tools": TOOLS,
    "messages": [{"role": "user", "content": "call look and call now"}],
}
ASKS: dict[str, dict[str, Any]] = {
    "json": {"response_format": FORM},
    "object": {"response_format": {"type": "json_object"}},
    "named": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look"}}},
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "auto": CALLS,
    "one": {**CALLS, "parallel_tool_calls": False},
}


def first(made: Pool) -> None:
    """Make the first node the one that is tried first."""
    for known in made.known:
        known.blocked_until_ms = 0 if known.url == url_of(0) else 2**60


def said(answer: Answer) -> tuple[str, list[tuple[str, Any]], str]:
    """Text, calls with their arguments read, and the finish reason, streamed or not."""
    if answer.body.startswith(b"{"):
        (choice,) = answer.json["choices"]
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        ids = [call["id"] for call in message.get("tool_calls") or ()]
        finish = choice["finish_reason"]
        text = message["content"]
        assert text is None or text, "an answer that only calls has no content"
    else:
        text, calls, ids, finish = "", [], [], ""
        for event in answer.events:
            for choice in event["choices"] if isinstance(event, dict) else ():
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
                for delta in choice["delta"].get("tool_calls") or ():
                    if "id" in delta:
                        assert delta["index"] == len(calls)
                        assert delta["type"] == "function"
                        ids.append(delta["id"])
                        calls.append({"name": delta["function"]["name"], "arguments": ""})
                    calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert len(set(ids)) == len(ids)
    assert all(call_id.startswith("call_") for call_id in ids)
    return text or "", [(call["name"], json.loads(call["arguments"])) for call in calls], finish


def check(kind: str, answer: Answer) -> None:
    text, calls, finish = said(answer)
    if kind in ("json", "object"):
        value = json.loads(text)
        assert isinstance(value, dict)
        assert kind == "object" or (value["city"], len(value["days"])) == ("word 6", 2)
        assert (calls, finish) == ([], "stop")
        return
    assert text == (SAID if kind in ("auto", "one") else "")
    names = {"named": ["look"], "required": ["look"], "auto": ["look", "now"], "one": ["look"]}
    assert [name for name, _ in calls] == names[kind]
    assert calls[0][1]["city"] == "word 6"
    assert finish == "tool_calls"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ASKS)
async def test_answers_have_their_form(kind: str, stream: bool) -> None:
    async with pool() as made:
        answer = await made.chat(stream=stream, max_tokens=300, **ASKS[kind])
        assert answer.status == 200
        check(kind, answer)
        assert answer.done is stream
        assert made.booked() == made.earned() == made.account.spent_pico_usd


@pytest.mark.parametrize("how", ["fails", "cut", "hangs"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("kind", "after"), [*((kind, 10) for kind in ASKS), ("auto", 50)])
async def test_a_node_that_dies_in_the_middle(
    kind: str, stream: bool, how: str, after: int
) -> None:
    """Nothing of it was delivered but text before a call: another node makes it again."""
    async with pool(2) as made:
        whole = await made.chat(stream=stream, max_tokens=300, **ASKS[kind])
        first(made)
        engine = made.nodes[0].engine
        if how == "fails":
            engine.fail_after = after
        elif how == "hangs":
            engine.hang_after = after
        else:
            _cut_after(made, after)
        before = made.account.spent_pico_usd
        answer = await made.chat(stream=stream, max_tokens=300, **ASKS[kind])
        check(kind, answer)
        assert answer.proof["legs"] == 2
        assert said(answer) == said(whole)
        price = whole.proof["cost_pico_usd"]
        assert answer.proof["cost_pico_usd"] == price == made.account.spent_pico_usd - before
        await asyncio.sleep(700)
        assert made.booked() == made.earned()
        assert made.account.held_pico_usd == 0


def _cut_after(made: Pool, tokens: int) -> None:
    left = [tokens]

    def on_event(event: bytes) -> list[bytes]:
        if b'"ids"' in event:
            left[0] -= 1
            if left[0] < 0:
                made.liar.on_event = None
                raise ConnectionCut("cut by the test")
        return [event]

    made.liar.on_event = on_event


@pytest.mark.parametrize("hold", [{"inferpool": {"hold": False}}, {"max_tokens": HELD_UNITS_MAX}])
@pytest.mark.parametrize("kind", ["json", "required"])
async def test_without_holding_a_cut_answer_ends_in_an_error(kind: str, hold: Any) -> None:
    """Part of it was delivered: no other node can go on, and what was delivered is billed."""
    async with pool(2) as made:
        for node in made.nodes:
            node.node.services.hosted[0].manifest = _longer(node.node.services.hosted[0].manifest)
        first(made)
        made.nodes[0].engine.fail_after = 75 if kind == "required" else 8
        answer = await made.chat(stream=True, **({"max_tokens": 300} | ASKS[kind] | hold))
        assert answer.error == "engine_failed"
        assert not answer.done
        assert made.nodes[1].node.ledger.channels == {}
        assert 0 < made.account.spent_pico_usd == made.booked()


def _longer(manifest: Any) -> Any:
    from dataclasses import replace

    return replace(manifest, limits=replace(manifest.limits, max_output=HELD_UNITS_MAX))


async def test_held_answers_that_nobody_finishes_cost_nothing() -> None:
    async with pool(2) as made:
        for node in made.nodes:
            node.engine.fail_after = 8
        for stream in (True, False):
            answer = await made.chat(stream=stream, max_tokens=300, response_format=FORM)
            assert (answer.status, answer.code) == (502, "engine_failed")
        await asyncio.sleep(700)
        assert made.booked() == made.earned() > 0
        assert made.account.spent_pico_usd == made.account.held_pico_usd == 0


async def test_text_can_be_held_too() -> None:
    async with pool(2) as made:
        first(made)
        made.nodes[0].engine.fail_after = 5
        answer = await made.chat(stream=True, inferpool={"hold": True}, stop=["never said"])
        assert answer.done
        assert len([e for e in answer.events if isinstance(e, dict) and e["choices"]]) == 3


async def test_an_answer_that_is_cut_by_its_length_is_told_so() -> None:
    async with pool() as made:
        answer = await made.chat(response_format=FORM, max_tokens=5)
        (choice,) = answer.json["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ('{"cit', "length")


@pytest.mark.parametrize(
    "alter",
    [
        lambda calls: calls[0].update(index=1),
        lambda calls: calls[0]["function"].update(name="other"),
        lambda calls: calls[0].update(function="look"),
        lambda calls: calls.append({"index": 0}),
    ],
)
async def test_calls_of_what_was_not_offered_are_a_bad_answer(alter: Any) -> None:
    def on_event(event: bytes) -> list[bytes]:
        value = json.loads(event[6:])
        calls = value["choices"][0]["delta"].get("tool_calls")
        if calls and "id" in calls[0]:
            alter(calls)
        return [b"data: " + json.dumps(value).encode()]

    async with pool() as made:
        made.liar.on_event = on_event
        answer = await made.chat(max_tokens=300, **ASKS["required"])
        assert (answer.status, answer.code) == (502, "node_failed")


@pytest.mark.parametrize("kind", ["one", "named"])
async def test_more_calls_than_were_asked_for_are_a_bad_answer(kind: str) -> None:
    """`parallel_tool_calls: false` and a named choice mean one; a node may not sell two."""

    def on_event(event: bytes) -> list[bytes]:
        value = json.loads(event[6:])
        (choice,) = value["choices"]
        if choice["finish_reason"] is None:
            return [event]
        function = {"name": "look", "arguments": "{}"}
        call = {"index": 1, "id": "call_x", "type": "function", "function": function}
        more = {**choice, "delta": {"tool_calls": [call]}, "finish_reason": None}
        return [b"data: " + json.dumps({**value, "choices": [more]}).encode(), event]

    async with pool() as made:
        made.liar.on_event = on_event
        answer = await made.chat(max_tokens=300, **ASKS[kind])
        assert (answer.status, answer.code) == (502, "node_failed")
        assert made.booked() == 0, "and nothing is paid for it"


async def test_nodes_that_cannot_are_named() -> None:
    async with pool() as made:
        made.nodes[0].engine.parameters = frozenset()
        made.nodes[0].node.services.hosted[0]._service = None
        made.nodes[0].node.announce()
        await made.gateway.gateway.directory.look(made.known[0])
        for kind, name in (("json", "response_format"), ("auto", "tools")):
            answer = await made.chat(**ASKS[kind])
            assert (answer.status, answer.code) == (400, "unsupported_parameter")
            assert answer.json["error"]["param"] == name
