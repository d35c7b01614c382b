"""`POST /v1/embeddings` through a gateway with MiniLM behind it."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from rig import Rig, check_money, hosted, receipt_of

PATH = "/v1/embeddings"
MODEL = "all-minilm-l6-v2"
MEAL, SUPPER = "A man is eating food.", "Someone eats a meal."
MARKET = "The stock market fell sharply after the report."

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner) -> Iterator[Rig]:
    async def start() -> Rig:
        return await Rig([[await hosted(MODEL)]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_related_sentences_are_near(runner: asyncio.Runner, rig: Rig) -> None:
    made = await rig.openai().embeddings.create(model=MODEL, input=[MEAL, SUPPER, MARKET])
    meal, supper, market = (item.embedding for item in made.data)
    assert [item.index for item in made.data] == [0, 1, 2]
    assert all(abs(cosine(v, v) - 1) < 1e-5 for v in (meal, supper, market))
    assert cosine(meal, supper) > 0.5 > 0.2 > cosine(meal, market)


async def test_money_is_tokens_times_price(runner: asyncio.Runner, rig: Rig) -> None:
    before = rig.charged(), rig.spent()
    answer = await rig.post(PATH, {"model": MODEL, "input": "hello world"})
    assert answer.json()["usage"] == {"prompt_tokens": 4, "total_tokens": 4}  # with both marks
    signed = receipt_of(answer)
    assert (signed.receipt.prompt_units, signed.receipt.output_units) == (4, 0)
    assert check_money(rig, rig.services[0][0], signed, before) == 4 * 20_000


async def test_both_encodings_hold_the_same_numbers(runner: asyncio.Runner, rig: Rig) -> None:
    body = {"model": MODEL, "input": MEAL}
    floats = (await rig.post(PATH, body)).json()["data"][0]["embedding"]
    packed = (await rig.post(PATH, body | {"encoding_format": "base64"})).json()
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert len(floats) == 384
    assert list(struct.unpack("<384f", data)) == floats


async def test_a_vector_does_not_depend_on_its_neighbours(runner: asyncio.Runner, rig: Rig) -> None:
    client = rig.openai()
    alone = (await client.embeddings.create(model=MODEL, input=MEAL)).data[0].embedding
    among = await client.embeddings.create(model=MODEL, input=[MARKET, "x " * 200, MEAL])
    assert among.data[2].embedding == alone


async def test_texts_outside_english(runner: asyncio.Runner, rig: Rig) -> None:
    """The byte bound holds for what the tokenizer makes of any text."""
    texts = ["Ünïcödé", "漢字かな", "👩‍👩‍👧", "\u0344\u1d160", "a\u0000b", "[SEP][CLS]"]
    for text in texts:
        answer = await rig.post(PATH, {"model": MODEL, "input": text})
        assert answer.status_code == 200, text
        vector = answer.json()["data"][0]["embedding"]
        assert all(math.isfinite(number) for number in vector)
        assert receipt_of(answer).receipt.prompt_units <= len(text.encode()) + 2


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"dimensions": 128}, "dimensions", "unsupported_parameter"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_request"),
        ({"input": [1, 2, 3]}, "input", "unsupported_parameter"),
        ({"input": [[1, 2], [3]]}, "input", "unsupported_parameter"),
        ({"input": []}, "input", "invalid_request"),
        ({"input": ""}, "input", "invalid_request"),
        ({"input": ["a", ""]}, "input", "invalid_request"),
        ({"input": ["a"] * 513}, "input", "invalid_request"),
        ({"input": ["a"] * 2049}, "input", "invalid_request"),
        ({"input": "word " * 600}, "input", "context_length_exceeded"),
        ({"truncate": True}, "truncate", "unsupported_parameter"),
        ({"model": "spam"}, "model", "model_not_found"),
    ],
)
async def test_refused_by_name(
    runner: asyncio.Runner, rig: Rig, more: dict[str, Any], param: str, code: str
) -> None:
    error = await rig.refused(PATH, {"model": MODEL, "input": "text"} | more)
    assert (error["param"], error["code"]) == (param, code)


async def test_a_chat_route_does_not_take_it(runner: asyncio.Runner, rig: Rig) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert (await rig.refused("/v1/chat/completions", body))["code"] == "model_not_found"
