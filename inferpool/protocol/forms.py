"""The two forms that generated text leaves in: chat and plain completions.

A form builds a whole answer and the chunks of a streamed one, and reads a chunk's text back. Both
sides of a hop use it, so that the route decides the form and nothing else does.
"""

from __future__ import annotations

from typing import Final, Protocol

from inferpool.protocol import answers
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.text import TextRequest
from inferpool.protocol.usage import Usage

Value = dict[str, object]


class Form(Protocol):
    """How one API writes text. `head` is what all chunks of an answer have in common."""

    path: str
    id_prefix: str
    chunk_object: str

    def first(self, head: Value) -> Value | None:
        """The chunk that opens a stream, where the API has one."""
        ...

    def piece(self, head: Value, text: str) -> Value:
        """A chunk with text."""
        ...

    def last(self, head: Value, finish: str) -> Value:
        """The chunk with the finish reason, without text."""
        ...

    def whole(self, head: Value, text: str, finish: str, usage: Usage) -> Value:
        """A whole answer."""
        ...

    def text_of(self, choice: Value) -> object:
        """The text in a chunk's choice; anything but a string: none."""
        ...


class ChatForm:
    """`/v1/chat/completions`."""

    path = "/v1/chat/completions"
    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"

    def first(self, head: Value) -> Value | None:
        """The role."""
        return answers.chunk(head, {"role": "assistant", "content": ""}, None)

    def piece(self, head: Value, text: str) -> Value:
        """A delta."""
        return answers.chunk(head, {"content": text}, None)

    def last(self, head: Value, finish: str) -> Value:
        """An empty delta."""
        return answers.chunk(head, {}, finish)

    def whole(self, head: Value, text: str, finish: str, usage: Usage) -> Value:
        """A message."""
        return answers.whole(head, text, finish, usage)

    def text_of(self, choice: Value) -> object:
        """The delta's content."""
        delta = choice.get("delta")
        return delta.get("content") if isinstance(delta, dict) else None


class CompletionForm:
    """`/v1/completions`."""

    path = "/v1/completions"
    id_prefix = "cmpl-"
    chunk_object = "text_completion"

    def first(self, head: Value) -> Value | None:
        """There is none."""
        return None

    def piece(self, head: Value, text: str) -> Value:
        """A choice with text."""
        return _completion(head, text, None)

    def last(self, head: Value, finish: str) -> Value:
        """A choice without text."""
        return _completion(head, "", finish)

    def whole(self, head: Value, text: str, finish: str, usage: Usage) -> Value:
        """One choice, and the usage."""
        value = _completion(head, text, finish)
        return {**value, "usage": answers.usage_object(usage)}

    def text_of(self, choice: Value) -> object:
        """The choice's text."""
        return choice.get("text")


CHAT: Final[Form] = ChatForm()
COMPLETION: Final[Form] = CompletionForm()


def form_of(request: TextRequest) -> Form:
    """The form that a request is answered in."""
    return CHAT if isinstance(request, ChatRequest) else COMPLETION


def head(form: Form, answer_id: str, model: str, created_s: int) -> Value:
    """What all chunks of one answer have in common, but for the fingerprint."""
    return {
        "id": form.id_prefix + answer_id,
        "object": form.chunk_object,
        "created": created_s,
        "model": model,
    }


def _completion(head: Value, text: str, finish: str | None) -> Value:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return {**head, "choices": [choice]}
