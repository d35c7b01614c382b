"""Log-probabilities of an answer's tokens, in the shapes of OpenAI's two text routes.

Sources: OpenAI's API reference, `logprobs` of chat completion chunks and of completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from inferpool.protocol.limits import LOGPROB_TEXT_MAX, TOP_LOGPROBS_MAX

UNLIKELY: Final = -9999.0  # OpenAI's number where an engine told none


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its bytes (half a character has no text), the natural logarithm of its
    probability, and the likeliest tokens at its place with theirs."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()

    @property
    def name(self) -> str:
        """The token as text; bytes that are none stand as \\xNN."""
        return self.text.decode(errors="backslashreplace")


Tokens = Sequence[TokenLogprob]


def chat_object(tokens: Tokens) -> dict[str, object]:
    """`logprobs` of a chat choice."""
    content = [
        {
            **_entry(token.text, token.logprob),
            "top_logprobs": [_entry(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(text: bytes, logprob: float) -> dict[str, object]:
    name = text.decode(errors="backslashreplace")
    return {"token": name, "logprob": logprob, "bytes": list(text)}


def completion_object(tokens: Tokens, offset: int) -> dict[str, object]:
    """`logprobs` of a completion's choice; `offset`: characters of the text before these."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.name)
    tops = [
        {text.decode(errors="backslashreplace"): logprob for text, logprob in token.top}
        for token in tokens
    ]
    return {
        "tokens": [token.name for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


# -- what a node sent, read back: every fault raises ValueError, LookupError or TypeError ----------


def read_chat(value: Any) -> tuple[TokenLogprob, ...]:
    """The tokens of a chat choice's `logprobs`."""
    if value is None:
        return ()
    return tuple(
        TokenLogprob(
            _bytes(item), _number(item["logprob"]), tuple(map(_pair, _few(item["top_logprobs"])))
        )
        for item in value["content"] or ()
    )


def read_completion(value: Any) -> tuple[TokenLogprob, ...]:
    """The tokens of a completion choice's `logprobs`."""
    if value is None:
        return ()
    names, numbers, tops = value["tokens"], value["token_logprobs"], value["top_logprobs"]
    return tuple(
        TokenLogprob(
            _text(name),
            _number(number),
            tuple((_text(n), _number(p)) for n, p in _few(list(top.items()))),
        )
        for name, number, top in zip(names, numbers, tops, strict=True)
    )


def _pair(item: Any) -> tuple[bytes, float]:
    return _bytes(item), _number(item["logprob"])


def _bytes(item: Any) -> bytes:
    if not isinstance(item["bytes"], list):  # of a number, Python makes so many zeros
        raise TypeError("a token's bytes are a list")
    return _bounded(bytes(item["bytes"]))


def _text(name: Any) -> bytes:
    if not isinstance(name, str):
        raise TypeError("a token is a text")
    return _bounded(name.encode())


def _bounded(text: bytes) -> bytes:
    if len(text) > LOGPROB_TEXT_MAX:
        raise ValueError("a token is longer than any vocabulary has")
    return text


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not UNLIKELY <= value <= 0.0:
        raise ValueError("a log-probability is a number up to 0")
    return float(value)


def _few(items: Any) -> Any:
    if not isinstance(items, list) or len(items) > TOP_LOGPROBS_MAX:
        raise ValueError(f"at most {TOP_LOGPROBS_MAX} tokens at one place")
    return items


# -- what another server sent: nearly OpenAI's shapes ----------------------------------------------


def read_upstream(value: Any, most: int) -> tuple[TokenLogprob, ...]:
    """The tokens of a choice's `logprobs` in either shape, with at most so many alternatives each.

    Bytes may be left out, and a number may be above 0 by rounding or below any that JSON has.
    Raises as the others do.
    """
    if not value:
        return ()
    if "content" in value:
        entries = [
            (item, [(t, t["logprob"]) for t in item.get("top_logprobs") or ()])
            for item in value["content"] or ()
        ]
        return tuple(
            TokenLogprob(_loose_text(i), _loose(i["logprob"]), _loose_top(top, most))
            for i, top in entries
        )
    tops = value.get("top_logprobs") or [{}] * len(value["tokens"])
    return tuple(
        TokenLogprob(_text(name), _loose(number), _loose_top(list((top or {}).items()), most))
        for name, number, top in zip(value["tokens"], value["token_logprobs"], tops, strict=True)
    )


def _loose_top(items: list[tuple[Any, Any]], most: int) -> tuple[tuple[bytes, float], ...]:
    return tuple(
        (_text(item) if isinstance(item, str) else _loose_text(item), _loose(number))
        for item, number in items[:most]
    )


def _loose_text(item: Any) -> bytes:
    return _text(item["token"]) if item.get("bytes") is None else _bytes(item)


def _loose(value: Any) -> float:
    if value is None:  # minus infinity, which JSON has not
        return UNLIKELY
    return _number(min(0.0, max(UNLIKELY, value)))
