"""OpenAI's API from the client's side: a `TextCall` as a request, its stream as `TextChunk`s.

The five sampler numbers of OpenAI go to every server. Three more have no common name: they are
sent where the server's kind is known, and elsewhere refused unless they ask for nothing, since
many servers drop what they do not know. Log-probabilities, biases, forms and functions go to
servers whose owner declared them, in OpenAI's own words; what comes back is checked
(`openai_shape`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import StrEnum
from typing import Any, Final

import orjson

from inferpool.engines.base import FinishReason, TextCall, TextChunk
from inferpool.engines.openai_shape import Answered
from inferpool.engines.watch import attended
from inferpool.protocol import logprobs, parameters
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import ANSWER_TIMEOUT_S
from inferpool.protocol.logprobs import TokenLogprob
from inferpool.protocol.shape import JsonShape
from inferpool.protocol.tools import Tools
from inferpool.transport.base import Response
from inferpool.transport.sse import Comment, events

MAX_ERROR_BYTES: Final = 64 * 1024
_PIECES: Final = 8  # of one token: some servers send single characters
_FINISHES: Final[dict[object, FinishReason]] = {"stop": "stop", "length": "length", "eos": "stop"}


class Dialect(StrEnum):
    """Kinds of servers whose names for further sampler numbers are known."""

    LLAMACPP = "llamacpp"
    VLLM = "vllm"
    PLAIN = "plain"


def dialect_of(owned_by: str) -> Dialect:
    """The kind of a server by the owner that its list of models names."""
    return {"llamacpp": Dialect.LLAMACPP, "vllm": Dialect.VLLM}.get(owned_by, Dialect.PLAIN)


def request_of(
    call: TextCall, model: str, dialect: Dialect, declared: frozenset[str] = frozenset()
) -> tuple[str, bytes]:
    """Path and body. Raises BadRequest(unsupported_parameter) for what would be dropped."""
    _refuse_undeclared(call, declared)
    sampling = call.sampling
    body: dict[str, object] = {
        "model": model,
        "max_tokens": call.max_output,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": _seed(sampling.seed, dialect),
        "stream": True,
        "stream_options": {"include_usage": True},
        **_further(call, dialect),
    }
    if call.stop:
        body["stop"] = list(call.stop)
    if call.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in call.logit_bias}
    if isinstance(call.shape, Tools):
        body |= call.shape.asked
    elif call.shape is not None:
        body["response_format"] = call.shape.asked
    top = call.top_logprobs
    if top is not None and dialect is Dialect.LLAMACPP:
        top = max(1, top)  # of none it tells nothing at all
    if call.messages is None:
        told = {} if top is None else {"logprobs": top}
        return "/v1/completions", orjson.dumps({**body, **told, "prompt": call.prompt or ""})
    told = {} if top is None else {"logprobs": True, "top_logprobs": top}
    own = call.conversation if parameters.TOOLS in declared else None  # it writes calls itself
    messages = list(own or call.messages)
    return "/v1/chat/completions", orjson.dumps({**body, **told, "messages": messages})


def _refuse_undeclared(call: TextCall, declared: frozenset[str]) -> None:
    asked = {
        parameters.LOGIT_BIAS: bool(call.logit_bias),
        parameters.LOGPROBS: call.top_logprobs is not None,
        parameters.RESPONSE_FORMAT: isinstance(call.shape, JsonShape),
        parameters.TOOLS: isinstance(call.shape, Tools),
    }
    for name in filter(asked.__getitem__, asked):
        if name not in declared:
            raise BadRequest(
                f"The server of this model does not take {name!r}; leave it out.",
                code="unsupported_parameter",
                param=name,
            )


def _seed(seed: int, dialect: Dialect) -> int:
    """llama.cpp reads the greatest seed as "draw one yourself"; no call may be unrepeatable."""
    return min(seed, 2**32 - 2) if dialect is Dialect.LLAMACPP else seed


def _further(call: TextCall, dialect: Dialect) -> dict[str, object]:
    sampling = call.sampling
    if dialect is Dialect.PLAIN:
        asked = {
            "top_k": sampling.top_k != 0,
            "min_p": sampling.min_p != 0.0,
            "repeat_penalty": sampling.repeat_penalty != 1.0,
        }
        for name in filter(asked.__getitem__, asked):
            raise BadRequest(
                f"The server of this model does not take {name!r}; leave it out.",
                code="unsupported_parameter",
                param=name,
            )
        return {}
    penalty = "repeat_penalty" if dialect is Dialect.LLAMACPP else "repetition_penalty"
    return {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        penalty: sampling.repeat_penalty,
    }


async def refusal(response: Response) -> BadRequest | Unavailable:
    """The error in an answer that is not 200, as one of ours, to be raised."""
    body = await response.read(MAX_ERROR_BYTES)
    try:
        value: Any = orjson.loads(body)
        error = value.get("error", value)
        message = str(error.get("message") if isinstance(error, dict) else error)
        code = str(error.get("code") or error.get("type")) if isinstance(error, dict) else ""
    except (orjson.JSONDecodeError, AttributeError):
        message, code = body[:200].decode(errors="replace"), ""
    if response.status in (400, 413, 422):
        long = "context" in code or "context length" in message or "context size" in message
        return BadRequest(
            f"The server refuses the request: {message[:2000]}",
            code="context_length_exceeded" if long else "invalid_request",
        )
    busy = response.status in (429, 503)
    return Unavailable(
        f"The server answered {response.status}: {message[:2000]}",
        code="engine_unavailable" if busy else "engine_failed",
    )


class AnswerReader:
    """Reads one stream. Raises Unavailable(engine_failed) where it ends early or makes no sense."""

    def __init__(self, call: TextCall) -> None:
        self._max_output, self._chat = call.max_output, call.messages is not None
        self._top = call.top_logprobs
        self._answered = Answered(call.shape)
        self._counted = 0  # chunks with text, then the server's usage
        self._pieces = 0
        self._finish: FinishReason | None = None
        self._prompt_units: int | None = None
        self._tokens: tuple[TokenLogprob, ...] = ()  # told, and not passed on yet

    async def chunks(self, response: Response) -> AsyncGenerator[TextChunk, None]:
        """The stream's chunks; the last one has the finish reason and the prompt's tokens."""
        async with aclosing(attended(events(response), ANSWER_TIMEOUT_S)) as found:
            async for event in found:
                if isinstance(event, Comment):
                    continue
                if event.data == b"[DONE]":
                    break
                text = self._read(event.data)
                if text:
                    yield TextChunk(text, output_units=self._counted, tokens=self._taken())
                if self._pieces > _PIECES * self._max_output and self._finish is None:
                    self._finish = "length"  # it does not know the limit that was asked for
                    break
        # Usage comes after the finish reason, so that only the stream's end ends the answer. Some
        # servers close without [DONE]; an answer without a finish reason was cut.
        if self._finish is None:
            raise Unavailable("the server's stream ended early", code="engine_failed")
        yield TextChunk(
            self._answered.rest(self._finish),
            finish_reason=self._finish,
            prompt_units=self._prompt_units or 0,
            output_units=self._counted,
            tokens=self._taken(),
        )

    def _taken(self) -> tuple[TokenLogprob, ...]:
        tokens, self._tokens = self._tokens, ()
        return tokens

    def _read(self, data: bytes) -> str:
        try:
            value: Any = orjson.loads(data)
            if "error" in value:
                raise Unavailable(f"the server failed: {value['error']}", code="engine_failed")
            text = self._choice(value.get("choices") or [])
            if value.get("usage"):
                self._usage(value["usage"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"the server sent an event that is not understood: {error!r}"
            raise Unavailable(message, code="engine_failed") from error
        return text

    def _choice(self, choices: list[Any]) -> str:
        if not choices:
            return ""
        (choice,) = choices
        finish = choice.get("finish_reason")
        if finish is not None:
            self._finish = _FINISHES.get(finish, "stop")
        delta = choice.get("delta") or {} if self._chat else {"content": choice.get("text")}
        text = str(delta.get("content") or "")
        if text or delta.get("tool_calls"):
            self._pieces += 1
            self._counted = min(self._counted + 1, self._max_output)
        self._answered.calls(delta.get("tool_calls"))
        if self._top is not None:
            self._tokens += logprobs.read_upstream(choice.get("logprobs"), self._top)
        return self._answered.text(text)

    def _usage(self, usage: dict[str, Any]) -> None:
        """The server's count, within what came and what was asked for."""
        told = int(usage["completion_tokens"])
        self._counted = min(max(told, self._counted), self._max_output)
        self._prompt_units = max(0, int(usage["prompt_tokens"]))
