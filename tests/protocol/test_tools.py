"""Functions that a model may call: how they are read, stand in the prompt, and are called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.engines.grammar import gbnf
from inferpool.engines.invention import invent
from inferpool.protocol import limits
from inferpool.protocol.calls import (
    CallDelta,
    CallReader,
    delta_objects,
    read_deltas,
    whole_objects,
)
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.tools import Tools, prompt_messages

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
ASK = {"role": "user", "content": "Is it warm in Rome?"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
}


PATTERN = {"type": "object", "properties": {"x": {"pattern": "a"}}}


def function(**inner: Any) -> dict[str, Any]:
    return {"type": "function", "function": inner}


def parse(**changes: Any) -> ChatRequest:
    body = {"model": "m", "messages": [ASK], "tools": [WEATHER, NOW]} | changes
    return ChatRequest.parse(json.dumps(body).encode())


def tools_of(**changes: Any) -> Tools:
    found = parse(**changes).tools
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changes", "choice", "callable_", "most"),
    [
        ({}, "auto", 2, limits.TOOL_CALLS_MAX),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, "auto", 2, 1),
        ({"tool_choice": "required"}, "required", 2, limits.TOOL_CALLS_MAX),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, "now", 1, 1),
    ],
)
def test_choices(changes: dict[str, Any], choice: str, callable_: int, most: int) -> None:
    request = parse(**changes)
    tools = tools_of(**changes)
    assert (tools.choice, len(tools.callable), tools.calls_max) == (choice, callable_, most)
    assert request.job.needs == ("tools",)
    assert request.in_one_piece is (choice != "auto")
    assert ChatRequest.parse(request.encode()) == request
    assert gbnf(tools).startswith("root ::= call")


@pytest.mark.parametrize("changes", [{"tools": []}, {"tools": None}, {"tool_choice": "none"}])
def test_none_may_be_called(changes: dict[str, Any]) -> None:
    request = parse(**changes)
    assert request.tools is None
    assert request.job.needs == ()
    assert request.plain_messages == (ASK,)


def test_the_prompt_is_priced_as_the_engine_gets_it() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "20 degrees"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": "Yes."},
    ]
    request = parse(messages=messages)
    assert ChatRequest.parse(request.encode()) == request
    plain = request.plain_messages
    assert [m["role"] for m in plain] == ["system", "user", "assistant", "user", "assistant"]
    assert str(plain[0]["content"]).startswith("Be brief.\n\nYou can call functions.")
    assert '"name":"get_weather"' in str(plain[0]["content"])
    once = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert plain[2]["content"] == f"{once}\n{once}"
    results = (
        "<tool_response>\n20 degrees\n</tool_response>\n<tool_response>\nsunny\n</tool_response>"
    )
    assert plain[3]["content"] == results
    size = sum(len(str(m["role"]).encode()) + len(str(m["content"]).encode()) for m in plain)
    assert (request.job.prompt_bytes, request.job.messages) == (size, 5)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [WEATHER] * 2}, "tools"),
        ({"tools": [WEATHER] * (limits.TOOLS_MAX + 1)}, "tools"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [{**NOW, "more": 1}]}, "tools[0].more"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [function(name="a", parameters={"type": "array"})]},
            "tools[0].function.parameters.type",
        ),
        (
            {"tools": [function(name="a", strict=True, parameters=PATTERN)]},
            "tools[0].function.parameters.properties.x.pattern",
        ),
        ({"tools": [function(name="a", description="x" * 300_000)]}, "tools"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**ASK, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": 5}]}]},
            "messages[0].tool_calls[0].id",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
        ({"functions": [{"name": "a"}]}, "functions"),
    ],
)  # fmt: skip
def test_refused_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(**changes)
    assert refused.value.param == param


# -- calls in an answer ----------------------------------------------------------------------------


def read(pieces: list[str]) -> tuple[str, list[dict[str, Any]], int]:
    """Text, calls and how many of them ended."""
    reader, text = CallReader(), ""
    calls: list[CallDelta] = []
    for piece in pieces:
        shown, made = reader.take(piece)
        text += shown
        calls += made
    return text + reader.rest(), whole_objects(calls, "c"), reader.ended


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, Any]]]:
    """An answer, its text, its calls."""
    text = draw(st.text(alphabet='<tool_call>\n{"a} ', max_size=30).filter(lambda t: "<t" not in t))
    values = st.dictionaries(st.text(max_size=5), st.text(alphabet='"\\{}[]a', max_size=5))
    calls = draw(st.lists(st.tuples(st.sampled_from(["f", "long_name"]), values), max_size=3))
    made = [
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(given)}}}\n</tool_call>'
        for name, given in calls
    ]
    return text + "\n".join(made), text, calls


@given(answers(), st.lists(st.integers(1, 9), max_size=60))
def test_calls_are_read_however_the_answer_is_cut(
    answer: tuple[str, str, list[tuple[str, Any]]], sizes: list[int]
) -> None:
    whole, text, calls = answer
    pieces, at = [], 0
    for size in sizes:
        pieces.append(whole[at : at + size])
        at += size
    found, made, ended = read([*pieces, whole[at:]])
    assert found == text
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in made] == calls
    assert ended == len(calls)


def test_an_answer_that_was_cut_in_a_call() -> None:
    text, calls, ended = read(['Well: <tool_call>\n{"name": "f", "arguments": {"a": "b'])
    assert (text, ended) == ("Well: ", 0)
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": "b'}
    assert read(["Not yet <tool_ca"]) == ("Not yet <tool_ca", [], 0)
    assert read(["<tool_call>[no call]"]) == ("<tool_call>[no call]", [], 0)


@pytest.mark.parametrize("text", ['<tool_call>{"nome": ' + "x" * 200])
def test_a_broken_call(text: str) -> None:
    with pytest.raises(ValueError, match="without a name"):
        read([text])


def test_what_the_fake_engine_calls() -> None:
    assert invent(tools_of(), 1, "nothing") is None
    for tools, prompt in ((tools_of(), "call now"), (tools_of(tool_choice="required"), "x")):
        text = invent(tools, 1, prompt)
        assert text is not None
        _, calls, ended = read([text])
        assert len(calls) == ended == 1


def test_deltas_are_read_back() -> None:
    calls = [CallDelta(0, "f", ""), CallDelta(0, None, '{"a"'), CallDelta(1, "g", "{}")]
    made = delta_objects(calls, "call_")
    assert made == [
        {"index": 0, "id": "call_0", "type": "function",
         "function": {"name": "f", "arguments": '{"a"'}},
        {"index": 1, "id": "call_1", "type": "function",
         "function": {"name": "g", "arguments": "{}"}},
    ]  # fmt: skip
    assert read_deltas(made) == (CallDelta(0, "f", '{"a"'), CallDelta(1, "g", "{}"))
    for bad in ({}, [1], [{"index": 0}], [{"index": 16, "function": {}}],
                [{"index": 0, "function": {"name": "a b"}}],
                [{"index": 0, "function": {"arguments": 5}}]):  # fmt: skip
        with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
            read_deltas(bad)


@pytest.mark.parametrize("levels", [240, 253, 300, 500])
@pytest.mark.parametrize("name", ["tools", "tool_choice", "response_format"])
def test_what_is_nested_too_deep_to_be_sent_on_is_refused_by_name(name: str, levels: int) -> None:
    deep = json.loads("[" * levels + "]" * levels)
    schema = {"type": "object", "properties": {}, "default": deep}
    function = {"name": "f", "parameters": schema if name == "tools" else {}}
    asked: dict[str, Any] = {"tools": [{"type": "function", "function": function}]}
    if name == "tool_choice":
        asked[name] = {"type": "function", "function": {"name": "f", "more": deep}}
    if name == "response_format":
        asked = {name: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    body = json.dumps({"model": "m", "messages": [ASK], **asked}).encode()
    if levels < 250:
        assert ChatRequest.parse(ChatRequest.parse(body).encode()).shape is not None
        return
    with pytest.raises(BadRequest, match=r"deep|not valid JSON") as caught:
        ChatRequest.parse(body)
    assert caught.value.param in (name, None)


def test_very_many_pieces_cost_no_more_than_their_length() -> None:
    """Where each copied all before it, these would take longer than the test may."""
    long, pieces = "x" * 2**25, 50_000
    calls = [CallDelta(0, "f", long), *[CallDelta(0, None, "y")] * pieces]
    for made in (delta_objects(calls, "c"), whole_objects(calls, "c")):
        assert len(made[0]["function"]["arguments"]) == len(long) + pieces  # type: ignore[index]
    result = {"role": "tool", "tool_call_id": "c0", "content": "z" * 1000}
    (turn,) = prompt_messages([result] * pieces, None)
    assert str(turn["content"]).count("<tool_response>") == pieces
