"""Other servers as they misbehave: scripted answers for the adapters by URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from inferpool.config import NodeConfig
from inferpool.daemon.engines import load_manifest, upstream_of
from inferpool.daemon.node import served
from inferpool.engines.base import Progress, Sampling, Tensor, TextCall, TextChunk
from inferpool.engines.oip import OipEngine
from inferpool.engines.openai import OpenAiEngine
from inferpool.protocol.errors import BadRequest, InferpoolError, Refused, Unavailable
from inferpool.transport.asgi import HttpRequest, Receive, Scope, Send
from inferpool.transport.memory import MemoryTransport

CALL = TextCall(({"role": "user", "content": "hi"},), None, 6, Sampling(seed=1, temperature=0.5))
ROW = Tensor("x", "FP32", (1, 1), b"\0\0\x80\x3f")


class Server:
    """Answers each path with what it was given: (status, body) or a list of SSE events."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope, receive, send)
        body = await request.body(1 << 20)
        if body.startswith(b"{"):
            self.asked.append(orjson.loads(body))
        answer = self.answers[request.path.rsplit("/", 1)[-1]]
        if isinstance(answer, tuple):
            await request.answer_json(answer[1], answer[0])
            return
        await request.start([(b"content-type", b"text/event-stream")])
        for event in answer:
            data = event if isinstance(event, bytes) else orjson.dumps(event)
            await request.send(b"data: " + data + b"\n\n")
        await request.end()


def models(owner: str = "somebody") -> tuple[int, object]:
    return 200, {"data": [{"id": "m", "owned_by": owner}]}


def delta(text: str | None, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> dict[str, object]:
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }


async def run(
    events: Any, call: TextCall = CALL, owner: str = "somebody"
) -> tuple[list[TextChunk], Server]:
    server = Server(models=models(owner), completions=events)
    engine = OpenAiEngine("http://u.test/v1", "m", "Q4", transport=MemoryTransport(server))
    await engine.start()
    try:
        return [chunk async for chunk in engine.generate(call, Progress())], server
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("tail", "units"),
    [
        ([usage(5, 4)], (5, 4)),  # the server's count
        ([usage(5, 99)], (5, 6)),  # never more than was asked for
        ([usage(5, 1)], (5, 2)),  # never less than what came
        ([], (0, 2)),  # without usage: the chunks
    ],
)
async def test_units(tail: list[object], units: tuple[int, int]) -> None:
    role: dict[str, object] = {"choices": [{"delta": {"role": "assistant"}}]}
    events = [role, delta("a"), delta(""), delta("b"), delta(None, "stop"), *tail, b"[DONE]"]
    chunks, _ = await run(events)
    assert "".join(chunk.text for chunk in chunks) == "ab"
    assert not any(chunk.ids for chunk in chunks)
    last = chunks[-1]
    assert (last.prompt_units, last.output_units, last.finish_reason) == (*units, "stop")
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None, None]


@pytest.mark.parametrize(
    "events",
    [
        [delta("a")],  # cut
        [delta("a"), b"[DONE]"],  # no finish reason
        [delta("a"), {"error": {"message": "out of memory"}}],
        [delta("a"), b"not json"],
        [{"choices": [1, 2]}],
        [{"choices": "x"}],
        [delta("a", "stop"), {"choices": [], "usage": {"prompt_tokens": "?"}}],
        [b"[]"],
    ],
)
async def test_streams_that_break_are_failures(events: Sequence[object]) -> None:
    with pytest.raises(Unavailable) as caught:
        await run(events)
    assert caught.value.code == "engine_failed"


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, {"error": {"message": "bad", "code": "x"}}, BadRequest, "invalid_request"),
        (
            400,
            {"error": {"code": "context_length_exceeded"}},
            BadRequest,
            "context_length_exceeded",
        ),
        (400, {"message": "maximum context length is 5"}, BadRequest, "context_length_exceeded"),
        (401, {"error": "no"}, Unavailable, "engine_failed"),
        (429, {"error": {"message": "slow down"}}, Unavailable, "engine_unavailable"),
        (503, [], Unavailable, "engine_unavailable"),
        (500, None, Unavailable, "engine_failed"),
    ],
)
async def test_refusals(status: int, body: object, kind: type[InferpoolError], code: str) -> None:
    with pytest.raises(kind) as caught:
        await run((status, body))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("llamacpp", {"top_k", "min_p", "repeat_penalty"}),
        ("vllm", {"top_k", "min_p", "repetition_penalty"}),
        ("library", set()),
    ],
)
async def test_sampler_numbers_go_where_they_are_known(owner: str, names: set[str]) -> None:
    _, server = await run([delta("a", "stop")], owner=owner)
    sent = server.asked[-1]
    assert {"temperature", "top_p", "seed", "presence_penalty"} <= sent.keys()
    assert sent.keys() & {"top_k", "min_p", "repeat_penalty", "repetition_penalty"} == names
    assert (sent["model"], sent["stream_options"]) == ("m", {"include_usage": True})


