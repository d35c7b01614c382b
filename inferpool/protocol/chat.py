"""OpenAI's chat completions request, validated before anything is priced or run.

Parameters that it shares with plain completions are in `text`. Source: OpenAI's API reference,
`POST /v1/chat/completions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from inferpool.protocol import parameters
from inferpool.protocol.body import fail, flag, integer, read_json, refuse_rest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import BODY_CHAT_MAX, MESSAGES_MAX, TEXT_MAX, TOP_LOGPROBS_MAX
from inferpool.protocol.shape import Shape, read_format
from inferpool.protocol.text import INTEGER_SAMPLERS as INTEGER_SAMPLERS
from inferpool.protocol.text import SAMPLERS as SAMPLERS
from inferpool.protocol.text import TextRequest, take_shared
from inferpool.protocol.tools import Tools, prompt_messages, read_calls, take_tools

_PLAIN: Final = 2  # members of a message that is role and text alone
ROLES: Final = ("system", "developer", "user", "assistant", "tool")

# Accepted and without effect here, with the values that mean "as usual".
NO_OPS: Final[dict[str, tuple[object, ...]]] = {
    "store": (False, None),
    "service_tier": ("auto", "default", None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(TextRequest):
    """A valid request."""

    # Role and content, the content a string; with `tool_calls` or `tool_call_id` where they are.
    messages: tuple[dict[str, object], ...]
    shape: Shape | None = None  # what the answer must look like

    @property
    def tools(self) -> Tools | None:
        """The functions that the answer may call."""
        return self.shape if isinstance(self.shape, Tools) else None

    @property
    def shaped(self) -> bool:
        """Where JSON or calls are asked for, or may come."""
        return self.shape is not None

    @property
    def held_to_form(self) -> bool:
        """JSON, and calls that must come. Text that may end in calls goes on up to the first."""
        return self.tools.forced if self.tools else self.shape is not None

    @property
    def plain_messages(self) -> tuple[dict[str, object], ...]:
        """The messages as an engine gets them: roles and text alone."""
        if self.shape is None and max(map(len, self.messages)) == _PLAIN:
            return self.messages
        return prompt_messages(self.messages, self.tools)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what not every service takes (`parameters`)."""
        found = super(ChatRequest, self).needs
        if self.shape is None:
            return found
        return (*found, parameters.TOOLS if self.tools else parameters.RESPONSE_FORMAT)

    @property
    def job(self) -> Job:
        """The request's size."""
        messages = self.plain_messages
        prompt = sum(
            len(str(message["role"]).encode()) + len(str(message["content"]).encode())
            for message in messages
        )
        return Job(
            task=Task.CHAT,
            model=self.model,
            prompt_bytes=prompt,
            messages=len(messages),
            resume_units=len(self.resume),
            max_output=self.max_output,
            choices=self.choices,
            stream=self.stream,
            needs=self.needs,
        )

    def encode(self) -> bytes:
        """The body that a gateway sends to a node: every value explicit."""
        asked: dict[str, object] = {"messages": list(self.messages)}
        if self.top_logprobs is not None:
            asked |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if isinstance(self.shape, Tools):
            asked |= self.shape.asked
        elif self.shape is not None:
            asked["response_format"] = self.shape.asked
        return self.encode_with(asked)

    @classmethod
    def parse(cls, data: bytes) -> ChatRequest:
        """Validate a body. Raises BadRequest with a stable code and the parameter's name."""
        body = read_json(data, BODY_CHAT_MAX)
        messages = _messages(body.pop("messages", None))
        request = cls(
            messages=messages,
            top_logprobs=_top_logprobs(body),
            shape=_shape(body),
            **take_shared(body),
        )
        refuse_rest(body, NO_OPS)
        return request


_SHAPES: Final = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})


def _shape(body: dict[str, object]) -> Shape | None:
    asked = sorted(_SHAPES.intersection(body))
    if not asked:
        return None
    for name in asked:
        try:
            orjson.dumps({name: body[name]})  # it is read deeper than it can be sent on
        except TypeError:
            fail(name, f"{name} is nested too deep.")
    tools = take_tools(body)
    json_shape = read_format(body.pop("response_format", None))
    if tools is not None and json_shape is not None:
        fail(
            "response_format",
            "Functions and a form of the answer are not served together; send one of them.",
            "unsupported_parameter",
        )
    return tools or json_shape


def _top_logprobs(body: dict[str, object]) -> int | None:
    asked = flag(body.pop("logprobs", None), "logprobs")
    most = integer(body.pop("top_logprobs", None), "top_logprobs", 0, TOP_LOGPROBS_MAX)
    if most and not asked:
        fail("top_logprobs", "top_logprobs needs logprobs: true.")
    return (most or 0) if asked else None


def _messages(value: object) -> tuple[dict[str, object], ...]:
    if not isinstance(value, list) or not value:
        fail("messages", "messages must be a list with at least one message.")
    if len(value) > MESSAGES_MAX:
        fail("messages", f"messages may hold at most {MESSAGES_MAX} messages.")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def _message(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        fail(path, f"{path} must be an object with role and content.")
    role = value.get("role")
    if role not in ROLES:
        fail(f"{path}.role", f"{path}.role must be one of {', '.join(ROLES)}.")
    more = {"assistant": "tool_calls", "tool": "tool_call_id"}.get(role, "")
    empty = {"name", "refusal", "audio", "tool_calls", "function_call"} - {more}
    known = {"role", "content", more} | empty
    extra = {key for key, item in value.items() if key not in known}
    extra |= {key for key in empty if value.get(key)}
    if extra:
        name = f"{path}.{min(extra)[:TEXT_MAX]}"
        fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")
    if role == "tool":
        call_id = value.get("tool_call_id")
        if not isinstance(call_id, str) or len(call_id) > TEXT_MAX:
            fail(f"{path}.tool_call_id", f"{path}.tool_call_id must be a call's id.")
        content = _content(value.get("content"), f"{path}.content")
        return {"role": role, "tool_call_id": call_id, "content": content}
    if more and value.get(more):
        calls = read_calls(value[more], f"{path}.{more}")
        said = value.get("content")
        content = "" if said is None else _content(said, f"{path}.content")
        return {"role": role, "content": content, "tool_calls": calls}
    role = "system" if role == "developer" else role
    return {"role": role, "content": _content(value.get("content"), f"{path}.content")}


def _content(value: object, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        fail(path, f"{path} must be a string or a list of text parts.")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            fail(path, f"{path} may hold text parts only.", "unsupported_parameter")
        extra = part.keys() - {"type", "text"}
        if extra:
            name = f"{path}.{min(extra)[:TEXT_MAX]}"
            fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")
        text = part.get("text")
        if not isinstance(text, str):
            fail(path, f"{path}: a text part needs a string in text.")
        texts.append(text)
    return "".join(texts)
