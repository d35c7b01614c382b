"""OpenAI's chat completions request, validated before anything is priced or run.

Both sides parse the same body: the gateway what the client sent, the node what the gateway sent.
A parameter that is not served is an error that names it; a known no-op is accepted; nothing is
dropped in silence. Source: OpenAI's API reference, `POST /v1/chat/completions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NoReturn

import orjson

from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import (
    BODY_CHAT_MAX,
    MESSAGES_MAX,
    OUTPUT_UNITS_MAX,
    RESUME_MAX,
    STOP_MAX,
    STOP_TEXT_MAX,
    TEXT_MAX,
)

ROLES: Final = ("system", "developer", "user", "assistant")

# Sampler numbers: name -> (least, greatest). The last three are llama.cpp's and vLLM's.
SAMPLERS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.0, 10.0),
}
INTEGER_SAMPLERS: Final = frozenset({"top_k"})

# Accepted and without effect here, with the values that mean "as usual".
NO_OPS: Final[dict[str, tuple[object, ...]]] = {
    "store": (False, None),
    "service_tier": ("auto", "default", None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "n": (1, None),
    "parallel_tool_calls": (True, None),
    "logit_bias": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
}
IGNORED: Final = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request. `sampling` holds only the numbers that the caller gave."""

    model: str
    messages: tuple[dict[str, object], ...]  # role and content, the content a string
    max_output: int | None
    stop: tuple[str, ...] = ()
    seed: int | None = None  # 0 to 2**32-1, whatever integer the client gave
    sampling: dict[str, float] = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    resume: tuple[int, ...] = ()

    @property
    def job(self) -> Job:
        """The request's size."""
        prompt = sum(
            len(str(message["role"]).encode()) + len(str(message["content"]).encode())
            for message in self.messages
        )
        return Job(
            task=Task.CHAT,
            model=self.model,
            prompt_bytes=prompt,
            messages=len(self.messages),
            resume_units=len(self.resume),
            max_output=self.max_output,
            stream=self.stream,
        )

    def encode(self) -> bytes:
        """The body that a gateway sends to a node: every value explicit."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": list(self.messages),
            "stream": self.stream,
            **self.sampling,
        }
        if self.max_output is not None:
            body["max_tokens"] = self.max_output
        if self.seed is not None:
            body["seed"] = self.seed
        if self.stop:
            body["stop"] = list(self.stop)
        if self.stream:
            body["stream_options"] = {"include_usage": self.include_usage}
        if self.resume:
            body["inferpool"] = {"resume": list(self.resume)}
        return orjson.dumps(body)

    @classmethod
    def parse(cls, data: bytes) -> ChatRequest:
        """Validate a body. Raises BadRequest with a stable code and the parameter's name."""
        return _parse(data)


def _fail(param: str, message: str, code: str = "invalid_request") -> NoReturn:
    raise BadRequest(message, code=code, param=param)


def read_json(data: bytes, limit: int) -> dict[str, object]:
    """A JSON object of at most `limit` bytes. Raises BadRequest."""
    if len(data) > limit:
        raise BadRequest(f"The body is over {limit} bytes.", code="body_too_large")
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    return body


def _parse(data: bytes) -> ChatRequest:
    body = read_json(data, BODY_CHAT_MAX)
    model = _model(body.pop("model", None))
    messages = _messages(body.pop("messages", None))
    stream = _flag(body.pop("stream", None), "stream")
    request = ChatRequest(
        model=model,
        messages=messages,
        max_output=_max_output(body),
        stop=_stop(body.pop("stop", None)),
        seed=_seed(body.pop("seed", None)),
        sampling=_sampling(body),
        stream=stream,
        include_usage=_include_usage(body.pop("stream_options", None), stream),
        resume=_resume(body.pop("inferpool", None)),
    )
    _refuse_rest(body)
    return request


def _refuse_rest(body: dict[str, object]) -> None:
    for name, value in body.items():
        if name in IGNORED or any(_same(value, usual) for usual in NO_OPS.get(name, ())):
            continue
        _fail(
            name[:TEXT_MAX],
            f"The parameter {name[:TEXT_MAX]!r} with this value is not served; leave it out.",
            "unsupported_parameter",
        )


def _same(value: object, usual: object) -> bool:
    return type(value) is type(usual) and value == usual  # in Python, True == 1


