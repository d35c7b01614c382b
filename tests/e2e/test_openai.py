"""openai-python, as its users run it, against the gateway of a real pool."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import orjson
import pytest
from poolkit import CHAT, LONG_STORY, Running, until

from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import BODY_CHAT_MAX
from inferpool.protocol.receipt import Outcome

pytestmark = pytest.mark.timeout(120)

HELLO: list[Any] = [{"role": "user", "content": "Say hello to the harbour master."}]


class Wire:
    """What an SDK really sent: requests are counted, so that silent retries show."""

    def __init__(self) -> None:
        self.sent = 0
        self.answers: list[Any] = []

    def client(self, pool: Running, **options: Any) -> openai.OpenAI:
        hooks = {"request": [self._request], "response": [self._response]}
        http = openai.DefaultHttpxClient(event_hooks=hooks)
        return pool.openai(http_client=http, **options)

    def _request(self, request: Any) -> None:
        self.sent += 1

    def _response(self, response: Any) -> None:
        self.answers.append(response)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": CHAT, "messages": HELLO} | options)


def check_stream(pool: Running, chunks: list[Any], *, usage: bool) -> str:
    """Every promise about a stream's chunks; returns the text."""
    if usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finishes[:-1] == [None] * (len(chunks) - 1)
    assert finishes[-1] in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {CHAT}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    proofs = [getattr(chunk, "inferpool", None) for chunk in chunks]
    assert proofs[:-1] == [None] * (len(chunks) - 1), "only the last chunk carries the proof"
    receipt = pool.checked(proofs[-1])
    assert receipt.outcome is Outcome.COMPLETE
    assert proofs[-1]["cost_pico_usd"] == receipt.charge_pico_usd > 0
    if usage:
        found = last.usage
        assert (found.prompt_tokens, found.completion_tokens) == (
            receipt.prompt_units,
            receipt.output_units,
        )
        assert found.total_tokens == receipt.prompt_units + receipt.output_units
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize("usage", [False, True])
def test_stream_of_the_sync_client(pool: Running, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with pool.openai() as client:
        chunks = list(ask(client, stream=True, max_tokens=24, **options))
    assert check_stream(pool, chunks, usage=usage)


def test_whole_answer_of_the_sync_client(pool: Running) -> None:
    with pool.openai() as client:
        raw = client.chat.completions.with_raw_response.create(
            model=CHAT, messages=HELLO, max_tokens=24
        )
        answer = raw.parse()
    assert answer.object == "chat.completion"
    assert [choice.message.role for choice in answer.choices] == ["assistant"]
    assert answer.choices[0].message.content
    proof = answer.inferpool  # type: ignore[attr-defined]
    receipt = pool.checked(proof)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == receipt.prompt_units > 0
    assert 0 < answer.usage.completion_tokens == receipt.output_units <= 24
    assert raw.headers["inferpool-cost-pico-usd"] == str(receipt.charge_pico_usd)
    assert raw.headers["x-request-id"] == answer.id.removeprefix("chatcmpl-")
    assert raw.request_id == raw.headers["x-request-id"]


def test_a_receipt_of_another_sum_does_not_verify(pool: Running) -> None:
    """The check above can fail: one pico-USD more, and the signature is no longer the node's."""
    with pool.openai() as client:
        proof = ask(client, max_tokens=2).inferpool
    pool.checked(proof)
    proof["receipt"]["chargePico"] += 1
    with pytest.raises(Refused) as caught:
        pool.checked(proof)
    assert caught.value.code == "bad_signature"


def test_async_client_streams_and_answers_at_once(pool: Running) -> None:
    async def run() -> tuple[list[list[Any]], list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{pool.url()}/v1", api_key=pool.api_key) as client:

            async def stream() -> list[Any]:
                made = await client.chat.completions.create(
                    model=CHAT, messages=HELLO, max_tokens=12, stream=True
                )
                return [chunk async for chunk in made]

            async def whole() -> Any:
                return await client.chat.completions.create(
                    model=CHAT, messages=HELLO, max_tokens=12
                )

            streams = asyncio.gather(*(stream() for _ in range(3)))
            wholes = asyncio.gather(*(whole() for _ in range(3)))
            return await streams, await wholes

    streams, wholes = asyncio.run(run())
    receipts = [pool.checked(answer.inferpool) for answer in wholes]
    for chunks in streams:
        receipts.append(pool.checked(chunks[-1].inferpool))
        assert check_stream(pool, chunks, usage=False)
    assert len({receipt.request_id for receipt in receipts}) == 6
    assert len({receipt.seq for receipt in receipts}) == 6


def test_same_seed_gives_the_same_text(pool: Running) -> None:
    with pool.openai() as client:

        def text(seed: int) -> str:
            answer = ask(client, seed=seed, temperature=1.0, max_tokens=32)
            return str(answer.choices[0].message.content)

        first, again, other = text(7), text(7), text(8)
    assert first == again
    assert first != other, "the seed has an effect"


def test_stop_ends_before_its_text(pool: Running) -> None:
    with pool.openai() as client:
        options: dict[str, Any] = {"seed": 11, "temperature": 0.0, "messages": LONG_STORY}
        full = str(ask(client, max_tokens=40, **options).choices[0].message.content)
        stop = full.split()[6]
        answer = ask(client, max_tokens=40, stop=[stop], **options)
        streamed = list(ask(client, max_tokens=40, stop=stop, stream=True, **options))
    text = answer.choices[0].message.content
    assert text == full[: full.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert check_stream(pool, streamed, usage=False) == text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_is_kept_to_the_token(pool: Running, name: str) -> None:
    with pool.openai() as client:
        answer = ask(client, messages=LONG_STORY, **{name: 9})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 9


def test_models_are_listed_and_found(pool: Running) -> None:
    with pool.openai() as client:
        assert {model.id for model in client.models.list()} == {CHAT, "spam"}
        assert client.models.retrieve(CHAT).id == CHAT
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-99")
    assert caught.value.code == "model_not_found"


# -- errors --------------------------------------------------------------------------------------


def shape(body: Any) -> dict[str, Any]:
    """OpenAI's error object, and nothing beside it."""
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    found: dict[str, Any] = body["error"]
    return found


ERRORS: list[Any] = [
    ({"model": "gpt-99"}, openai.NotFoundError, 404, "model_not_found", "model"),
    ({"messages": []}, openai.BadRequestError, 400, "invalid_request", "messages"),
    ({"max_tokens": -1}, openai.BadRequestError, 400, "invalid_request", "max_tokens"),
    ({"temperature": 2.5}, openai.BadRequestError, 400, "invalid_request", "temperature"),
    (
        {"audio": {"voice": "alloy", "format": "wav"}},
        openai.BadRequestError,
        400,
        "unsupported_parameter",
        "audio",
    ),
    ({"n": 9}, openai.BadRequestError, 400, "invalid_request", "n"),
    (
        {"extra_body": {"mirostat": 2}},
        openai.BadRequestError,
        400,
        "unsupported_parameter",
        "mirostat",
    ),
    ({"max_tokens": 10**6}, openai.BadRequestError, 400, "context_length_exceeded", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("change", "kind", "status", "code", "param"), ERRORS)
def test_mistakes_raise_the_right_class_at_once(
    pool: Running,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    status: int,
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    wire = Wire()
    with wire.client(pool) as client, pytest.raises(kind) as caught:
        ask(client, stream=stream, **change)
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    if param is not None:
        assert error.param == param
    found = shape(error.response.json())
    assert found["type"] == "invalid_request_error"
    assert error.response.headers["x-should-retry"] == "false"
    assert wire.sent == 1, "the SDK did not try again"


def test_wrong_key(pool: Running) -> None:
    wire = Wire()
    with (
        wire.client(pool, api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        ask(client)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    assert shape(caught.value.response.json())["type"] == "authentication_error"
    assert wire.sent == 1


def test_body_over_the_limit(pool: Running) -> None:
    wire = Wire()
    messages = [{"role": "user", "content": "x" * BODY_CHAT_MAX}]
    with wire.client(pool) as client, pytest.raises(openai.APIStatusError) as caught:
        ask(client, messages=messages)
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    assert str(BODY_CHAT_MAX) in shape(caught.value.response.json())["message"]
    assert wire.sent == 1


@pytest.mark.parametrize("body", [b"{", b"", b"[1]", b'{"model": "\xff"}', b"null"])
def test_malformed_json(pool: Running, body: bytes) -> None:
    url = f"{pool.url()}/v1/chat/completions"
    answer = httpx.post(url, content=body, headers=pool.headers)
    assert answer.status_code == 400
    assert shape(answer.json())["code"] == "invalid_json"


def test_unknown_keys_and_paths(pool: Running) -> None:
    """Without any key a caller of this pool may pay by x402; see `test_x402.py`."""
    url = f"{pool.url()}/v1/chat/completions"
    answer = httpx.post(url, content=b"{}", headers={"Authorization": "Bearer no-such-key"})
    assert (answer.status_code, shape(answer.json())["code"]) == (401, "invalid_api_key")
    answer = httpx.get(url)
    assert (answer.status_code, shape(answer.json())["code"]) == (405, "method_not_allowed")
    answer = httpx.post(f"{pool.url()}/v1/no-such-path", content=b"{}", headers=pool.headers)
    assert (answer.status_code, shape(answer.json())["code"]) == (404, "not_found")


def test_the_pool_is_still_up_and_owes_nothing(pool: Running) -> None:
    """After every mistake above: same processes, a good answer, no money held."""
    assert pool.pool.running.keys() == {"chain", "node", "gateway"}
    assert all(running.process.poll() is None for running in pool.pool.running.values())
    assert httpx.get(f"{pool.url()}/health").status_code == 200
    assert pool.chat().status_code == 200

    def settled() -> bool:
        status = pool.status()
        return not any(account["held_pico_usd"] for account in status["accounts"]) and not any(
            channel["held_base_units"] or channel["unresolved_base_units"]
            for channel in status["channels"]
        )

    until("nothing is held any more", settled)


def test_a_client_that_leaves_pays_for_what_was_sent(pool: Running) -> None:
    with pool.openai() as client:
        stream = ask(client, messages=LONG_STORY, max_tokens=1000, stream=True)
        for number, _ in enumerate(stream):
            if number == 5:
                break
        request_id = str(stream.response.headers["x-request-id"])
        stream.close()

    def look() -> dict[str, Any] | None:
        found = [
            item
            for item in pool.status()["attempts"]
            if item["client_request_id"] == request_id and item["state"] == "settled"
        ]
        return found[0] if found else None

    attempt = until("the cancelled answer's receipt is booked", look)
    receipt = pool.checked(attempt["proof"])
    assert receipt.outcome is Outcome.CANCELLED
    assert 5 <= receipt.output_units < 500
    assert orjson.dumps(pool.status())
