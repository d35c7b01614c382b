"""JSON Schemas that an answer is held to: what is read, what is refused, by its place and soon."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.engines.grammar import gbnf
from inferpool.engines.invention import invent
from inferpool.protocol import limits
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.schema import Anything, Schema, read_schema
from inferpool.protocol.shape import JsonShape, read_format

PERSON: dict[str, Any] = {
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20, "description": "who"},
        "age": {"type": ["integer", "null"]},
        "mood": {"enum": ["good", "bad", "great"]},
        "born": {"type": "string", "format": "date"},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
        "pet": {"$ref": "#/$defs/Pet"},
    },
    "required": ["name", "mood"],
    "additionalProperties": False,
    "$defs": {
        "Pet": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": kind}, "legs": {"type": "number"}},
                    "required": ["kind"],
                }
                for kind in ("cat", "dog")
            ]
            + [{"type": "null"}]
        }
    },
}


def shape_of(schema: Any, *, strict: bool = True) -> JsonShape:
    return JsonShape(read_schema(schema, "schema", strict=strict), {})


def fits(value: Any, schema: Any, root: Any) -> bool:
    """An independent, slow and simple check of a value, for what is served."""
    if schema is True:
        return True
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        return fits(value, target, root)
    if "anyOf" in schema:
        return any(fits(value, option, root) for option in schema["anyOf"])
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return not kinds or any(_fits_type(value, kind, schema, root) for kind in kinds)


def _fits_type(value: Any, kind: str, schema: Any, root: Any) -> bool:
    if kind == "object":
        if not isinstance(value, dict) or not set(schema.get("required", ())) <= value.keys():
            return False
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(
            fits(item, known[name], root)
            if name in known
            else more is not False and fits(item, more, root)
            for name, item in value.items()
        )
    if kind == "array":
        most = schema.get("maxItems", len(value) if isinstance(value, list) else 0)
        return (
            isinstance(value, list)
            and schema.get("minItems", 0) <= len(value) <= most
            and all(fits(item, schema.get("items", True), root) for item in value)
        )
    if kind == "string":
        most = schema.get("maxLength", 10**9)
        return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= most
    if kind in ("number", "integer"):
        whole = isinstance(value, int) or kind == "number"
        return isinstance(value, int | float) and not isinstance(value, bool) and whole
    return value is None if kind == "null" else isinstance(value, bool)


leaves = st.one_of(
    st.builds(lambda n, m: {"type": "string", "minLength": n, "maxLength": n + m},
              st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from([{"type": k} for k in ("string", "number", "integer", "boolean", "null")]),
    st.builds(lambda v: {"enum": v},
              st.lists(st.text(max_size=6) | st.integers(-9, 9), min_size=1, max_size=9)),
    st.sampled_from([True, {}, {"type": ["string", "null"]}, {"type": "object"}, {"$ref": "#"}]),
)  # fmt: skip


def _objects(part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    members = st.dictionaries(st.text(max_size=8), part, max_size=4)
    return members.flatmap(
        lambda found: st.builds(
            lambda names, closed: {
                "type": "object",
                "properties": found,
                "required": names,
                **({"additionalProperties": False} if closed else {}),
            },
            st.lists(st.sampled_from(sorted(found)), unique=True) if found else st.just([]),
            st.booleans(),
        )
    )


small = st.integers(0, 3)
schemas = st.recursive(
    leaves,
    lambda part: st.one_of(
        _objects(part),
        st.builds(
            lambda i, n: {"type": "array", "items": i, "minItems": n}, part, st.integers(0, 3)
        ),
        st.builds(lambda o: {"anyOf": o}, st.lists(part, min_size=1, max_size=3)),
    ),
    max_leaves=12,
)


@given(schemas, st.booleans(), st.integers(0, 99))
def test_what_is_read_has_a_grammar_and_values_that_fit(
    schema: Any, strict: bool, number: int
) -> None:
    if not isinstance(schema, dict):
        schema = {}
    try:
        shape = shape_of(schema, strict=strict)
    except BadRequest as error:
        assert error.param
        assert error.code in ("invalid_request", "unsupported_parameter")
        return
    assert gbnf(shape).startswith("root ::= ")
    text = invent(shape, number, "")
    assert text is not None
    if strict:  # else a place may be looser
        assert fits(json.loads(text), schema, schema), (schema, text)


def test_a_person() -> None:
    shape = shape_of(PERSON)
    for number in range(40):
        text = invent(shape, number, "")
        assert text is not None
        assert fits(json.loads(text), PERSON, PERSON)
    assert not fits({"name": "x", "mood": "none"}, PERSON, PERSON)
    grammar = gbnf(shape)
    assert '"\\"" ("bad\\"" | "g" ("ood\\"" | "reat\\""))' in grammar
    assert len(grammar) < 4000


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(limits.SCHEMA_DEPTH_MAX + 1):
    DEEP = {"type": "array", "items": DEEP}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1100)}}
TWICE = {"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 2}
CHAIN = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(300)} | {"300": {}}
SAME = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "place", "code"),
    [
        ([], "schema", "invalid_request"),
        ({"type": "thing"}, "schema.type", "invalid_request"),
        ({"type": "string", "pattern": "(a+)+$"}, "schema.pattern", "unsupported_parameter"),
        ({"type": "integer", "minimum": 3}, "schema.minimum", "unsupported_parameter"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems", "unsupported_parameter"),
        ({"type": "string", "format": "email"}, "schema.format", "unsupported_parameter"),
        ({"not": {}}, "schema.not", "unsupported_parameter"),
        ({"allOf": [SAME, SAME]}, "schema.allOf", "unsupported_parameter"),
        ({"oneOf": [SAME, {"type": "null"}]}, "schema.oneOf", "unsupported_parameter"),
        ({"type": "string", "maxLength": 9999}, "schema.maxLength", "unsupported_parameter"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "schema.maxLength", "invalid_request"),
        ({"type": "string", "minLength": True}, "schema.minLength", "invalid_request"),
        ({"type": "object", "required": ["a"]}, "schema.required", "invalid_request"),
        ({"properties": {"a": {"type": 1}}}, "schema.properties.a.type", "invalid_request"),
        ({"enum": []}, "schema.enum", "invalid_request"),
        ({"type": "string", "enum": [1]}, "schema.enum", "invalid_request"),
        ({"anyOf": []}, "schema.anyOf", "invalid_request"),
        ({"$ref": "http://x.test/y"}, "schema.$ref", "invalid_request"),
        ({"$ref": "#/$defs/none"}, "schema.$ref", "invalid_request"),
        ({"$ref": "#"}, "schema", "invalid_request"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "schema", "unsupported_parameter"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "schema", "invalid_request"),
        (TWICE, "schema", "unsupported_parameter"),
        ({"anyOf": [SAME, SAME]}, "schema", "unsupported_parameter"),
        ({"anyOf": [{"type": "string"}, {}]}, "schema", "unsupported_parameter"),
        (WIDE, "schema.properties", "invalid_request"),
        ({**WIDE, "required": list(WIDE["properties"])}, "schema", "invalid_request"),
        (DEEP, None, "invalid_request"),
        ({"enum": list(range(limits.SCHEMA_LITERALS_MAX + 1))}, "schema", "invalid_request"),
        ({"enum": ["x" * limits.SCHEMA_BYTES_MAX]}, "schema", "invalid_request"),
        (
            {"items": {"$ref": "#/$defs/0"}, "$defs": CHAIN},
            "schema",
            "invalid_request",
        ),
        (
            {"properties": {str(i): {"type": "string", "maxLength": 256} for i in range(17)}},
            "schema",
            "invalid_request",
        ),
    ],
)  # fmt: skip
def test_refused_by_its_place(schema: Any, place: str | None, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_schema(schema, "schema")
    assert refused.value.code == code
    assert place is None or refused.value.param == place


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a$"},
        {"type": "integer", "minimum": 3, "maximum": 5},
        {"type": "string", "format": "email"},
        {"oneOf": [SAME, {"type": "null"}]},
        {"anyOf": [SAME, SAME]},
        {"allOf": [SAME, SAME]},
        TWICE | {"type": "array"},
        {"type": "string", "maxLength": 9999},
    ],
)
def test_without_strict_a_place_becomes_looser(schema: Any) -> None:
    schema = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    assert gbnf(shape_of(schema, strict=False))


def test_alternatives_that_fan_out_end_soon() -> None:
    """Definitions that name each other many times: refused without walking every way through."""
    chain: dict[str, Any] = {
        str(i): {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}] * 30} for i in range(100)
    }
    begun = time.process_time()
    with pytest.raises(BadRequest):
        read_schema({"$ref": "#/$defs/0", "$defs": {**chain, "100": {"type": "null"}}}, "schema")
    assert time.process_time() - begun < 5, "a walk of 30**100 ways never ends"


def test_formats_of_an_answer() -> None:
    assert read_format(None) is None
    assert read_format({"type": "text"}) is None
    found = read_format({"type": "json_object"})
    assert found is not None
    assert json.loads(invent(found, 1, "") or "").keys()
    asked = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}
    named = read_format(asked)
    assert named is not None
    assert (named.schema.root, named.asked) == (read_schema(PERSON, "x").root, asked)
    loose = {"type": "json_schema", "json_schema": {"name": "p", "schema": {"pattern": "a"}}}
    found = read_format(loose)
    assert found is not None
    assert found.schema == Schema(Anything(), {"#": Anything()})


INNER = "response_format.json_schema"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "text", "schema": {}}, "response_format.schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name"),
        (
            {"type": "json_schema", "json_schema": {"name": "a b"}},
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "strict": 1}},
            "response_format.json_schema.strict",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": [], "strict": True}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "more": 1}},
            "response_format.json_schema.more",
        ),
    ],
)
def test_formats_refused_by_name(value: Any, place: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_format(value)
    assert refused.value.param == place


@pytest.mark.parametrize("definitions", [5, True, "abc", ["a"], None])
def test_definitions_that_are_no_object_name_nothing(definitions: Any) -> None:
    with pytest.raises(BadRequest, match="names no definition"):
        shape_of({"$defs": definitions, "$ref": "#/$defs/a"})


def test_a_long_chain_of_definitions_is_a_grammar_like_any_other() -> None:
    """All of it is within the limits, and yet deeper than Python's stack."""
    chain: dict[str, Any] = {"d63": {"type": "string"}}
    for at in range(63):
        node: dict[str, Any] = {"$ref": f"#/$defs/d{at + 1}"}
        for _ in range(14):
            node = {"type": "array", "items": node}
        chain[f"d{at}"] = node
    rules = gbnf(shape_of({"$defs": chain, "$ref": "#/$defs/d0"})).splitlines()
    assert sum('"[" (' in rule for rule in rules) == 63 * 14 + 1, "with the one of any value"
    assert not any(rule.endswith("::= ") for rule in rules)
