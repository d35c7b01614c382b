"""llama.cpp's own API, both ways: a `TextCall` as a request, its event stream as `TextChunk`s.

`/completion` is used for chat too, after `/apply-template`: `/v1/chat/completions` drops token
ids. A token whose text is held back (half a character, or the start of a stop text) yields no
chat chunk, and the chunk that follows carries only the last id. `/completion` has an id for each
token, but for those that end within a character; these are found again, see `_gap`. Stop texts
are looked for here: the server loses what it held back when an answer ends at its limit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import orjson

from inferpool.engines.base import (
    UNKNOWN_LOGPROB,
    FinishReason,
    Phase,
    Progress,
    TextCall,
    TextChunk,
)
from inferpool.engines.grammar import CALL_PATTERN, gbnf
from inferpool.engines.stop_text import StopText
from inferpool.engines.watch import attended
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import ENGINE_SILENCE_S
from inferpool.protocol.logprobs import UNLIKELY, TokenLogprob
from inferpool.protocol.shape import Shape
from inferpool.protocol.tools import CALL_CLOSE, CALL_OPEN, Tools
from inferpool.transport.base import Response
from inferpool.transport.sse import Comment, events

Tokenize = Callable[[str], Awaitable[list[int]]]

# llama.cpp reads this seed as "draw one yourself"; no call may be unrepeatable.
_RANDOM_SEED: Final = 2**32 - 1
_PATTERN: Final = 2  # a kind of trigger: a regular expression
MAX_ERROR_BYTES: Final = 64 * 1024
# Unknown names are dropped silently by the server, so this list is part of the contract.
SAMPLERS: Final = ["penalties", "top_k", "top_p", "min_p", "temperature"]
# Every other sampler number, neutral, so that no default of another release can matter.
_NEUTRAL: Final[dict[str, object]] = {
    "repeat_last_n": 64,
    "min_keep": 0,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "dry_multiplier": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "ignore_eos": False,
    "n_keep": 0,
}


def completion_body(call: TextCall, prompt: str | list[int]) -> bytes:
    """The body of `/completion`, always a stream: a left stream stops at once, a whole answer not.

    `cache_prompt` is off: a prompt that is continued from a cache is prefilled in other batches,
    which rounds differently, and greedy answers then depend on what ran in that slot before.
    """
    sampling = call.sampling
    seed = sampling.seed if sampling.seed != _RANDOM_SEED else _RANDOM_SEED - 1
    return orjson.dumps(
        {
            **_NEUTRAL,
            "prompt": prompt,
            "n_predict": call.max_output,
            "seed": seed,
            "samplers": SAMPLERS,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "stream": True,
            "cache_prompt": False,
            "return_progress": True,
            "return_tokens": True,
            # Not unless they are asked for: the server sorts the whole vocabulary at each token.
            "n_probs": 0 if call.top_logprobs is None else max(1, call.top_logprobs),
            "post_sampling_probs": False,  # the model's own probabilities, as an audit computes
            **({"logit_bias": call.logit_bias} if call.logit_bias else {}),
            **_held_to(call.shape),
        }
    )


def _held_to(shape: Shape | None) -> dict[str, object]:
    """A grammar for the answer; where it may be text too, the grammar begins with the first call.

    The grammar is ours, and never the server's from a schema: what it cannot express is known.
    """
    if shape is None:
        return {}
    held: dict[str, object] = {"grammar": gbnf(shape)}
    if isinstance(shape, Tools):
        held["preserved_tokens"] = [CALL_OPEN, CALL_CLOSE]  # models that have them as one token
        if not shape.forced:
            trigger = {"type": _PATTERN, "value": CALL_PATTERN}
            held |= {"grammar_lazy": True, "grammar_triggers": [trigger]}
    return held


def template_messages(messages: tuple[dict[str, object], ...]) -> list[dict[str, str]]:
    """Messages for `/apply-template`, with their text. Raises BadRequest for other content."""
    return [{"role": str(m.get("role")), "content": _text(m.get("content"))} for m in messages]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(
            "this model takes text content only", code="unsupported_parameter", param="messages"
        )
    return "".join(map(str, texts))


async def refusal(response: Response) -> BadRequest | Unavailable:
    """The error in an answer that is not 200, as one of ours, to be raised."""
    body = await response.read(MAX_ERROR_BYTES)
    try:
        error: Any = orjson.loads(body).get("error", {})
        kind, message = str(error.get("type")), str(error.get("message"))
    except (orjson.JSONDecodeError, AttributeError):
        kind, message = "", body[:200].decode(errors="replace")
    if kind == "exceed_context_size_error":
        return BadRequest(message, code="context_length_exceeded")
    if response.status == 400 and kind == "invalid_request_error":
        return BadRequest(f"the engine refuses the request: {message}")
    if response.status == 503:
        return Unavailable(f"the engine is loading: {message}", code="engine_unavailable")
    return Unavailable(f"the engine answered {response.status}: {message}", code="engine_failed")


def _logprob(value: Any) -> float:
    """JSON has no infinity, and rounding gives numbers a little above 0."""
    return UNLIKELY if value is None else min(0.0, max(UNLIKELY, float(value)))


class CompletionReader:
    """Reads one `/completion` stream. Raises Unavailable(engine_failed) where it ends early, and
    EngineSilent where it goes silent."""

    def __init__(
        self,
        stop: tuple[str, ...],
        progress: Progress,
        tokenize: Tokenize,
        top_logprobs: int | None = None,
        silence_s: float = ENGINE_SILENCE_S,
    ) -> None:
        self._silence_s = silence_s
        self._stop = StopText(stop)
        self._top = top_logprobs
        self._progress = progress
        self._tokenize = tokenize
        self._seen = 0  # tokens that the engine has counted so far

    async def chunks(self, response: Response) -> AsyncGenerator[TextChunk, None]:
        """The stream's chunks; the last one has the finish reason and the prompt's tokens."""
        async with aclosing(attended(events(response), self._silence_s)) as found:
            async for event in found:
                if isinstance(event, Comment) or event.data == b"[DONE]":
                    continue
                try:
                    chunk = await self._chunk(orjson.loads(event.data))
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    message = f"the engine sent an event that is not understood: {error!r}"
                    raise Unavailable(message, code="engine_failed") from error
                if chunk is not None:
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
        raise Unavailable("the engine's stream ended early", code="engine_failed")

    async def _chunk(self, event: dict[str, Any]) -> TextChunk | None:
        if "error" in event:
            told = event["error"].get("message")
            raise Unavailable(f"the engine failed: {told}", code="engine_failed")
        if "prompt_progress" in event:  # its `tokens` are not an answer's
            self._progress.phase = Phase.PREFILL
            self._progress.count = event["prompt_progress"]["processed"]
            self._progress.prompt_units = event["prompt_progress"].get("total")
            return None
        if event["stop"]:
            reason: FinishReason = "length" if event["stop_type"] == "limit" else "stop"
            return TextChunk(self._stop.rest(), (), (), reason, event["tokens_evaluated"])
        (last,) = event["tokens"]
        entry = None if self._top is None else event["completion_probabilities"][0]
        counted = event["tokens_predicted"]
        missing, self._seen = counted - self._seen - 1, counted
        self._progress.phase, self._progress.count = Phase.TOKENS, counted
        text, stopped = self._stop.take(event["content"])
        ids: tuple[int, ...] = (last,)
        logprob = UNKNOWN_LOGPROB if entry is None else entry["logprob"]
        logprobs: tuple[float, ...] = (logprob,)
        if missing:
            ids, logprobs = await self._gap(event["content"], last, logprob, missing)
        tokens = () if entry is None else self._told(entry, event["content"], len(ids) - 1)
        if stopped:  # the reader closes the stream, and the engine goes no further
            units = event["tokens_evaluated"]
            return TextChunk(text, ids, logprobs, "stop", units, tokens=tokens)
        return TextChunk(text, ids, logprobs, tokens=tokens)

    def _told(self, entry: dict[str, Any], text: str, before: int) -> tuple[TokenLogprob, ...]:
        """The event's tokens: its own, and `before` it those that the engine kept to itself. Of
        these only their bytes together are known, and no probability."""
        own = bytes(entry["bytes"])
        pairs = [(bytes(o["bytes"]), _logprob(o["logprob"])) for o in entry["top_logprobs"]]
        last = TokenLogprob(own, _logprob(entry["logprob"]), tuple(pairs[: self._top]))
        rest = text.encode().removesuffix(own) if before else b""
        held = [TokenLogprob(rest if i == 0 else b"", UNLIKELY) for i in range(before)]
        return (*held, last)

    async def _gap(
        self, text: str, last: int, logprob: float, missing: int
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Tokens that ended within a character: the engine keeps their ids to itself.

        The character's text has one usual way to be cut into tokens, and a model that was trained
        on it takes that way. Where count and last id agree, those are the ids; their
        log-probabilities stay unknown. Where they do not, the known id stands alone: the
        provider counts less than it produced, and nobody is charged for a guess.
        """
        ids = await self._tokenize(text)
        if len(ids) == missing + 1 and ids[-1] == last:
            return tuple(ids), (*[UNKNOWN_LOGPROB] * missing, logprob)
        return (last,), (UNKNOWN_LOGPROB,)
