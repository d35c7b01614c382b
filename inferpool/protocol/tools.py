"""Functions that a model may call: OpenAI's `tools`, and the text in which they stand in a prompt.

One form for every model, so that both sides know what a prompt costs, and a grammar can hold any
model to it: the tags that Hermes and Qwen were trained on. A call is `<tool_call>`, an object with
`name` and `arguments`, `</tool_call>`; a result goes back in `<tool_response>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from inferpool.protocol.body import fail, flag
from inferpool.protocol.limits import TEXT_MAX, TOOL_CALLS_MAX, TOOLS_BYTES_MAX, TOOLS_MAX
from inferpool.protocol.schema import Members, Schema, read_schema

NAME: Final = re.compile("[a-zA-Z0-9_-]{1,64}")
CALL_OPEN: Final = "<tool_call>"
CALL_CLOSE: Final = "</tool_call>"
_NOTHING: Final = Schema(Members(()))
Message = dict[str, object]


@dataclass(frozen=True, slots=True)
class Function:
    """One function, with its schema read."""

    name: str
    description: str
    parameters: dict[str, Any]
    schema: Schema

    def line(self) -> str:
        """How the prompt describes it."""
        told = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return orjson.dumps({key: item for key, item in told.items() if item != ""}).decode()


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called. `choice`: auto, required, or one function's name.

    `asked`: `tools`, `tool_choice` and `parallel_tool_calls` as the client sent them.
    """

    functions: tuple[Function, ...]
    choice: str
    parallel: bool
    asked: dict[str, Any]

    @property
    def forced(self) -> bool:
        """Whether the answer is a call, whatever the model would rather say."""
        return self.choice != "auto"

    @property
    def callable(self) -> tuple[Function, ...]:
        """The functions that this answer may call."""
        if self.choice in ("auto", "required"):
            return self.functions
        return tuple(function for function in self.functions if function.name == self.choice)

    @property
    def calls_max(self) -> int:
        """The most calls of one answer; a named choice asks for one."""
        named = self.choice not in ("auto", "required")
        return TOOL_CALLS_MAX if self.parallel and not named else 1

    def text(self) -> str:
        """What the prompt says of them."""
        lines = "\n".join(function.line() for function in self.functions)
        wish = {
            "auto": "Where a function helps, call it.",
            "required": "Call at least one of them now.",
        }.get(self.choice, f"Call {self.choice} now.")
        return (
            "You can call functions. Each line here is one, its arguments as a JSON Schema:\n"
            f"<tools>\n{lines}\n</tools>\n"
            f"{wish} A call is an object between two tags, and nothing follows the last one:\n"
            f'{CALL_OPEN}\n{{"name": NAME, "arguments": {{...}}}}\n{CALL_CLOSE}'
        )


def take_tools(body: dict[str, object]) -> Tools | None:
    """`tools` and what goes with them, taken out of a body; None where none may be called.

    Raises BadRequest.
    """
    asked = {
        name: value
        for name in ("tools", "tool_choice", "parallel_tool_calls")
        if (value := body.pop(name, None)) is not None
    }
    functions = _functions(asked.get("tools"))
    choice = _choice(asked.get("tool_choice"), functions)
    parallel = asked.get("parallel_tool_calls", True)
    flag(parallel, "parallel_tool_calls")
    if not functions or choice == "none":
        return None
    return Tools(functions, choice, bool(parallel), asked)