@pytest.mark.parametrize("name", ["top_k", "min_p", "repeat_penalty"])
async def test_what_a_server_would_drop_is_refused(name: str) -> None:
    asked: dict[str, Any] = {name: 2}
    call = TextCall(None, "hi", 6, Sampling(seed=1, **asked))
    with pytest.raises(BadRequest) as caught:
        await run([delta("a", "stop")], call)
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("body", [{"data": 5}, {"data": [{}]}, [], {"data": []}])
async def test_lists_of_models_that_are_none(body: object) -> None:
    pipe = MemoryTransport(Server(models=(200, body)))
    engine = OpenAiEngine("http://u.test", "m", "q", transport=pipe)
    with pytest.raises(Unavailable):
        await engine.start()
    assert not engine.ready()


# -- tensors ---------------------------------------------------------------------------------------

SPEC = {"name": "x", "datatype": "FP32", "shape": [-1, 1]}
META = {"name": "m", "inputs": [SPEC], "outputs": [SPEC | {"name": "y"}]}
GOOD = {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [2.0]}


async def infer(answer: tuple[int, object], meta: object = META) -> list[Tensor]:
    answers = {"v2": (200, {"name": "triton", "version": "2"}), "m": (200, meta), "infer": answer}
    engine = OipEngine("http://u.test", "m", "f32", transport=MemoryTransport(Server(**answers)))
    await engine.start()
    try:
        assert engine.engine_class == "oip@triton-2/f32/remote"
        return await engine.infer([ROW], 1)
    finally:
        await engine.close()


async def test_json_where_there_is_no_binary_extension() -> None:
    (found,) = await infer((200, {"outputs": [GOOD]}))
    assert found == Tensor("y", "FP32", (1, 1), b"\0\0\0\x40")


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [GOOD | {"name": "z"}],
        [GOOD | {"datatype": "FP64"}],
        [GOOD | {"datatype": "BF16"}],
        [GOOD | {"shape": [2, 1]}],
        [GOOD | {"shape": [1, 1, 1]}],
        [GOOD | {"data": ["text"]}],
        [GOOD | {"data": [[[[]]]]}],
        [GOOD | {"parameters": {"binary_data_size": 4}}],
        5,
        None,
    ],
)
async def test_answers_that_are_not_what_the_model_declares(outputs: object) -> None:
    with pytest.raises(Unavailable) as caught:
        await infer((200, {"outputs": outputs}))
    assert caught.value.code == "engine_failed"


async def test_the_servers_own_errors() -> None:
    with pytest.raises(BadRequest, match="too hot"):
        await infer((400, {"error": "too hot"}))
    with pytest.raises(Unavailable):
        await infer((500, {"error": "crash"}))


@pytest.mark.parametrize(
    "meta", [{}, {"inputs": [], "outputs": []}, META | {"inputs": [SPEC | {"datatype": "BF16"}]}]
)
async def test_models_that_cannot_be_used(meta: object) -> None:
    with pytest.raises(Unavailable) as caught:
        await infer((200, {}), meta)
    assert caught.value.code == "engine_unavailable"


# -- configuration ---------------------------------------------------------------------------------


def test_upstreams_of_the_configuration() -> None:
    config = NodeConfig(
        upstreams=("a http://127.0.0.1:8000", "b https://h.test/v1 org/B-7"),
        upstream_keys=("b B_KEY",),
    )
    assert upstream_of("a", config, {}) == ("http://127.0.0.1:8000", "a", "")
    found = upstream_of("b", config, {"B_KEY": "secret"})
    assert found == ("https://h.test/v1", "org/B-7", "secret")
    for name in ("b", "c"):
        with pytest.raises(Refused) as caught:
            upstream_of(name, config, {})
        assert caught.value.code == "bad_config"


def test_a_folder_of_manifests_that_is_none() -> None:
    with pytest.raises(Refused, match=r"node\.manifests"):
        load_manifest("spam", NodeConfig(manifests="/nowhere/at/all"))
    assert load_manifest("spam", NodeConfig()).name == "spam"


def test_a_model_is_named_once() -> None:
    twice = ("spam", "fake-chat", load_manifest("spam", NodeConfig()).id)
    with pytest.raises(Refused, match="spam twice"):
        served(NodeConfig(models=twice))
    assert [item.name for item in served(NodeConfig(models=twice[:2]))] == ["spam", "fake-chat"]
