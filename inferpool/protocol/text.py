"""What chat and plain completions have in common: one prompt, one generated answer.

Both sides parse the same body: the gateway what the client sent, the node what the gateway sent.
A parameter that is not served is an error that names it; a known no-op is accepted; nothing is
dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from inferpool.protocol import parameters
from inferpool.protocol.body import fail, flag, integer, model_name, seed_of
from inferpool.protocol.limits import (
    CHOICES_MAX,
    LOGIT_BIAS_MAX,
    OUTPUT_UNITS_MAX,
    RESUME_MAX,
    STOP_MAX,
    STOP_TEXT_MAX,
    TEXT_MAX,
)
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences, take_preferences
from inferpool.protocol.tools import Tools

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
BIAS_MAX: Final = 100  # OpenAI's bound; -100 bans a token, 100 forces one
INTEGER_SAMPLERS: Final = frozenset({"top_k"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What every generation has. `sampling` holds only the numbers that the caller gave."""

    model: str
    max_output: int | None  # tokens
    stop: tuple[str, ...] = ()
    seed: int | None = None  # 0 to 2**32-1, whatever integer the client gave
    sampling: dict[str, float] = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    choices: int = 1  # a gateway's: a node gives one answer an attempt
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, each with -100 to 100
    top_logprobs: int | None = None  # alternatives at each token; None: no log-probabilities
    resume: tuple[int, ...] = ()
    preferences: RoutePreferences = NO_PREFERENCES  # for the gateway, and never sent on

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what not every service takes (`parameters`)."""
        if self.top_logprobs is None and not self.logit_bias:
            return ()
        asked = {
            parameters.LOGPROBS: self.top_logprobs is not None,
            parameters.LOGIT_BIAS: bool(self.logit_bias),
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    @property
    def tools(self) -> Tools | None:
        """The functions that the answer may call."""
        return None

    @property
    def shaped(self) -> bool:
        """Whether the answer may be more than text, or has a form."""
        return False

    @property
    def held_to_form(self) -> bool:
        """Whether the whole answer must have a form."""
        return False

    @property
    def in_one_piece(self) -> bool:
        """Whether nobody can go on with an answer that another began."""
        return self.held_to_form or bool(self.stop)

    def encode_with(self, prompt: Mapping[str, object]) -> bytes:
        """The body that a gateway sends to a node: every value explicit."""
        body: dict[str, object] = {
            "model": self.model,
            **prompt,
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
        if self.choices > 1:
            body["n"] = self.choices
        if self.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in self.logit_bias}
        if self.resume:
            body["inferpool"] = {"resume": list(self.resume)}
        return orjson.dumps(body)


def take_shared(body: dict[str, object]) -> dict[str, Any]:
    """The fields of `TextRequest`, taken out of a body. Raises BadRequest."""
    stream = flag(body.pop("stream", None), "stream")
    return {
        "preferences": take_preferences(body),
        "model": model_name(body.pop("model", None)),
        "max_output": _max_output(body),
        "stop": _stop(body.pop("stop", None)),
        "seed": seed_of(body.pop("seed", None)),
        "choices": integer(body.pop("n", None), "n", 1, CHOICES_MAX) or 1,
        "logit_bias": _logit_bias(body.pop("logit_bias", None)),
        "sampling": _sampling(body),
        "stream": stream,
        "include_usage": _include_usage(body.pop("stream_options", None), stream),
        "resume": _resume(body.pop("inferpool", None)),
    }


def _max_output(body: dict[str, object]) -> int | None:
    values = [
        integer(body.pop(name, None), name, 1, OUTPUT_UNITS_MAX)
        for name in ("max_completion_tokens", "max_tokens")
    ]
    given = {value for value in values if value is not None}
    if len(given) > 1:
        fail("max_tokens", "max_tokens and max_completion_tokens differ; send one of them.")
    return given.pop() if given else None


def _stop(value: object) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOP_MAX:
        fail("stop", f"stop must be a string or a list of at most {STOP_MAX} strings.")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= STOP_TEXT_MAX:
            fail("stop", f"each stop must be a string of 1 to {STOP_TEXT_MAX} characters.")
    return tuple(stops)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > LOGIT_BIAS_MAX:
        fail("logit_bias", f"logit_bias must be an object of at most {LOGIT_BIAS_MAX} token ids.")
    found = []
    for token, bias in value.items():
        if not token.isascii() or not token.isdecimal() or len(token) > 10 or int(token) >= 2**32:
            fail("logit_bias", "logit_bias must have token ids as its keys.")
        if type(bias) not in (int, float) or not -BIAS_MAX <= bias <= BIAS_MAX:
            fail("logit_bias", f"each bias must be a number from -{BIAS_MAX} to {BIAS_MAX}.")
        found.append((int(token), float(bias)))
    return tuple(found)


def _sampling(body: dict[str, object]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, (least, greatest) in SAMPLERS.items():
        value = body.pop(name, None)
        if value is None:
            continue
        if name in INTEGER_SAMPLERS:
            value = integer(value, name, int(least), int(greatest))
        if not isinstance(value, int | float) or isinstance(value, bool):
            fail(name, f"{name} must be a number from {least} to {greatest}.")
        if not least <= value <= greatest:  # so that it is finite too
            fail(name, f"{name} must be a number from {least} to {greatest}.")
        numbers[name] = value
    return numbers


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        fail("stream_options", "stream_options is only allowed when stream is true.")
    if not isinstance(value, dict):
        fail("stream_options", "stream_options must be an object.")
    for name in value:
        if name not in ("include_usage", "include_obfuscation"):
            fail(
                f"stream_options.{name[:TEXT_MAX]}",
                "This stream option is not served; leave it out.",
                "unsupported_parameter",
            )
    return flag(value.get("include_usage"), "stream_options.include_usage")


def _resume(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not value.keys() <= {"resume"}:
        fail("inferpool", "inferpool must be an object; the only member served is resume.")
    ids = value.get("resume", [])
    if not isinstance(ids, list) or len(ids) > RESUME_MAX:
        fail("inferpool.resume", f"resume must be a list of at most {RESUME_MAX} token ids.")
    for item in ids:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 2**32:
            fail("inferpool.resume", "resume must hold token ids from 0 to 2**32-1.")
    return tuple(ids)
