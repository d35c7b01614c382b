"""OpenAI's chat answers, built in one place: a whole one, and the chunks of a streamed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from inferpool.protocol.encoding import sha256, to_hex
from inferpool.protocol.usage import Usage

DONE: Final = b"data: [DONE]\n\n"


def fingerprint(engine_class: str) -> str:
    """`system_fingerprint` of a precision class: fp_ and 10 hex digits of its SHA-256."""
    return "fp_" + sha256(engine_class.encode()).hex()[:10]


def chat_id(request_id: bytes) -> str:
    """The answer's id."""
    return "chatcmpl-" + request_id.hex()[:32]


def usage_object(usage: Usage) -> dict[str, int]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": usage.prompt_units,
        "completion_tokens": usage.output_units,
        "total_tokens": usage.prompt_units + usage.output_units,
    }


def chunk(
    head: dict[str, object],
    delta: dict[str, object],
    finish: str | None,
    logprobs: dict[str, object] | None = None,
) -> dict[str, object]:
    """One chunk of a stream; `head` has id, object, created, model, system_fingerprint."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return {**head, "choices": [choice]}


def head(request_id: bytes, model: str, engine_class: str, created_s: int) -> dict[str, object]:
    """What all chunks of one answer have in common."""
    return {
        "id": chat_id(request_id),
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": model,
        "system_fingerprint": fingerprint(engine_class),
    }


def whole(
    head: dict[str, object],
    text: str,
    finish: str,
    usage: Usage,
    logprobs: dict[str, object] | None = None,
    calls: Sequence[dict[str, object]] = (),
) -> dict[str, object]:
    """A whole answer; one that only calls has no content."""
    said = text if text or not calls else None
    message: dict[str, object] = {"role": "assistant", "content": said, "refusal": None}
    if calls:
        message["tool_calls"] = list(calls)
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage_object(usage),
    }


def event(value: dict[str, object]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def request_id_header(request_id: bytes) -> bytes:
    """A request id as headers carry it."""
    return to_hex(request_id).encode()
