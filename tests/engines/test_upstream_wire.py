"""Other servers as they misbehave: scripted answers for the adapters by URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from inferpool.config import NodeConfig
from inferpool.daemon.engines import load_manifest, upstream_of, upstream_parameters
from inferpool.daemon.node import served
from inferpool.engines.base import Progress, Sampling, Tensor, TextCall, TextChunk
from inferpool.engines.oip import OipEngine
from inferpool.engines.openai import OpenAiEngine
from inferpool.protocol import parameters
from inferpool.protocol.calls import CallReader, whole_objects
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.errors import BadRequest, InferpoolError, Refused, Unavailable
from inferpool.protocol.logprobs import UNLIKELY, TokenLogprob
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
    events: Any,
    call: TextCall = CALL,
    owner: str = "somebody",
    declared: Sequence[str] = parameters.ALL,
) -> tuple[list[TextChunk], Server]:
    server = Server(models=models(owner), completions=events)
    pipe = MemoryTransport(server)
    engine = OpenAiEngine("http://u.test/v1", "m", "Q4", parameters=declared, transport=pipe)
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


async def test_a_server_that_ignores_the_limit_is_cut() -> None:
    """Else one token's price bought an answer without end."""
    chunks, _ = await run([delta("a")] * 1000)
    assert CALL.max_output == 6
    assert 6 <= len("".join(chunk.text for chunk in chunks)) <= 60
    last = chunks[-1]
    assert (last.output_units, last.finish_reason) == (6, "length")


async def test_an_answer_of_any_kind_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferpool.engines.openai_shape.ANSWER_MAX", 1000)
    with pytest.raises(Unavailable, match="over 1000 characters"):
        await run([delta("a" * 600), delta("a" * 600), delta(None, "stop"), b"[DONE]"])


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


