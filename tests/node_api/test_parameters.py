"""What not every engine takes, with a real one: llama.cpp behind a node behind a gateway."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import date
from typing import Any

import pytest
from rig import Rig, hosted

from inferpool.engines.base import Progress, TextCall, TextChunk

MODEL = "smollm2-135m-instruct"
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count from one to ten in words."}],
    "max_tokens": 12,
    "temperature": 0,
    "seed": 1,
}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner) -> Iterator[Rig]:
    async def start() -> Rig:
        return await Rig([[await hosted(MODEL)], [await hosted(MODEL)]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


def check_tokens(text: str, tokens: list[Any], alternatives: int) -> None:
    """OpenAI's entries: they spell the text, and greedy choices lead their alternatives."""
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == alternatives
        if alternatives:
            best = max(token.top_logprobs, key=lambda other: other.logprob)
            assert (best.token, best.logprob) == (token.token, token.logprob)
            assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.0001


async def test_log_probabilities_whole_and_streamed(runner: asyncio.Runner, rig: Rig) -> None:
    client = rig.openai()
    whole = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    (choice,) = whole.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert whole.usage is not None
    assert len(choice.logprobs.content) == whole.usage.completion_tokens == 12
    check_tokens(choice.message.content or "", choice.logprobs.content, 3)
    stream = await client.chat.completions.create(**ASK, logprobs=True, stream=True)
    text, tokens = "", []
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        told = chunk.choices[0].logprobs
        tokens += (told.content or []) if told else []
    check_tokens(text, tokens, 0)
    assert len(tokens) == 12
    plain = await client.chat.completions.create(**ASK)
    assert plain.choices[0].logprobs is None


async def test_log_probabilities_of_a_completion(runner: asyncio.Runner, rig: Rig) -> None:
    ask = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    whole = await rig.openai().completions.create(**ask, logprobs=2)
    (choice,) = whole.choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(8)]
    assert told.top_logprobs is not None
    assert told.token_logprobs is not None
    for name, number, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top is not None
        assert top[name] == number == max(top.values())


def kill_once(rig: Rig, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the child process of whichever engine first comes so far in an answer."""
    armed = [True]

    def watched(engine: Any) -> Any:
        generate = engine.generate

        async def killing(call: TextCall, progress: Progress) -> AsyncIterator[TextChunk]:
            count = 0
            async with aclosing(generate(call, progress)) as chunks:
                async for chunk in chunks:
                    count += len(chunk.ids)
                    if count > after and armed:
                        armed.clear()
                        os.kill(engine.pid, signal.SIGKILL)
                    yield chunk

        return killing

    for services in rig.services:
        engine = services[0].engine
        monkeypatch.setattr(engine, "generate", watched(engine))


async def all_ready(rig: Rig) -> None:
    async with asyncio.timeout(60):
        while not all(s[0].engine.ready() for s in rig.services):  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.05)


async def test_the_log_probabilities_of_an_answer_that_two_nodes_gave(
    runner: asyncio.Runner, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is killed in mid-answer; none of its tokens is lost or told twice."""
    kill_once(rig, 5, monkeypatch)
    ask = {**ASK, "max_tokens": 60, "messages": [{"role": "user", "content": "Tell a long story."}]}
    stream = await rig.openai().chat.completions.create(
        **ask, logprobs=True, top_logprobs=2, stream=True
    )
    text, tokens, proof = "", [], None
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        told = chunk.choices[0].logprobs
        tokens += (told.content or []) if told else []
        proof = (chunk.model_extra or {}).get("inferpool")
    assert proof is not None
    assert proof["legs"] == 2
    assert len(tokens) == proof["output_units"] == 60
    check_tokens(text, tokens, 2)
    await all_ready(rig)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "mood": {"enum": ["good", "bad", "great"]},
        "born": {"type": "string", "format": "date"},
        "ages": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        "pet": {"type": ["boolean", "null"]},
    },
    "required": ["name", "mood", "born", "ages", "pet"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": PERSON}}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"properties": {}}}},
]


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_real_model_keeps_to_a_schema(runner: asyncio.Runner, rig: Rig, seed: int) -> None:
    """At a temperature at which it would write anything else."""
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 150, "temperature": 1.8, "seed": seed}
    ask["messages"] = [{"role": "user", "content": "Invent a person, as JSON."}]
    answer = await rig.openai().chat.completions.create(**ask, response_format=FORM)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    person = json.loads(choice.message.content or "")
    assert list(person) == PERSON["required"]
    assert person["mood"] in ("good", "bad", "great")
    assert person["pet"] in (True, False, None)
    assert 1 <= len(person["ages"]) <= 2
    assert len(person["name"]) <= 12
    date.fromisoformat(person["born"])


