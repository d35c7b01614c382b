"""Calls of functions in an answer: as text from an engine, as deltas in OpenAI's shape."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from inferpool.protocol.limits import TOOL_CALLS_MAX
from inferpool.protocol.tools import CALL_CLOSE, CALL_OPEN, NAME

_MARKS: Final = (f"{CALL_OPEN}{{", f"{CALL_OPEN}\n{{")
_HEAD: Final = re.compile(r'\s?"name":\s?"([^"]*)",\s?"arguments":\s?')
_HEAD_MAX: Final = 128  # characters: the longest name, the words around it, blanks


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of one call: the first has the `name`, the rest go on with the arguments."""

    index: int
    name: str | None
    arguments: str


def delta_objects(calls: Iterable[CallDelta], prefix: str) -> list[dict[str, object]]:
    """`delta.tool_calls` of a chunk; a call's id is the prefix and its index."""
    found: list[dict[str, Any]] = []
    arguments: list[list[str]] = []  # joined once: a node may cut them into very many
    for call in calls:
        if call.name is None and found and found[-1]["index"] == call.index:
            arguments[-1].append(call.arguments)
            continue
        arguments.append([call.arguments])
        if call.name is None:
            found.append({"index": call.index, "function": {}})
            continue
        call_id, function = f"{prefix}{call.index}", {"name": call.name}
        found.append({"index": call.index, "id": call_id, "type": "function", "function": function})
    for item, pieces in zip(found, arguments, strict=True):
        item["function"]["arguments"] = "".join(pieces)
    return found


def whole_objects(calls: Iterable[CallDelta], prefix: str) -> list[dict[str, object]]:
    """`message.tool_calls` of a whole answer."""
    names: list[str] = []
    arguments: list[list[str]] = []
    for call in calls:
        if call.name is not None:
            names.append(call.name)
            arguments.append([])
        arguments[call.index].append(call.arguments)
    return [
        {
            "id": f"{prefix}{index}",
            "type": "function",
            "function": {"name": name, "arguments": "".join(arguments[index])},
        }
        for index, name in enumerate(names)
    ]


def read_deltas(value: Any) -> tuple[CallDelta, ...]:
    """A chunk's `tool_calls` read back. Raises ValueError, LookupError, TypeError,
    AttributeError for what is none."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise TypeError("tool_calls is a list")
    return tuple(map(_delta, value))


def _delta(item: Any) -> CallDelta:
    index, inner = item["index"], item["function"]
    name, arguments = inner.get("name"), inner.get("arguments") or ""
    if type(index) is not int or not 0 <= index < TOOL_CALLS_MAX:
        raise ValueError("a call has an index")
    if name is not None and not NAME.fullmatch(name):
        raise ValueError("a function has a name")
    if not isinstance(arguments, str):
        raise TypeError("arguments are text")
    return CallDelta(index, name, arguments)


class CallReader:
    """Tells calls from text in an answer that comes in pieces, however they are cut.

    Text that may still become the beginning of a call is held back.
    """

    def __init__(self) -> None:
        self._held = ""
        self._phase = self._text
        self._depth = 0
        self._quoted = self._escaped = False
        self.begun = 0  # calls
        self.ended = 0

    def take(self, text: str) -> tuple[str, list[CallDelta]]:
        """What the answer says now, and what it calls. Raises ValueError for a broken call."""
        self._held += text
        shown, calls = "", list[CallDelta]()
        while True:
            before = self._phase
            shown += self._phase(calls)
            if self._phase == before:
                return shown, calls

    def rest(self) -> str:
        """Text that was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return text if not self.begun else ""

    def _text(self, calls: list[CallDelta]) -> str:
        found = [at for mark in _MARKS if (at := self._held.find(mark)) >= 0]
        if found:
            at = min(found)
            shown, after = self._held[:at], self._held[at + len(CALL_OPEN) :]
            self._held = after.lstrip("\n")[1:]  # without the brace
            self._phase = self._head
        else:
            keep = max(_overlap(self._held, mark) for mark in _MARKS)
            cut = len(self._held) - keep
            shown, self._held = self._held[:cut], self._held[cut:]
        return "" if self.begun else shown

    def _head(self, calls: list[CallDelta]) -> str:
        match = _HEAD.match(self._held)
        if match is None or match.end() == len(self._held):  # a blank may follow
            if len(self._held) > _HEAD_MAX:
                raise ValueError("a call without a name")
            return ""
        if self.begun >= TOOL_CALLS_MAX:
            raise ValueError("more calls than an answer may have")
        calls.append(CallDelta(self.begun, match[1], ""))
        self.begun += 1
        self._held = self._held[match.end() :]
        self._depth, self._quoted, self._escaped = 0, False, False
        self._phase = self._arguments
        return ""

    def _arguments(self, calls: list[CallDelta]) -> str:
        for at, char in enumerate(self._held):
            if self._quoted:
                self._quoted = char != '"' or self._escaped
                self._escaped = char == "\\" and not self._escaped
                continue
            self._quoted = char == '"'
            self._depth += (char in "{[") - (char in "}]")
            if self._depth == 0:
                calls.append(CallDelta(self.begun - 1, None, self._held[: at + 1]))
                self._held = self._held[at + 1 :]
                self._phase = self._tail
                return ""
        if self._held:
            calls.append(CallDelta(self.begun - 1, None, self._held))
            self._held = ""
        return ""

    def _tail(self, calls: list[CallDelta]) -> str:
        _, mark, after = self._held.partition(CALL_CLOSE)
        if mark:
            self._held = after
            self.ended += 1
            self._phase = self._text
        return ""


def _overlap(text: str, mark: str) -> int:
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