# -- what is asked beyond the common parameters, and what comes back ------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "day": {"type": "string", "format": "date"},
        "size": {"enum": [1, "big"]},
        "parts": {"type": "array", "items": {"type": ["number", "null"]}, "maxItems": 2},
    },
    "required": ["day", "size", "parts"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
LOOSE = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
GOOD_DAY = {"day": "2026-02-28", "size": "big", "parts": [1.5, None]}
TOOL = {
    "name": "add",
    "strict": True,
    "parameters": SCHEMA | {"properties": {"n": {"type": "integer"}}, "required": ["n"]},
}


def asked(**more: object) -> TextCall:
    """The call that a node makes of a client's request."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, **more}
    request = ChatRequest.parse(orjson.dumps(body))
    return TextCall(
        request.plain_messages,
        None,
        50,
        Sampling(seed=1),
        logit_bias=request.logit_bias,
        shape=request.shape,
        top_logprobs=request.top_logprobs,
        conversation=request.messages,
    )


def tool_asked(**more: object) -> TextCall:
    return asked(tools=[{"type": "function", "function": TOOL}], **more)


def calls(*deltas: dict[str, object]) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": list(deltas)}}]}


def piece(index: int, arguments: str, name: str | None = None) -> dict[str, object]:
    return {"index": index, "id": "x", "function": {"name": name, "arguments": arguments}}


ALL_ASKED = {
    "logprobs": asked(logprobs=True, top_logprobs=2),
    "logit_bias": asked(logit_bias={"5": -3}),
    "response_format": asked(response_format=FORM),
    "tools": tool_asked(tool_choice="auto"),
}


@pytest.mark.parametrize("name", ALL_ASKED)
async def test_only_what_the_owner_declares_is_asked_for(name: str) -> None:
    others = [other for other in parameters.ALL if other != name]
    with pytest.raises(BadRequest) as caught:
        await run([delta("a", "stop")], ALL_ASKED[name], declared=others)
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


async def test_it_is_asked_for_in_openais_words() -> None:
    _, server = await run([delta("a", "stop")], ALL_ASKED["logprobs"])
    assert server.asked[-1].items() >= {("logprobs", True), ("top_logprobs", 2)}
    _, server = await run([delta("a", "stop")], asked(logprobs=True), owner="llamacpp")
    assert server.asked[-1]["top_logprobs"] == 1  # of none it tells nothing
    _, server = await run([delta("a", "stop")], ALL_ASKED["logit_bias"])
    assert server.asked[-1]["logit_bias"] == {"5": -3.0}
    _, server = await run(
        [delta(orjson.dumps(GOOD_DAY).decode(), "stop")], asked(response_format=FORM)
    )
    assert server.asked[-1]["response_format"] == FORM
    said = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ]
    _, server = await run([delta("a", "stop")], tool_asked(messages=said))
    sent = server.asked[-1]
    assert sent["tools"] == [{"type": "function", "function": TOOL}]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "tool"]
    assert sent["messages"][1]["tool_calls"][0]["id"] == "c"
    _, server = await run([delta("a", "stop")], asked(messages=said), declared=())
    assert [message["role"] for message in server.asked[-1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]  # as text, for a server without functions


async def said(events: list[object], call: TextCall) -> str:
    chunks, _ = await run(events, call)
    return "".join(chunk.text for chunk in chunks)


async def test_json_that_conforms_passes() -> None:
    whole = orjson.dumps(GOOD_DAY).decode()
    events: list[object] = [delta(whole[:9]), delta(whole[9:]), delta(None, "stop")]
    assert await said(events, asked(response_format=FORM)) == whole
    cut: list[object] = [delta(whole[:9]), delta(None, "length")]
    assert await said(cut, asked(response_format=FORM)) == whole[:9]  # and it says so
    other: list[object] = [delta('{"x": 1}', "stop")]
    assert await said(other, asked(response_format=LOOSE)) == '{"x": 1}'


@pytest.mark.parametrize(
    "wrong",
    [
        "Of course! Here it is:",
        "[]",
        *(
            orjson.dumps(GOOD_DAY | change).decode()
            for change in (
                {"day": "yesterday"},
                {"size": True},
                {"size": "small"},
                {"parts": [1, 2, 3]},
                {"parts": ["1"]},
                {"parts": [True]},
                {"more": 1},
            )
        ),
        '{"day": "2026-02-28", "size": 1}',
    ],
)
async def test_json_that_does_not_is_a_failure(wrong: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await run([delta(wrong, "stop")], asked(response_format=FORM))
    assert caught.value.code == "engine_failed"


async def test_a_cut_answer_is_json_that_was_cut() -> None:
    with pytest.raises(Unavailable):
        await run([delta("Well, the"), delta(None, "length")], asked(response_format=FORM))


async def test_calls_leave_in_their_tags() -> None:
    events = [
        delta("Let me add."),
        calls(piece(0, "", "add")),
        calls(piece(0, '{"n"')),
        calls(piece(0, ": 3}"), piece(1, '{"n":4}', "add")),
        delta(None, "tool_calls"),
        usage(9, 7),
    ]
    chunks, _ = await run(events, tool_asked())
    reader = CallReader()
    text, made = reader.take("".join(chunk.text for chunk in chunks))
    assert (text, reader.ended, chunks[-1].finish_reason) == ("Let me add.", 2, "stop")
    assert [call["function"] for call in whole_objects(made, "c")] == [
        {"name": "add", "arguments": '{"n":3}'},
        {"name": "add", "arguments": '{"n":4}'},
    ]
    assert chunks[-1].output_units == 7
    cut, _ = await run([calls(piece(0, '{"n"', "add")), delta(None, "length")], tool_asked())
    assert (cut[-1].text, cut[-1].finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("events", "more"),
    [
        ([calls(piece(0, "{}", "rm"))], {}),  # no such function
        ([calls(piece(0, "{}", "add"))], {}),  # without its argument
        ([calls(piece(0, '{"n":"3"}', "add"))], {}),
        ([calls(piece(0, '{"n":3', "add"))], {}),
        ([calls(piece(0, "[]", "add"))], {}),
        ([calls(piece(0, '{"n":3}'))], {}),  # without a name
        ([calls(piece(-1, '{"n":3}', "add"))], {}),
        ([calls(piece(9999, '{"n":3}', "add"))], {}),
        ([calls({"index": 0})], {}),
        ([delta("I would rather talk.")], {"tool_choice": "required"}),
        (
            [calls(piece(0, '{"n":3}', "add"), piece(1, '{"n":3}', "add"))],
            {"parallel_tool_calls": False},
        ),
        ([delta("Talk.", "length")], {"tool_choice": "required"}),
        ([delta("<tool"), delta("_call>{}")], {}),  # our own tags, which nobody has checked
    ],
)
async def test_calls_that_make_no_sense_are_failures(
    events: list[object], more: dict[str, object]
) -> None:
    with pytest.raises(Unavailable) as caught:
        await run([delta(None, "stop"), *events], tool_asked(**more))
    assert caught.value.code == "engine_failed"


async def test_a_call_that_nobody_asked_for_is_a_failure() -> None:
    with pytest.raises(Unavailable):
        await run([calls(piece(0, "{}", "add")), delta(None, "stop")])


async def test_log_probabilities_in_either_shape() -> None:
    entry = {
        "token": "a",
        "logprob": -0.5,
        "bytes": None,
        "top_logprobs": [
            {"token": "a", "logprob": 1e-9},
            {"token": "b", "logprob": -1},
            {"token": "c", "logprob": -2},
        ],
    }
    event = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [entry]}}]}
    chunks, _ = await run([event, delta(None, "stop")], asked(logprobs=True, top_logprobs=2))
    assert chunks[0].tokens == (TokenLogprob(b"a", -0.5, ((b"a", 0.0), (b"b", -1.0))),)
    lists = {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [{"a": -1}]}
    event = {"choices": [{"text": "a", "logprobs": lists}]}
    call = TextCall(None, "hi", 6, Sampling(seed=1), top_logprobs=1)
    end = {"choices": [{"text": "", "finish_reason": "stop"}]}
    chunks, server = await run([event, end], call)
    assert chunks[0].tokens == (TokenLogprob(b"a", UNLIKELY, ((b"a", -1.0),)),)
    assert server.asked[-1]["logprobs"] == 1
    for wrong in ({"content": 5}, {"content": [{"token": "a", "logprob": "x"}]}, {"tokens": [1]}):
        event = {"choices": [{"delta": {"content": "a"}, "logprobs": wrong}]}
        with pytest.raises(Unavailable):
            await run([event, delta(None, "stop")], asked(logprobs=True))


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


def test_parameters_of_the_configuration() -> None:
    config = NodeConfig(upstream_parameters=("a tools,logprobs", "b logit_bias", "c n"))
    assert upstream_parameters("a", config) == {"tools", "logprobs"}
    assert upstream_parameters("x", config) == frozenset()
    with pytest.raises(Refused, match="'n' is none of"):
        upstream_parameters("c", config)


def test_a_folder_of_manifests_that_is_none() -> None:
    with pytest.raises(Refused, match=r"node\.manifests"):
        load_manifest("spam", NodeConfig(manifests="/nowhere/at/all"))
    assert load_manifest("spam", NodeConfig()).name == "spam"


def test_a_model_is_named_once() -> None:
    twice = ("spam", "fake-chat", load_manifest("spam", NodeConfig()).id)
    with pytest.raises(Refused, match="spam twice"):
        served(NodeConfig(models=twice))
    assert [item.name for item in served(NodeConfig(models=twice[:2]))] == ["spam", "fake-chat"]