async def test_a_real_model_calls_functions(runner: asyncio.Runner, rig: Rig) -> None:
    client = rig.openai()
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 150, "temperature": 0, "tools": TOOLS}
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = await client.chat.completions.create(**ask, messages=messages, tool_choice=named)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert call.function.name == "get_weather"
    assert list(json.loads(call.function.arguments)) == ["city"]
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "20 degrees, sunny"},
    ]
    after = await client.chat.completions.create(
        **(ask | {"max_tokens": 20}), messages=messages, tool_choice="none"
    )
    assert after.choices[0].message.tool_calls is None
    assert after.choices[0].message.content
    stream = await client.chat.completions.create(
        **ask, messages=messages[:1], tool_choice="required", parallel_tool_calls=False, stream=True
    )
    name, arguments, finish = "", "", None
    async for chunk in stream:
        finish = chunk.choices[0].finish_reason or finish
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.index == 0
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert name in ("get_weather", "get_time")
    assert isinstance(json.loads(arguments), dict)
    assert finish == "tool_calls"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_json_of_a_node_that_is_killed_comes_whole_from_another(
    runner: asyncio.Runner, rig: Rig, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    kill_once(rig, 12, monkeypatch)
    ask = {**ASK, "max_tokens": 150, "response_format": FORM, "stream": stream}
    answer = await rig.post("/v1/chat/completions", ask)
    assert answer.status_code == 200, answer.text
    if stream:
        lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
        chunks = [json.loads(line) for line in lines]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        proof = chunks[-1]["inferpool"]
        assert "[DONE]" in answer.text
    else:
        body = answer.json()
        text, proof = body["choices"][0]["message"]["content"], body["inferpool"]
    assert list(json.loads(text)) == PERSON["required"]
    assert proof["legs"] == 2
    await all_ready(rig)


HOSTILE: dict[str, Any] = {
    "nested": {"type": "array", "items": {"$ref": "#"}},
    "many values": {"enum": [f"value {i}" for i in range(1000)]},
    "one in another": {"enum": ["a" * i for i in range(1, 300)]},
    "many optional": {"type": "object", "properties": {f"p{i}": {} for i in range(32)}},
    "long": {"type": "array", "items": {"type": "string", "maxLength": 200}, "minItems": 250},
    "odd names": {"properties": {'"\\\n\u2028\x7f': {}}, "required": ['"\\\n\u2028\x7f']},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_engine_outlives_schemas_that_are_meant_to_hurt(
    runner: asyncio.Runner, rig: Rig, name: str
) -> None:
    pids = [services[0].engine.pid for services in rig.services]
    schema = {"name": "s", "schema": HOSTILE[name], "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    answer = await rig.post("/v1/chat/completions", {**ASK, "response_format": form})
    assert answer.status_code == 200, answer.text
    assert [services[0].engine.pid for services in rig.services] == pids
    assert answer.json()["inferpool"]["legs"] == 1


async def test_a_real_model_gives_several_answers(runner: asyncio.Runner, rig: Rig) -> None:
    client = rig.openai()
    ask = {**ASK, "temperature": 1.0, "max_tokens": 10}
    answer = await client.chat.completions.create(**ask, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 30
    stream = await client.chat.completions.create(**ask, n=2, stream=True)
    ends = [c.choices[0].index async for c in stream if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1]


async def test_a_real_model_is_biased(runner: asyncio.Runner, rig: Rig) -> None:
    """Its likeliest first token is told by its log-probability, and banned by its id."""
    engine = rig.services[0][0].engine
    usual = await rig.openai().chat.completions.create(**ASK)
    text = usual.choices[0].message.content or ""
    ids = await engine._tokens(engine._running(), text, special=False)
    bias = {str(ids[0]): -100}
    other = await rig.openai().chat.completions.create(**ASK, logit_bias=bias)
    assert not (other.choices[0].message.content or "").startswith(text[:6])
