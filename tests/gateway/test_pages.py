"""What machines and web pages read of a gateway: its document, its methods, its headers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferpool.gateway import openapi
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.images import ImagesRequest
from tests.gateway.parts import CHAT, INFER, KEY_HEADER, pool

ORIGIN = (b"origin", b"https://page.example")
PREFLIGHT = [
    ORIGIN,
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"authorization,content-type,x-stainless-lang"),
]
DOCUMENT = json.loads(openapi.document())
LEAST: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (
        ChatRequest,
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ),
    "/v1/completions": (CompletionRequest, {"model": "m", "prompt": "x"}),
    "/v1/embeddings": (EmbeddingsRequest, {"model": "m", "input": "x"}),
    "/v1/images/generations": (ImagesRequest, {"model": "m", "prompt": "x"}),
}


async def test_the_document_is_open_and_names_every_public_route() -> None:
    async with pool() as made:
        answer = await made.send("GET", "/openapi.json", pairs=[])
    assert answer.status == 200
    assert answer.json == DOCUMENT
    assert answer.json["openapi"] == "3.1.0"
    assert LEAST.keys() < answer.json["paths"].keys()


@pytest.mark.parametrize("path", LEAST)
def test_what_the_document_allows_at_least_is_taken(path: str) -> None:
    """Every parameter with the value that its schema lists or that asks for nothing."""
    parser, least = LEAST[path]
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) <= least.keys()
    parser.parse(json.dumps(least).encode())
    for name, known in schema["properties"].items():
        if name in least:
            continue
        values = known.get("enum", [None])
        for value in values:
            parser.parse(json.dumps({**least, name: value}).encode())


async def test_a_path_names_its_methods() -> None:
    async with pool() as made:
        for method, path, allow in (
            ("GET", CHAT, b"POST"),
            ("DELETE", "/v1/models", b"GET"),
            ("DELETE", "/v1/models/fake-chat", b"GET"),
            ("GET", INFER, b"POST"),
            ("POST", "/v2/models/fake-tensor", b"GET"),
            ("PUT", "/health", b"GET"),
        ):
            answer = await made.send(method, path)
            assert (answer.status, answer.code) == (405, "method_not_allowed"), path
            assert answer.headers[b"allow"] == allow
        answer = await made.send("GET", "/v1/nothing")
        assert (answer.status, answer.code) == (404, "not_found")
        assert b"allow" not in answer.headers


async def test_a_page_may_ask_and_read_what_sdks_need() -> None:
    async with pool() as made:
        leave = await made.send("OPTIONS", CHAT, pairs=PREFLIGHT)
        assert leave.status == 200
        assert leave.headers[b"access-control-allow-origin"] == b"*"
        assert leave.headers[b"access-control-allow-methods"] == b"GET, POST"
        assert leave.headers[b"access-control-allow-headers"] == PREFLIGHT[2][1]
        assert b"access-control-allow-credentials" not in leave.headers
        body = {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 2,
        }
        for pairs, status in (([KEY_HEADER, ORIGIN], 200), ([ORIGIN], 401)):
            for stream in (False, True):
                answer = await made.send("POST", CHAT, {**body, "stream": stream}, pairs)
                assert answer.status == status
                assert answer.headers[b"access-control-allow-origin"] == b"*"
                readable = answer.headers[b"access-control-expose-headers"].split(b", ")
                for name in (b"retry-after", b"x-request-id", b"inferpool-cost-pico-usd"):
                    assert name in readable
                assert b"x-ratelimit-remaining-tokens" in readable


async def test_no_page_reads_what_is_the_operators() -> None:
    async with pool() as made:
        for path in ("/inferpool/status", "/inferpool/offers"):
            leave = await made.send("OPTIONS", path, pairs=PREFLIGHT)
            assert leave.status == 405
            assert b"access-control-allow-origin" not in leave.headers
        plain = await made.chat()
        assert b"access-control-allow-origin" not in plain.headers, "nobody asked"
