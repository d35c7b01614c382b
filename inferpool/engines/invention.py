"""Invented JSON and calls for the fake engine: the same shape and number give the same text."""

from __future__ import annotations

from itertools import count
from typing import Final

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
from inferpool.protocol.shape import JsonShape, Shape
from inferpool.protocol.tools import CALL_CLOSE, CALL_OPEN, Tools

_FORMATS: Final = {
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "date-time": "2026-01-02T03:04:05Z",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
SAID: Final = "Let me see. "  # before calls that were not asked for
_DEEP: Final = 8  # from here on only what must be there


def invent(shape: Shape, number: int, prompt: str) -> str | None:
    """An answer of this shape; None where it may be text, and the prompt names no function."""
    if isinstance(shape, JsonShape):
        return _Inventor(shape.schema, number).write(shape.schema.root, 0)
    return _calls(shape, number, prompt)


def _calls(tools: Tools, number: int, prompt: str) -> str | None:
    named = [function for function in tools.callable if f"call {function.name}" in prompt]
    if not named and not tools.forced:
        return None
    made = []
    for function in (named or tools.callable[:1])[: tools.calls_max]:
        arguments = _Inventor(function.schema, number).write(function.schema.root, 0)
        name = orjson.dumps(function.name).decode()
        made.append(f'{CALL_OPEN}\n{{"name": {name}, "arguments": {arguments}}}\n{CALL_CLOSE}')
    return ("" if tools.forced else SAID) + "\n".join(made)


class _Inventor:
    """Writes one value of a schema. Definitions that name themselves end once they are deep."""

    def __init__(self, schema: Schema, number: int) -> None:
        self._schema, self._numbers = schema, count(number % 1000)

    def write(self, node: Node, depth: int) -> str:
        """A node's value, as JSON on one line."""
        node = self._schema.resolve(node)
        number = next(self._numbers)
        if isinstance(node, Text):
            return orjson.dumps(self._text(node, number)).decode()
        if isinstance(node, Number):
            return str(number)
        if isinstance(node, Literals):
            return node.values[number % len(node.values)]
        if isinstance(node, Items):
            size = max(node.least, min(2 if node.most is None else node.most, 2))
            size = node.least if depth > _DEEP else size
            return f"[{', '.join(self.write(node.item, depth + 1) for _ in range(size))}]"
        if isinstance(node, Entries):
            return f'{{"k{number}": {self.write(node.value, depth + 1)}}}' if depth < 2 else "{}"
        if isinstance(node, Members):
            return self._members(node, depth)
        if isinstance(node, Either):
            return self._either(node, number, depth)
        return "null" if depth else "{}"

    def _text(self, node: Text, number: int) -> str:
        if node.format:
            return _FORMATS[node.format]
        text = f"word {number}".ljust(node.least, ".")
        return text if node.most is None else text[: node.most]

    def _members(self, node: Members, depth: int) -> str:
        kept = [m for m in node.members if m.required or depth <= _DEEP]
        pairs = (f"{orjson.dumps(m.name).decode()}: {self.write(m.value, depth + 1)}" for m in kept)
        return f"{{{', '.join(pairs)}}}"

    def _either(self, node: Either, number: int, depth: int) -> str:
        if depth <= _DEEP:
            return self.write(node.options[number % len(node.options)], depth + 1)
        small = (Literals, Text, Number, Items)
        found = [o for o in node.options if isinstance(self._schema.resolve(o), small)]
        return self.write((found or list(node.options))[0], depth + 1)
