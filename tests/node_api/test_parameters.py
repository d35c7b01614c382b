"""What not every engine takes, with a real one: llama.cpp behind a node behind a gateway."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
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