def _functions(value: object) -> tuple[Function, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > TOOLS_MAX:
        fail("tools", f"tools must be a list of at most {TOOLS_MAX} functions.")
    if len(orjson.dumps(value)) > TOOLS_BYTES_MAX:
        fail("tools", f"tools are over {TOOLS_BYTES_MAX} bytes.")
    found = tuple(_function(item, f"tools[{i}]") for i, item in enumerate(value))
    if len({function.name for function in found}) < len(found):
        fail("tools", "Two functions have the same name.")
    return found


def _function(value: object, path: str) -> Function:
    if not isinstance(value, dict) or value.get("type") != "function":
        fail(path, f"{path} must be an object with type function.", "unsupported_parameter")
    _known(value, ("type", "function"), path)
    inner, path = value.get("function"), f"{path}.function"
    if not isinstance(inner, dict):
        fail(path, f"{path} must be an object with a name.")
    _known(inner, ("name", "description", "parameters", "strict"), path)
    name, description = inner.get("name"), inner.get("description") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        fail(f"{path}.name", f"{path}.name must be 1 to 64 letters, digits, _ or -.")
    if not isinstance(description, str):
        fail(f"{path}.description", f"{path}.description must be a string.")
    strict = flag(inner.get("strict"), f"{path}.strict")
    parameters = inner.get("parameters")
    if not parameters:
        return Function(name, description, {}, _NOTHING)
    schema = read_schema(parameters, f"{path}.parameters", strict=strict)
    if parameters.get("type", "object") != "object":
        fail(f"{path}.parameters.type", "Arguments are an object.")
    return Function(name, description, parameters, schema)


def _choice(value: object, functions: Sequence[Function]) -> str:
    if value is None:
        return "auto"
    if isinstance(value, dict):
        _known(value, ("type", "function"), "tool_choice")
        inner = value.get("function")
        name = inner.get("name") if isinstance(inner, dict) else None
        if value.get("type") != "function" or name not in [f.name for f in functions]:
            fail("tool_choice", "tool_choice must name one of the functions in tools.")
        return str(name)
    if value not in ("none", "auto", "required"):
        fail("tool_choice", "tool_choice must be none, auto, required or name a function.")
    if value == "required" and not functions:
        fail("tool_choice", "tool_choice is required, and there are no tools.")
    return str(value)


def _known(value: dict[str, Any], names: Iterable[str], path: str) -> None:
    extra = value.keys() - set(names)
    if extra:
        name = f"{path}.{min(extra)[:TEXT_MAX]}"
        fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")


# -- in a prompt -----------------------------------------------------------------------------------


def read_calls(value: object, path: str) -> list[dict[str, object]]:
    """`tool_calls` of an assistant's message. Raises BadRequest."""
    if not isinstance(value, list) or not 0 < len(value) <= TOOL_CALLS_MAX:
        fail(path, f"{path} must be a list of 1 to {TOOL_CALLS_MAX} calls.")
    return [_call(item, f"{path}[{i}]") for i, item in enumerate(value)]


def _call(item: object, path: str) -> dict[str, object]:
    inner = item.get("function") if isinstance(item, dict) else None
    if not isinstance(item, dict) or item.get("type") != "function" or not isinstance(inner, dict):
        fail(path, f"{path} must be an object with id, type function, and function.")
    _known(item, ("id", "type", "function"), path)
    _known(inner, ("name", "arguments"), f"{path}.function")
    call_id, name, arguments = item.get("id"), inner.get("name"), inner.get("arguments")
    if not isinstance(call_id, str) or len(call_id) > TEXT_MAX:
        fail(f"{path}.id", f"{path}.id must be a string of at most {TEXT_MAX} characters.")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        fail(f"{path}.function.name", "A name is 1 to 64 letters, digits, _ or -.")
    if not isinstance(arguments, str):
        fail(f"{path}.function.arguments", "arguments must be JSON in a string.")
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def prompt_messages(messages: Sequence[Message], tools: Tools | None) -> tuple[Message, ...]:
    """The messages with calls, results and the functions as plain text."""
    found: list[Message] = []
    results: list[str] = []  # of one turn, joined once: there may be thousands
    for message in messages:
        role, content = message["role"], str(message["content"])
        if role == "tool":
            results.append(f"<tool_response>\n{content}\n</tool_response>")
            continue
        if results:
            found.append({"role": "user", "content": "\n".join(results)})
            results = []
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            content = "\n".join([*([content] if content else []), *map(_call_text, calls)])
        found.append({"role": role, "content": content})
    if results:
        found.append({"role": "user", "content": "\n".join(results)})
    if tools is not None:
        text = tools.text()
        if found and found[0]["role"] == "system":
            found[0] = {"role": "system", "content": f"{found[0]['content']}\n\n{text}"}
        else:
            found.insert(0, {"role": "system", "content": text})
    return tuple(found)


def _call_text(call: dict[str, Any]) -> str:
    inner = call["function"]
    name = orjson.dumps(inner["name"]).decode()
    arguments = inner["arguments"] or "{}"
    return f'{CALL_OPEN}\n{{"name": {name}, "arguments": {arguments}}}\n{CALL_CLOSE}'
