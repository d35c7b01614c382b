"""OpenAI's embeddings request and answer.

Token arrays and `dimensions` are refused by name: a node's tokenizer is its model's own, and its
vectors have the length that the model gives. Source: OpenAI's API reference, `POST
/v1/embeddings`.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from sys import byteorder
from typing import Final

import orjson

from inferpool.protocol.body import fail, model_name, read_json, refuse_rest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import BODY_EMBEDDING_MAX, EMBEDDING_TEXTS_MAX
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences, take_preferences

NO_OPS: Final[dict[str, tuple[object, ...]]] = {"dimensions": (None,)}


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A valid request. `base64`: vectors as base64 of little-endian floats, not as numbers."""

    model: str
    texts: tuple[str, ...]
    base64: bool = False
    preferences: RoutePreferences = NO_PREFERENCES  # for the gateway, and never sent on

    @property
    def job(self) -> Job:
        """The request's size."""
        return Job(
            task=Task.EMBEDDING,
            model=self.model,
            prompt_bytes=sum(len(text.encode()) for text in self.texts),
            messages=len(self.texts),
        )

    def encode(self) -> bytes:
        """The body that a gateway sends to a node."""
        form = "base64" if self.base64 else "float"
        body = {"model": self.model, "input": list(self.texts), "encoding_format": form}
        return orjson.dumps(body)

    @classmethod
    def parse(cls, data: bytes) -> EmbeddingsRequest:
        """Validate a body. Raises BadRequest with a stable code and the parameter's name."""
        body = read_json(data, BODY_EMBEDDING_MAX)
        form = body.pop("encoding_format", None)
        if form not in ("float", "base64", None):
            fail("encoding_format", "encoding_format must be float or base64.")
        request = cls(
            model=model_name(body.pop("model", None)),
            texts=_texts(body.pop("input", None)),
            base64=form == "base64",
            preferences=take_preferences(body),
        )
        refuse_rest(body, NO_OPS)
        return request


def _texts(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= EMBEDDING_TEXTS_MAX:
        fail("input", f"input must be a string or a list of 1 to {EMBEDDING_TEXTS_MAX} strings.")
    for text in texts:
        if isinstance(text, int | list):
            fail("input", "Token arrays are not served; send text.", "unsupported_parameter")
        if not isinstance(text, str) or not text:
            fail("input", "each input must be a string that is not empty.")
    return tuple(texts)


def answer(model: str, vectors: Sequence[bytes], tokens: int, *, as_base64: bool) -> bytes:
    """The body of an answer. `vectors`: little-endian 32-bit floats."""
    written = base64.b64encode if as_base64 else _numbers
    data = [
        {"object": "embedding", "index": i, "embedding": _plain(written(vector))}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})


def _plain(value: bytes | list[float]) -> str | list[float]:
    return value.decode() if isinstance(value, bytes) else value


def _numbers(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
