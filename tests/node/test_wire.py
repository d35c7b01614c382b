"""Each bad input of the wire: its status, code and the API's error shape; the node lives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferpool.protocol.limits import BODY_CHAT_MAX
from tests.node.parts import CHAT, INFER, Pairs, World, chat_body, tensor, tensor_body, world

JSON: Pairs = [(b"content-type", b"application/json")]

CHATS: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "invalid_json"),
    ("empty body", b"", 400, "invalid_json"),
    ("no object", b"[]", 400, "invalid_json"),
    ("not UTF-8", b'{"model": "\xff"}', 400, "invalid_json"),
    ("deep", b"[" * 100_000, 400, "invalid_json"),
    ("over the limit", b" " * (BODY_CHAT_MAX + 1), 413, "body_too_large"),
    ("no model", chat_body(model=...), 400, "invalid_request"),
    ("no messages", chat_body(messages=...), 400, "invalid_request"),
    ("empty messages", chat_body(messages=[]), 400, "invalid_request"),
    ("a message without role", chat_body(messages=[{"content": "x"}]), 400, "invalid_request"),
    ("negative max_tokens", chat_body(max_tokens=-1), 400, "invalid_request"),
    ("zero max_tokens", chat_body(max_tokens=0), 400, "invalid_request"),
    ("max_tokens as text", chat_body(max_tokens="10"), 400, "invalid_request"),
    ("max_tokens over the model", chat_body(max_tokens=1025), 400, "context_length_exceeded"),
    ("temperature", chat_body(temperature=3), 400, "invalid_request"),
    ("tools", chat_body(tools=[{"type": "function"}]), 400, "invalid_request"),  # without a name
    ("unknown parameter", chat_body(best_of=4), 400, "unsupported_parameter"),
    ("unknown model", chat_body(model="gpt-9"), 404, "model_not_found"),
    ("a tensor model", chat_body(model="fake-tensor"), 404, "model_not_found"),
]

TENSORS: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "invalid_json"),
    ("no inputs", b"{}", 400, "invalid_tensor"),
    ("no tensors", b'{"inputs": []}', 400, "invalid_tensor"),
    ("another name", tensor_body(tensor(name="y")), 400, "invalid_tensor"),
    ("unknown type", tensor_body(tensor(datatype="FP99")), 400, "invalid_tensor"),
    ("negative shape", tensor_body(tensor(shape=[-2, 4])), 400, "invalid_tensor"),
    ("huge shape", tensor_body(tensor(shape=[2**40, 4])), 400, "invalid_tensor"),
    ("too few data", tensor_body(tensor(data=[1.0] * 7)), 400, "invalid_tensor"),
    ("text for numbers", tensor_body(tensor(data=["a"] * 8)), 400, "invalid_tensor"),
    ("ragged", tensor_body(tensor(data=[[1.0], [2.0, 3.0]])), 400, "invalid_tensor"),
    ("null", tensor_body(tensor(data=[None] * 8)), 400, "invalid_tensor"),
    ("too many rows", tensor_body(tensor(257)), 400, "invalid_tensor"),
    ("no rows", tensor_body(tensor(0)), 400, "*"),
    ("twice the same", tensor_body(tensor(), tensor()), 400, "invalid_tensor"),
    ("binary size too large", tensor_body(
        {"name": "x", "shape": [2, 4], "datatype": "FP32",
         "parameters": {"binary_data_size": 32}}), 400, "invalid_tensor"),
]  # fmt: skip

PATHS: list[tuple[str, str, int, str]] = [
    ("GET", "/", 404, "not_found"),
    ("GET", "/v1/nothing", 404, "not_found"),
    ("GET", CHAT, 405, "method_not_allowed"),
    ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ("POST", "/health", 405, "method_not_allowed"),
    ("GET", INFER, 405, "method_not_allowed"),
    ("POST", "/v2/models/fake-tensor", 405, "method_not_allowed"),
    ("GET", "/v2/models/fake-tensor/metrics", 404, "not_found"),
    ("GET", "/v2/models/none", 404, "model_not_found"),
    ("GET", "/v2/models/none/ready", 404, "model_not_found"),
    ("POST", "/v2/models/none/infer", 404, "model_not_found"),
    ("GET", "/inferpool/receipts", 400, "invalid_request"),
    ("GET", "/inferpool/receipts?channel=0x12&after=0", 400, "invalid_request"),
    ("GET", "/inferpool/receipts?channel=0x" + "11" * 32 + "&after=-1", 400, "invalid_request"),
    ("GET", "/inferpool/receipts?channel=0x" + "11" * 32 + "&after=x", 400, "invalid_request"),
    ("GET", "/inferpool/evidence/0x12", 400, "invalid_request"),
    ("GET", "/inferpool/evidence/", 400, "invalid_request"),
]


async def alive(made: World) -> None:
    """A good request right after succeeds, and nothing is left held."""
    payer = await made.payer()
    assert (await payer.infer()).status == 200
    assert (await payer.chat()).status == 200
    assert all(not channel.held for channel in made.node.node.ledger.channels.values())
    assert made.node.node.services.free_slots == 12


@pytest.mark.parametrize(
    ("body", "status", "code"), [item[1:] for item in CHATS], ids=[item[0] for item in CHATS]
)
async def test_a_bad_chat(body: bytes, status: int, code: str) -> None:
    async with world() as made:
        answer = await made.send("POST", CHAT, JSON, body)
        assert (answer.status, answer.code) == (status, code)
        assert answer.json["error"]["type"] == "invalid_request_error"
        assert answer.headers[b"x-should-retry"] == b"false"
        await alive(made)


@pytest.mark.parametrize(
    ("body", "status", "code"), [item[1:] for item in TENSORS], ids=[item[0] for item in TENSORS]
)
async def test_a_bad_tensor(body: bytes, status: int, code: str) -> None:
    async with world() as made:
        answer = await made.send("POST", INFER, JSON, body)
        assert answer.status == status
        assert isinstance(answer.json["error"], str)
        assert answer.code == code or code == "*"
        await alive(made)


@pytest.mark.parametrize(
    "changes",
    [{"datatype": "FP64"}, {"shape": [8]}, {"shape": [1, 8]}, {"shape": [2, 2, 2]}],
    ids=str,
)
async def test_a_tensor_that_the_model_does_not_take_costs_nothing(changes: dict[str, Any]) -> None:
    """Its form is right, so that it is priced; the engine refuses it, and nothing is charged."""
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        body = tensor_body(tensor(**changes))
        from inferpool.protocol.oip import InferRequest

        job = InferRequest.parse("fake-tensor", body, None).job
        answer = await made.send("POST", INFER, payer.paid(job, request_id), body)
        assert (answer.status, answer.code) == (400, "invalid_tensor")
        assert b"inferpool-receipt" not in answer.headers
        assert (await payer.receipts()).json["receipts"] == []
        await alive(made)


async def test_an_unknown_output_is_refused_before_any_work() -> None:
    async with world() as made:
        answer = await made.send(
            "POST", INFER, JSON, tensor_body(tensor(), outputs=[{"name": "mean"}])
        )
        assert (answer.status, answer.code) == (400, "invalid_tensor")
        assert "sum" in answer.json["error"]


@pytest.mark.parametrize(("method", "path", "status", "code"), PATHS)
async def test_a_wrong_method_or_path(method: str, path: str, status: int, code: str) -> None:
    async with world() as made:
        body = tensor_body() if method == "POST" else b""
        answer = await made.send(method, path, JSON, body)
        assert (answer.status, answer.code) == (status, code)
        await alive(made)


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([(b"inferpool-version", b"2")], "unsupported_version"),
        ([(b"inferpool-version", b"1")], "invalid_request"),
        ([(b"inferpool-version", b"1"), (b"inferpool-request-id", b"0x12")], "invalid_request"),
        ([(b"inferpool-version", b"1"), (b"inferpool-request-id", b"\xff")], "invalid_request"),
        ([(b"inferpool-version", b"1"), (b"inferpool-request-id", b"0x" + b"1" * 64),
          (b"inferpool-offer", b"\xff")], "invalid_request"),
        ([(b"content-length", b"-5")], "body_too_large"),
    ],
    ids=["version 2", "no id", "short id", "id not ASCII", "offer not ASCII", "length"],
)  # fmt: skip
async def test_a_bad_header(pairs: Pairs, code: str) -> None:
    async with world() as made:
        answer = await made.send("POST", CHAT, pairs, chat_body())
        assert answer.code == code
        assert answer.status in (400, 413)
        await alive(made)


async def test_what_anyone_may_read() -> None:
    async with world() as made:
        models = (await made.send("GET", "/v1/models")).json
        assert [item["id"] for item in models["data"]] == ["fake-chat", "fake-tensor"]
        assert (await made.send("GET", "/health")).json == {"ready": True}
        assert (await made.send("GET", "/v2/health/live")).status == 200
        assert (await made.send("GET", "/v2/models/fake-tensor/ready")).status == 200
        metadata = (await made.send("GET", "/v2/models/fake-tensor")).json
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert (await made.send("GET", "/v2")).json["extensions"] == ["binary_tensor_data"]


async def test_control_needs_the_token() -> None:
    async with world() as made:
        for pairs in ([], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"")]):
            answer = await made.send("POST", "/inferpool/control/claim", pairs)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
        answer = await made.send(
            "POST", "/inferpool/control/claim", [(b"authorization", b"Bearer control")]
        )
        assert answer.json["claimed_base_units"] == "0"


async def test_an_engine_that_is_down_is_503_and_comes_back() -> None:
    async with world() as made:
        payer = await made.payer()
        await made.node.engine.close()
        answer = await payer.chat()
        assert (answer.status, answer.code) == (503, "engine_unavailable")
        assert int(answer.headers[b"retry-after"]) >= 1
        assert [item["id"] for item in (await made.send("GET", "/v1/models")).json["data"]] == [
            "fake-tensor"
        ]
        await made.node.engine.start()
        await alive(made)


async def test_a_draining_node_takes_no_work() -> None:
    async with world() as made:
        payer = await made.payer()
        made.node.node.draining = True
        answer = await payer.chat()
        assert (answer.status, answer.code) == (503, "shutting_down")
        assert (await made.send("GET", "/health")).status == 503
        assert json.loads(made.node.node.lease().encode())["freeSlots"] == 0
