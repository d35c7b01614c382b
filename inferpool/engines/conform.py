"""Whether JSON is what a schema asks for: what a server that we do not hold to a grammar sent."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from inferpool.protocol.schema import (
    Either,
    Entries,
    Items,
    Literals,
    Members,
    Node,
    Number,
    Schema,
    Text,
)

_DEPTH_MAX: Final = 128  # of the answer: a schema may be without end
_DATE: Final = r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"
_HEX: Final = "[0-9A-Fa-f]"
_FORMATS: Final = {
    "date": re.compile(_DATE, re.ASCII),
    "time": re.compile(_TIME, re.ASCII),
    "date-time": re.compile(f"{_DATE}[Tt]{_TIME}", re.ASCII),
    "uuid": re.compile(f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"),
}


def conforms(value: object, schema: Schema) -> bool:
    """Whether parsed JSON is one of the schema's values; members may come in any order."""
    return _node(value, schema.root, schema, 0)


def _node(value: Any, node: Node, schema: Schema, depth: int) -> bool:
    if depth > _DEPTH_MAX:
        return False
    node, deeper = schema.resolve(node), depth + 1
    if isinstance(node, Text):
        return isinstance(value, str) and _text(value, node)
    if isinstance(node, Number):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole if node.whole else _is_number(value))
    if isinstance(node, Literals):
        return any(_same(value, orjson.loads(literal)) for literal in node.values)
    if isinstance(node, Items):
        most = len(value) if isinstance(value, list) and node.most is None else node.most
        return (
            isinstance(value, list)
            and node.least <= len(value) <= (most or 0)
            and all(_node(item, node.item, schema, deeper) for item in value)
        )
    if isinstance(node, Entries):
        return isinstance(value, dict) and all(
            _node(item, node.value, schema, deeper) for item in value.values()
        )
    if isinstance(node, Members):
        return isinstance(value, dict) and _members(value, node, schema, deeper)
    if isinstance(node, Either):
        return any(_node(value, option, schema, deeper) for option in node.options)
    return True  # anything


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _text(value: str, node: Text) -> bool:
    if node.format:
        return _FORMATS[node.format].fullmatch(value) is not None
    return node.least <= len(value) <= (len(value) if node.most is None else node.most)


def _members(value: dict[str, Any], node: Members, schema: Schema, depth: int) -> bool:
    known = {member.name: member for member in node.members}
    if not value.keys() <= known.keys():
        return False
    if any(member.required and member.name not in value for member in node.members):
        return False
    return all(_node(item, known[name].value, schema, depth) for name, item in value.items())


def _same(value: object, literal: object) -> bool:
    """Equal as JSON: 1 is 1.0, and true is not 1."""
    return value == literal and isinstance(value, bool) == isinstance(literal, bool)
