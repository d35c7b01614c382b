"""`POST /v1/completions` through a gateway: the fake engine, llama.cpp, and a node that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from rig import Rig, check_money, hosted, receipt_of

from inferpool.engines.base import Sampling, TextCall
from inferpool.engines.fake import prompt_text, token_id, token_text
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.receipt import SignedReceipt

PATH = "/v1/completions"
FAKE: dict[str, Any] = {"model": "fake-chat", "prompt": "once upon", "max_tokens": 9, "seed": 5}


def expected(prompt: str, seed: int, count: int) -> str:
    call = TextCall(None, prompt, count, Sampling(seed=seed))
    text = prompt_text(call)
    return "".join(token_text(token_id(text, seed, i)) for i in range(count))


def proof_of(chunk: Any) -> dict[str, Any]:
    """The object `inferpool` of a stream's last chunk."""
    found: dict[str, Any] = chunk.model_extra["inferpool"]
    return found


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner) -> Iterator[Rig]:
    async def start() -> Rig:
        return await Rig([[await hosted("fake-chat")], [await hosted("fake-chat")]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


@pytest.fixture(scope="module")
def llama(runner: asyncio.Runner) -> Iterator[Rig]:
    async def start() -> Rig:
        return await Rig([[await hosted("smollm2-135m-instruct")]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


async def test_whole(runner: asyncio.Runner, rig: Rig) -> None:
    before = rig.charged(), rig.spent()
    answer = await rig.post(PATH, FAKE)
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "text": expected("once upon", 5, 9),
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert body["usage"]["completion_tokens"] == 9
    check_money(rig, rig.services[0][0], receipt_of(answer), before)


async def test_openai_python_streams(runner: asyncio.Runner, rig: Rig) -> None:
    before = rig.charged(), rig.spent()
    stream = await rig.openai().completions.create(
        model="fake-chat",
        prompt=["once upon"],
        max_tokens=9,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    usage = chunks.pop()
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 9
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected("once upon", 5, 9)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 9 + ["length"]
    proof = proof_of(chunks[-1])
    signed = SignedReceipt.from_wire({key: proof[key] for key in ("receipt", "signature")})
    check_money(rig, rig.services[0][0], signed, before)


async def test_stop_ends_before_the_text(runner: asyncio.Runner, rig: Rig) -> None:
    third = token_text(token_id("once upon", 5, 2))
    body = (await rig.post(PATH, {**FAKE, "stop": [third]})).json()
    assert body["choices"][0]["text"] == expected("once upon", 5, 2)
    assert body["choices"][0]["finish_reason"] == "stop"


def die_once(engines: list[Any], *, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever engine comes to token `after` first fails there; the others live."""
    armed = [True]

    async def pace(produced: int) -> None:
        await asyncio.sleep(0)
        if produced >= after and armed:
            armed.clear()
            raise Unavailable("the engine died", code="engine_failed")

    for engine in engines:
        monkeypatch.setattr(engine, "_pace", pace)


async def test_goes_on_at_another_node(
    runner: asyncio.Runner, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that dies in mid-stream: nothing lost, repeated or altered, one price."""
    die_once([services[0].engine for services in rig.services], after=4, monkeypatch=monkeypatch)
    stream = await rig.openai().completions.create(
        model="fake-chat", prompt="a long way", max_tokens=12, seed=3, stream=True
    )
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].text for chunk in chunks]
    proof = proof_of(chunks[-1])
    assert "".join(texts) == expected("a long way", 3, 12)
    assert proof["legs"] == 2
    service = rig.services[0][0]
    whole = (
        proof["prompt_units"] * service.price_in_pico_usd_per_unit
        + 12 * service.price_out_pico_usd_per_unit
    )
    assert proof["cost_pico_usd"] == whole


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"n": 9}, "n", "invalid_request"),
        ({"logprobs": 6}, "logprobs", "invalid_request"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_request"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"prompt": ""}, "prompt", "invalid_request"),
        ({"prompt": ["a", "b"]}, "prompt", "invalid_request"),
        ({"prompt": [1, 2]}, "prompt", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"model": "fake-tensor"}, "model", "model_not_found"),
        ({"inferpool": {"resume": [1]}}, "inferpool.resume", "invalid_request"),
    ],
)
async def test_refused_by_name(
    runner: asyncio.Runner, rig: Rig, more: dict[str, Any], param: str, code: str
) -> None:
    error = await rig.refused(PATH, FAKE | more)
    assert (error["param"], error["code"]) == (param, code)


async def test_known_no_ops_are_taken(runner: asyncio.Runner, rig: Rig) -> None:
    more = {"echo": False, "suffix": None, "best_of": 1, "n": 1, "logprobs": None, "user": "u"}
    assert (await rig.post(PATH, FAKE | more)).status_code == 200


async def test_a_real_model_continues_a_prompt(runner: asyncio.Runner, llama: Rig) -> None:
    before = llama.charged(), llama.spent()
    answer = await llama.post(
        PATH,
        {
            "model": "smollm2-135m-instruct",
            "prompt": "The capital of France is",
            "max_tokens": 8,
            "temperature": 0,
        },
    )
    body = answer.json()
    assert "Paris" in body["choices"][0]["text"], body
    assert body["usage"]["prompt_tokens"] == 5
    check_money(llama, llama.services[0][0], receipt_of(answer), before)
