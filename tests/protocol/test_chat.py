"""Chat requests: each parameter served, refused or known to do nothing; hostile bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol.chat import NO_OPS, SAMPLERS, ChatRequest
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Task
from inferpool.protocol.limits import BODY_CHAT_MAX, MESSAGES_MAX, RESUME_MAX
from inferpool.protocol.logprobs import read_chat
from tests.protocol import junk

LEAST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXT_PART = {"type": "text"}
FULL: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": [TEXT_PART | {"text": "be "}, TEXT_PART | {"text": "é"}]},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": []},
    ],
    "max_tokens": 5,
    "stop": ["\n"],
    "seed": 3,
    "temperature": 0.5,
    "top_k": 40,
    "stream": True,
    "stream_options": {"include_usage": True},
    "inferpool": {"resume": [1, 2, 3]},
    "n": 1,
    "user": "someone",
}  # fmt: skip


def parse(**changes: Any) -> ChatRequest:
    return ChatRequest.parse(json.dumps(LEAST | changes).encode())


def refusal(**changes: Any) -> tuple[str, str | None]:
    with pytest.raises(BadRequest) as caught:
        parse(**changes)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


VALID: list[tuple[str, Any, str, Any]] = [
    ("max_tokens", 1, "max_output", 1),
    ("max_tokens", 1_000_000, "max_output", 1_000_000),
    ("max_completion_tokens", 7, "max_output", 7),
    ("max_completion_tokens", 7.0, "max_output", 7),  # whole in JSON
    ("max_tokens", None, "max_output", None),
    ("stop", "x", "stop", ("x",)),
    ("stop", ["a", "b", "c", "d"], "stop", ("a", "b", "c", "d")),
    ("stop", [], "stop", ()),
    ("stop", None, "stop", ()),
    ("seed", 0, "seed", 0),
    ("seed", 2**32 - 1, "seed", 2**32 - 1),
    ("seed", 2**63 - 1, "seed", 2**32 - 1),
    ("seed", -2, "seed", 2**32 - 2),
    ("seed", -(2**63), "seed", 0),
    ("seed", None, "seed", None),
    ("stream", True, "stream", True),
    ("stream", False, "stream", False),
    ("stream", None, "stream", False),
    ("inferpool", None, "resume", ()),
    ("inferpool", {}, "resume", ()),
    ("inferpool", {"resume": [0, 2**32 - 1]}, "resume", (0, 2**32 - 1)),
    *((name, least, "sampling", {name: least}) for name, (least, _) in SAMPLERS.items()),
    *((name, most, "sampling", {name: most}) for name, (_, most) in SAMPLERS.items()),
    *((name, None, "sampling", {}) for name in SAMPLERS),
]


@pytest.mark.parametrize(("name", "value", "field", "read"), VALID)
def test_served(name: str, value: Any, field: str, read: Any) -> None:
    assert getattr(parse(**{name: value}), field) == read


INVALID: list[tuple[str, Any]] = [
    *(("max_tokens", value) for value in (0, -1, 1_000_001, 1.5, "5", True, [], {})),
    *(("max_completion_tokens", value) for value in (0, 1.5, "1", False)),
    *(("stop", value) for value in ("", [""], ["a"] * 5, [1], [None], 5, {}, True, "x" * 257)),
    *(("seed", value) for value in (2**63, -(2**63) - 1, 1.5, "1", True, [1])),
    *(("stream", value) for value in (1, 0, "true", [], {})),
    *(("model", value) for value in (None, "", 1, [], {}, "x" * 257)),
    *(("messages", value) for value in (None, [], {}, "hello", 1)),
    *((name, value) for name in SAMPLERS for value in ("1", True, [], {}, 1e9, -3)),
    ("top_k", 1.5),
]


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_refused_with_the_name(name: str, value: Any) -> None:
    assert refusal(**{name: value}) == ("invalid_request", name)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("hello", "invalid_request", ""),
        ({}, "invalid_request", ".role"),
        ({"role": "tool", "content": "x"}, "invalid_request", ".tool_call_id"),
        ({"role": "robot", "content": "x"}, "invalid_request", ".role"),
        ({"role": ["user"], "content": "x"}, "invalid_request", ".role"),
        ({"role": "user"}, "invalid_request", ".content"),
        ({"role": "user", "content": None}, "invalid_request", ".content"),
        ({"role": "user", "content": []}, "invalid_request", ".content"),
        ({"role": "user", "content": {"type": "text"}}, "invalid_request", ".content"),
        ({"role": "user", "content": ["x"]}, "unsupported_parameter", ".content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "unsupported_parameter", ".content"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "unsupported_parameter", ".content"),
        ({"role": "user", "content": [{"type": "text"}]}, "invalid_request", ".content"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]},
            "unsupported_parameter",
            ".content.cache_control",
        ),
        ({"role": "user", "content": "x", "name": "me"}, "unsupported_parameter", ".name"),
        ({"role": "user", "content": "x", "audio": {"id": 1}}, "unsupported_parameter", ".audio"),
        ({"role": "user", "content": "x", "weight": None}, "unsupported_parameter", ".weight"),
    ],
)
def test_messages_refused(message: Any, code: str, param: str) -> None:
    found = refusal(messages=[*LEAST["messages"], message])
    assert found == (code, f"messages[1]{param}")


def test_developer_is_system_and_parts_are_joined() -> None:
    request = ChatRequest.parse(json.dumps(FULL).encode())
    assert request.messages[0] == {"role": "system", "content": "be é"}


@pytest.mark.parametrize(
    ("options", "stream", "code", "param"),
    [
        ({"include_usage": True}, False, "invalid_request", "stream_options"),
        ([], True, "invalid_request", "stream_options"),
        ({"include_usage": 1}, True, "invalid_request", "stream_options.include_usage"),
        ({"pace": 1}, True, "unsupported_parameter", "stream_options.pace"),
    ],
)
def test_stream_options_refused(options: Any, stream: bool, code: str, param: str) -> None:
    assert refusal(stream=stream, stream_options=options) == (code, param)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "inferpool"),
        ({"resume": [1], "trust": 1}, "inferpool"),
        ({"resume": {}}, "inferpool.resume"),
        ({"resume": [-1]}, "inferpool.resume"),
        ({"resume": [2**32]}, "inferpool.resume"),
        ({"resume": [True]}, "inferpool.resume"),
        ({"resume": ["1"]}, "inferpool.resume"),
        ({"resume": [[1]]}, "inferpool.resume"),
    ],
)
def test_resume_refused(value: Any, param: str) -> None:
    assert refusal(inferpool=value) == ("invalid_request", param)


def test_two_maxima_must_agree() -> None:
    assert parse(max_tokens=4, max_completion_tokens=4).max_output == 4
    assert refusal(max_tokens=4, max_completion_tokens=5) == ("invalid_request", "max_tokens")


@pytest.mark.parametrize(
    ("name", "usual"), [(n, v) for n, values in NO_OPS.items() for v in values]
)
def test_known_to_do_nothing(name: str, usual: Any) -> None:
    assert parse(**{name: usual}) == parse()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", True),
        ("store", 0),
        ("service_tier", "priority"),
        ("functions", []),
        ("reasoning_effort", "low"),
        ("modalities", ["text"]),
        ("best_of", None),
        ("", 1),
    ],
)
def test_everything_else_is_refused(name: str, value: Any) -> None:
    assert refusal(**{name: value}) == ("unsupported_parameter", name)


@given(junk.texts.filter(lambda t: "\ud800" not in t), junk.values)
def test_nothing_is_dropped_in_silence(name: str, value: Any) -> None:
    body = json.dumps(LEAST | {"x-" + name: value}).encode()
    with pytest.raises(BadRequest) as caught:
        ChatRequest.parse(body)
    assert (caught.value.code, caught.value.param) in (
        ("unsupported_parameter", "x-" + name),
        ("invalid_json", None),
    )


def test_bounds() -> None:
    message = LEAST["messages"][0]
    assert len(parse(messages=[message] * MESSAGES_MAX).messages) == MESSAGES_MAX
    assert refusal(messages=[message] * (MESSAGES_MAX + 1))[1] == "messages"
    assert len(parse(inferpool={"resume": [0] * RESUME_MAX}).resume) == RESUME_MAX
    assert refusal(inferpool={"resume": [0] * (RESUME_MAX + 1)})[1] == "inferpool.resume"
    padded = json.dumps(LEAST).encode().ljust(BODY_CHAT_MAX)
    assert ChatRequest.parse(padded) == parse()
    with pytest.raises(BadRequest) as caught:
        ChatRequest.parse(padded + b" ")
    assert (caught.value.code, caught.value.status) == ("body_too_large", 413)


@given(junk.raw | junk.mutated(FULL))
def test_hostile_bodies(data: bytes) -> None:
    request = junk.answer(ChatRequest.parse, data)
    if isinstance(request, BadRequest):
        assert request.code in ("invalid_json", "invalid_request", "unsupported_parameter")
        json.dumps(request.openai(), ensure_ascii=False).encode()
    else:
        assert ChatRequest.parse(request.encode()) == request


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=5)
bodies = st.fixed_dictionaries(
    {
        "model": words.filter(bool),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["system", "developer", "user", "assistant"]),
                    "content": words
                    | st.lists(words, min_size=1, max_size=3).map(
                        lambda texts: [{"type": "text", "text": text} for text in texts]
                    ),
                }
            ),
            min_size=1,
            max_size=4,
        ),
    },
    optional={
        "max_tokens": st.integers(1, 1_000_000),
        "stop": st.lists(words.filter(bool), max_size=4) | words.filter(bool),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stream": st.booleans(),
        "inferpool": st.fixed_dictionaries({"resume": ids}),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1) | st.integers(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "top_k": st.integers(0, 1_000_000),
    },
)  # fmt: skip


@given(bodies, st.booleans())
def test_what_is_encoded_is_parsed(body: dict[str, Any], usage: bool) -> None:
    if body.get("stream"):
        body["stream_options"] = {"include_usage": usage}
    request = ChatRequest.parse(json.dumps(body).encode())
    again = ChatRequest.parse(request.encode())
    assert again == request
    assert again.job == request.job
    assert again.encode() == request.encode()
    assert request.sampling == {name: body[name] for name in SAMPLERS if name in body}
    assert request.include_usage == (usage if body.get("stream") else False)


@given(bodies)
def test_the_job_counts_the_body_as_sent(body: dict[str, Any]) -> None:
    request = ChatRequest.parse(json.dumps(body).encode())
    sent = json.loads(request.encode())
    job = request.job
    assert job.task is Task.CHAT
    assert job.model == body["model"]
    assert job.messages == len(body["messages"])
    assert job.prompt_bytes == sum(
        len((message["role"] + message["content"]).encode()) for message in sent["messages"]
    )
    assert job.resume_units == len(body.get("inferpool", {}).get("resume", []))
    assert job.max_output == body.get("max_tokens")
    assert job.choices == 1
    assert job.stream == body.get("stream", False)


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({}, None),
        ({"logprobs": None, "top_logprobs": None}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities(asked: dict[str, Any], most: int | None) -> None:
    request = parse(**asked)
    assert request.top_logprobs == most
    assert request.job.needs == (() if most is None else ("logprobs",))
    assert ChatRequest.parse(request.encode()) == request


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": "5"}, "top_logprobs"),
    ],
)
def test_log_probabilities_that_are_none(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(**asked)
    assert refused.value.param == param


@pytest.mark.parametrize("told", [2**62, 2**45, 5, "abc", None, {"0": 1}, [256], [-1], [1.5]])
def test_the_bytes_of_a_nodes_token_are_a_list_of_bytes(told: object) -> None:
    """And no number, of which Python would make so many zeros: more than there is memory."""
    token = {"bytes": told, "logprob": -1.0, "top_logprobs": []}
    with pytest.raises((ValueError, TypeError)):
        read_chat({"content": [token]})
