"""The two forms that generated text leaves in: chat and plain completions.

A form builds a whole answer and the chunks of a streamed one, and reads a chunk's text back. Both
sides of a hop use it, so that the route decides the form and nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from inferpool.protocol import answers, logprobs
from inferpool.protocol.calls import CallDelta, read_deltas
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.logprobs import TokenLogprob, Tokens
from inferpool.protocol.text import TextRequest
from inferpool.protocol.usage import Usage

Value = dict[str, object]
Calls = Sequence[Value]


class Form(Protocol):
    """How one API writes text. `head` is what all chunks of an answer have in common."""

    path: str
    id_prefix: str
    chunk_object: str

    def first(self, head: Value) -> Value | None:
        """The chunk that opens a stream, where the API has one."""
        ...

    def piece(self, head: Value, text: str, told: Value | None = None, calls: Calls = ()) -> Value:
        """A chunk with text; `told`: its `logprobs`; `calls`: its `tool_calls`, in chat."""
        ...

    def logprobs(self, tokens: Tokens, offset: int) -> Value:
        """The object `logprobs` of a choice; `offset`: characters of the answer before these."""
        ...

    def tokens_of(self, choice: Value) -> tuple[TokenLogprob, ...]:
        """The same, read back. Raises ValueError, LookupError, TypeError, AttributeError."""
        ...

    def calls_of(self, choice: Value) -> tuple[CallDelta, ...]:
        """The calls in a chunk's choice. Raises as `tokens_of` does."""
        ...

    def last(self, head: Value, finish: str, told: Value | None = None) -> Value:
        """The chunk with the finish reason, without text."""
        ...

    def whole(
        self,
        head: Value,
        text: str,
        finish: str,
        usage: Usage,
        told: Value | None = None,
        calls: Calls = (),
    ) -> Value:
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

    def piece(self, head: Value, text: str, told: Value | None = None, calls: Calls = ()) -> Value:
        """A delta."""
        delta: Value = {"content": text} if text or not calls else {}
        if calls:
            delta["tool_calls"] = list(calls)
        return answers.chunk(head, delta, None, told)

    def logprobs(self, tokens: Tokens, offset: int) -> Value:
        """A list of tokens."""
        return logprobs.chat_object(tokens)

    def tokens_of(self, choice: Value) -> tuple[TokenLogprob, ...]:
        """From the list of tokens."""
        return logprobs.read_chat(choice.get("logprobs"))

    def calls_of(self, choice: Value) -> tuple[CallDelta, ...]:
        """The delta's calls."""
        delta = choice.get("delta")
        return read_deltas(delta.get("tool_calls")) if isinstance(delta, dict) else ()

    def last(self, head: Value, finish: str, told: Value | None = None) -> Value:
        """An empty delta."""
        return answers.chunk(head, {}, finish, told)

    def whole(
        self,
        head: Value,
        text: str,
        finish: str,
        usage: Usage,
        told: Value | None = None,
        calls: Calls = (),
    ) -> Value:
        """A message."""
        return answers.whole(head, text, finish, usage, told, calls)

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

    def piece(self, head: Value, text: str, told: Value | None = None, calls: Calls = ()) -> Value:
        """A choice with text."""
        return _completion(head, text, None, told)

    def logprobs(self, tokens: Tokens, offset: int) -> Value:
        """Four lists side by side."""
        return logprobs.completion_object(tokens, offset)

    def tokens_of(self, choice: Value) -> tuple[TokenLogprob, ...]:
        """From the lists."""
        return logprobs.read_completion(choice.get("logprobs"))

    def calls_of(self, choice: Value) -> tuple[CallDelta, ...]:
        """There are none."""
        return ()

    def last(self, head: Value, finish: str, told: Value | None = None) -> Value:
        """A choice without text."""
        return _completion(head, "", finish, told)

    def whole(
        self,
        head: Value,
        text: str,
        finish: str,
        usage: Usage,
        told: Value | None = None,
        calls: Calls = (),
    ) -> Value:
        """One choice, and the usage."""
        value = _completion(head, text, finish, told)
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


def _completion(head: Value, text: str, finish: str | None, told: Value | None = None) -> Value:
    choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": finish}
    return {**head, "choices": [choice]}