def _model(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > TEXT_MAX:
        _fail("model", "model must name a model; GET /v1/models lists them.")
    return value


def _messages(value: object) -> tuple[dict[str, object], ...]:
    if not isinstance(value, list) or not value:
        _fail("messages", "messages must be a list with at least one message.")
    if len(value) > MESSAGES_MAX:
        _fail("messages", f"messages may hold at most {MESSAGES_MAX} messages.")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def _message(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        _fail(path, f"{path} must be an object with role and content.")
    role = value.get("role")
    if role not in ROLES:
        _fail(f"{path}.role", f"{path}.role must be one of {', '.join(ROLES)}.")
    known = {"role", "content", "name", "refusal", "audio", "tool_calls", "function_call"}
    extra = {key for key, item in value.items() if key not in known}
    extra |= {
        key for key in ("name", "refusal", "audio", "tool_calls", "function_call") if value.get(key)
    }
    if extra:
        name = f"{path}.{min(extra)[:TEXT_MAX]}"
        _fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")
    role = "system" if role == "developer" else role
    return {"role": role, "content": _content(value.get("content"), f"{path}.content")}


def _content(value: object, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        _fail(path, f"{path} must be a string or a list of text parts.")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            _fail(path, f"{path} may hold text parts only.", "unsupported_parameter")
        extra = part.keys() - {"type", "text"}
        if extra:
            name = f"{path}.{min(extra)[:TEXT_MAX]}"
            _fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")
        text = part.get("text")
        if not isinstance(text, str):
            _fail(path, f"{path}: a text part needs a string in text.")
        texts.append(text)
    return "".join(texts)


def _flag(value: object, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    _fail(name, f"{name} must be true or false.")


def _integer(value: object, name: str, least: int, greatest: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
        _fail(name, f"{name} must be an integer from {least} to {greatest}.")
    return value


def _seed(value: object) -> int | None:
    """OpenAI's signed 64 bits, reduced to the 32 that engines draw from and receipts name."""
    seed = _integer(value, "seed", -(2**63), 2**63 - 1)
    return None if seed is None else seed % 2**32


def _max_output(body: dict[str, object]) -> int | None:
    values = [
        _integer(body.pop(name, None), name, 1, OUTPUT_UNITS_MAX)
        for name in ("max_completion_tokens", "max_tokens")
    ]
    given = {value for value in values if value is not None}
    if len(given) > 1:
        _fail("max_tokens", "max_tokens and max_completion_tokens differ; send one of them.")
    return given.pop() if given else None


def _stop(value: object) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOP_MAX:
        _fail("stop", f"stop must be a string or a list of at most {STOP_MAX} strings.")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= STOP_TEXT_MAX:
            _fail("stop", f"each stop must be a string of 1 to {STOP_TEXT_MAX} characters.")
    return tuple(stops)


def _sampling(body: dict[str, object]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, (least, greatest) in SAMPLERS.items():
        value = body.pop(name, None)
        if value is None:
            continue
        kinds = (int,) if name in INTEGER_SAMPLERS else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
            _fail(name, f"{name} must be a number from {least} to {greatest}.")
        if not least <= value <= greatest:
            _fail(name, f"{name} must be a number from {least} to {greatest}.")
        numbers[name] = value
    return numbers


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        _fail("stream_options", "stream_options is only allowed when stream is true.")
    if not isinstance(value, dict):
        _fail("stream_options", "stream_options must be an object.")
    for name in value:
        if name not in ("include_usage", "include_obfuscation"):
            _fail(
                f"stream_options.{name[:TEXT_MAX]}",
                "This stream option is not served; leave it out.",
                "unsupported_parameter",
            )
    return _flag(value.get("include_usage"), "stream_options.include_usage")


def _resume(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not value.keys() <= {"resume"}:
        _fail("inferpool", "inferpool must be an object; the only member served is resume.")
    ids = value.get("resume", [])
    if not isinstance(ids, list) or len(ids) > RESUME_MAX:
        _fail("inferpool.resume", f"resume must be a list of at most {RESUME_MAX} token ids.")
    for item in ids:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 2**32:
            _fail("inferpool.resume", "resume must hold token ids from 0 to 2**32-1.")
    return tuple(ids)
