"""What a server by URL answered, held against what was asked: JSON by a schema, calls of functions.

No grammar of ours holds such a server, and some ignore what they do not know. So JSON is checked
when it is whole, and calls are passed on when they are whole; what does not conform is the
engine's failure, never an answer. Where the client did not ask for `strict`, no more is promised
than JSON. Calls leave as text in their tags, as every engine writes them.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from inferpool.engines.base import FinishReason
from inferpool.engines.conform import conforms
from inferpool.engines.stop_text import StopText
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.limits import ANSWER_MAX
from inferpool.protocol.shape import JsonShape, Shape
from inferpool.protocol.tools import CALL_CLOSE, CALL_OPEN, Function, Tools

_BEGINS: Final = frozenset('{["-0123456789tfn') | {""}


class Answered:
    """One answer as it comes. Raises Unavailable(engine_failed) where it is not what was asked."""

    def __init__(self, shape: Shape | None) -> None:
        self._shape = shape
        self._size = 0
        self._said = False  # words, where calls may come too
        self._texts: list[str] = []  # of JSON
        self._calls: dict[int, tuple[str, list[str]]] = {}  # name and pieces of arguments
        self._tags = StopText((CALL_OPEN,)) if isinstance(shape, Tools) else None

    def text(self, text: str) -> str:
        """The part of a piece of text that may be shown now."""
        self._count(text)
        if isinstance(self._shape, JsonShape):
            self._texts.append(text)
        if self._tags is None or not text:
            return text
        self._said = self._said or not text.isspace()
        shown, stopped = self._tags.take(text)
        if stopped:
            raise _failed("it wrote a call as text")
        return shown

    def calls(self, deltas: Any) -> None:
        """A piece of `tool_calls`. Raises also LookupError, TypeError, AttributeError."""
        for delta in deltas or ():
            if not isinstance(self._shape, Tools):
                raise _failed("it calls a function, and there is none")
            index, inner = delta.get("index", 0), delta["function"]
            name, arguments = inner.get("name") or "", inner.get("arguments") or ""
            if type(index) is not int or index not in range(self._shape.calls_max):
                raise _failed("it makes more calls than were asked for")
            self._count(name)
            self._count(arguments)
            known, pieces = self._calls.setdefault(index, (name, []))
            if not known:
                self._calls[index] = (name, pieces)
            pieces.append(arguments)

    def rest(self, finish: FinishReason) -> str:
        """The end of the answer: text that was held back, and the calls in their tags."""
        text = self._tags.rest() if self._tags is not None else ""
        if isinstance(self._shape, JsonShape):
            self._check_json(self._shape, finish)
        if isinstance(self._shape, Tools):
            if self._shape.forced and not self._calls and (self._said or finish != "length"):
                raise _failed("it did not call the function")
            if finish == "length":  # a call that was cut is not told
                return text
            by_name = {function.name: function for function in self._shape.callable}
            for _, (name, pieces) in sorted(self._calls.items()):
                text += _call_text(by_name.get(name), "".join(pieces), self._shape)
        return text

    def _check_json(self, shape: JsonShape, finish: FinishReason) -> None:
        text = "".join(self._texts)
        if finish == "length":  # cut, and the client hears so; but it must be JSON that was cut
            if text.strip()[:1] not in _BEGINS:
                raise _failed("its answer is not JSON")
            return
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise _failed("its answer is not JSON") from None
        asked = shape.asked.get("json_schema", {})
        strict = shape.asked["type"] == "json_object" or bool(asked.get("strict"))
        if strict and not conforms(value, shape.schema):
            raise _failed("its answer is not what the schema asks for")

    def _count(self, text: str) -> None:
        self._size += len(text)
        if self._size > ANSWER_MAX:
            raise _failed(f"its answer is over {ANSWER_MAX} characters")


def _call_text(function: Function | None, arguments: str, tools: Tools) -> str:
    if function is None:
        raise _failed("it calls a function that is not there")
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        raise _failed("the arguments of its call are not JSON") from None
    strict = any(
        item["function"].get("strict")
        for item in tools.asked["tools"]
        if item["function"]["name"] == function.name
    )
    if not isinstance(value, dict) or (strict and not conforms(value, function.schema)):
        raise _failed("the arguments of its call are not what the function takes")
    named = orjson.dumps({"name": function.name, "arguments": value}).decode()
    return f"{CALL_OPEN}\n{named}\n{CALL_CLOSE}"


def _failed(why: str) -> Unavailable:
    return Unavailable(f"the server does not do what was asked: {why}", code="engine_failed")
