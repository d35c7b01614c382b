"""Details of the wire that broke clients elsewhere: each of them as a test.

Others of them are tested where they belong: usage chunks in `tests/e2e/test_openai.py`, base64
vectors in `tests/node_api/test_embeddings.py` and by openai-node in `tests/clients`, answers that
fail after text was sent in `test_failover.py`, what pages may read in `test_pages.py`.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from inferpool.gateway.answers import _TEXT, _around
from inferpool.protocol import answers
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.errors import BadRequest, RateLimited, Unavailable
from inferpool.protocol.forms import CHAT as CHAT_FORM
from inferpool.protocol.forms import COMPLETION, Form, head
from inferpool.transport.asgi import error_headers
from tests.gateway.parts import CHAT, KEY_HEADER, Fake, pool

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake-chat"}


def events(*values: Any) -> list[bytes]:
    return [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]


@pytest.mark.parametrize("usage", [False, True])
async def test_empty_choices_come_with_usage_alone_and_only_where_it_was_asked_for(
    usage: bool,
) -> None:
    async with pool() as made:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        answer = await made.chat(stream=True, **options)
        chunks = [event for event in answer.events if isinstance(event, dict)]
        without = [chunk for chunk in chunks if not chunk["choices"]]
        assert without == (chunks[-1:] if usage else [])
        assert all(("usage" in chunk) is (chunk in without) for chunk in chunks)
        assert all("delta" in c["choices"][0] for c in chunks if c["choices"])


def test_dimensions_that_a_model_does_not_give_are_refused_by_name() -> None:
    body = {"model": "m", "input": "x", "dimensions": 64}
    with pytest.raises(BadRequest) as refused:
        EmbeddingsRequest.parse(json.dumps(body).encode())
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "dimensions")


async def test_one_shape_of_error_for_whatever_happens() -> None:
    """The client's fault, an unknown key, a budget, an upstream's failure: told apart by status,
    code and type, and never by words."""
    async with pool(limit_pico_usd=0) as made:
        poor = await made.chat()
    async with pool() as made:
        made.nodes[0].engine.fail_after = 0
        failed = await made.chat()
        long = await made.chat(max_tokens=100_000)
        unknown = await made.send("POST", CHAT, {}, [])
        missing = await made.chat(model="nobody-has-it")
    found = {
        (answer.status, answer.code, answer.json["error"]["type"])
        for answer in (poor, failed, long, unknown, missing)
    }
    assert found == {
        (402, "budget_exceeded", "insufficient_quota"),
        (502, "engine_failed", "server_error"),
        (400, "context_length_exceeded", "invalid_request_error"),
        (401, "invalid_api_key", "authentication_error"),
        (404, "model_not_found", "invalid_request_error"),
    }
    for answer in (poor, long, unknown, missing):
        assert answer.headers[b"x-should-retry"] == b"false"
        assert b"retry-after" not in answer.headers
    assert failed.headers[b"retry-after"] == b"1"
    assert b"x-should-retry" not in failed.headers


@pytest.mark.parametrize("wanted", [None, 0, 1, 59, 60, 61, 10**9])
@pytest.mark.parametrize("kind", [Unavailable, RateLimited])
def test_nobody_is_told_to_wait_for_longer_than_a_minute(
    kind: type[Unavailable] | type[RateLimited], wanted: int | None
) -> None:
    """In whole seconds, which is all that some SDKs read."""
    value = dict(error_headers(kind("busy", retry_after_s=wanted)))[b"retry-after"]
    assert value.isdigit()
    assert 1 <= int(value) <= 60


async def test_an_answer_without_choices_is_no_answer_and_is_asked_for_elsewhere() -> None:
    """A node says 200, and then nothing that is an answer: the next one serves, and is paid."""
    for nothing in (events({**CHUNK, "choices": []}), events({**CHUNK, "choices": None}), []):
        async with pool(2) as made:
            first = made.known[0].url

            def instead(method: str, path: str, said: list[bytes] = nothing) -> Fake | None:
                return Fake(said) if path == CHAT else None

            made.liars[first].instead = instead
            made.known[1].blocked_until_ms = 2**60  # so that the other one is asked first
            answer = await made.chat()
            assert answer.status == 200
            assert answer.proof["legs"] == 2
            assert CHAT in made.liars[first].asked
            assert made.account.spent_pico_usd == answer.proof["cost_pico_usd"] == made.earned()


async def test_the_fingerprint_is_the_class_and_the_seed_repeats_the_text() -> None:
    async with pool() as made:
        bodies = [(await made.chat(seed=seed)).json for seed in (7, 7, 8)]
        texts = [body["choices"][0]["message"]["content"] for body in bodies]
        assert texts[0] == texts[1] != texts[2]
        (facts,) = [
            item["inferpool"]
            for item in (await made.send("GET", "/v1/models", pairs=[])).json["data"]
            if item["id"] == "fake-chat"
        ]
        assert {body["system_fingerprint"] for body in bodies} == {
            answers.fingerprint(name) for name in facts["classes"]
        }


async def test_models_say_what_a_client_has_to_know_before_it_asks() -> None:
    async with pool(2) as made:
        facts = (await made.send("GET", "/v1/models/fake-chat", pairs=[])).json["inferpool"]
    assert facts["context"] == 4096
    assert facts["default_max_output"] == 64
    assert facts["price_in_pico_usd_per_unit"] == dict.fromkeys(
        ("min", "p50", "p90", "max"), 150_000
    )
    assert (facts["unit"], facts["nodes"], len(facts["classes"])) == ("token", 2, 1)


async def test_tensor_clients_send_query_keys_of_their_own() -> None:
    async with pool() as made:
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
        path = "/v2/models/fake-tensor/infer?fake-tensor_count=1"
        answer = await made.send("POST", path, {"inputs": [tensor]})
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [10.0])


async def test_every_answer_has_an_id_and_a_failed_one_can_be_explained() -> None:
    async with pool() as made:
        good = await made.chat()
        made.nodes[0].engine.fail_after = 0
        bad = await made.chat()
        assert bad.status == 502
        ids = [answer.headers[b"x-request-id"].decode() for answer in (good, bad)]
        assert len(set(ids)) == 2
        for found in ids:
            trace = await made.send("GET", f"/inferpool/routes/{found}", pairs=[KEY_HEADER])
            assert trace.status == 200


@pytest.mark.parametrize("form", [CHAT_FORM, COMPLETION])
@pytest.mark.parametrize("model", ["a-model", _TEXT])
def test_a_chunk_is_the_same_bytes_by_either_way(form: Form, model: str) -> None:
    """Text is put between what all chunks have in common; a model of an odd name is not hurt."""
    made = {**head(form, "req_1", model, 7), "system_fingerprint": "fp_0123456789"}
    around = _around(form, made)
    assert (around is None) is (model == _TEXT)
    for text in ("plain", 'quoted " and \\', "line\nend", "é ☃ \U0001f600", ""):
        if around is not None:
            expected = answers.event(form.piece(made, text, None))
            assert around[0] + orjson.dumps(text) + around[1] == expected
