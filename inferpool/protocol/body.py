"""Reading a request's JSON body: each fault names its parameter, nothing is dropped silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

import orjson

from inferpool.protocol.encoding import SAFE_INTEGER_MAX
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import TEXT_MAX

# Accepted on every route and without effect: they name the caller's own things.
IGNORED: Final = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


def fail(param: str, message: str, code: str = "invalid_request") -> NoReturn:
    """Raise BadRequest that names a parameter."""
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


def refuse_rest(body: Mapping[str, object], no_ops: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse by name whatever is left in a body and would have an effect."""
    for name, value in body.items():
        if name in IGNORED or any(_same(value, usual) for usual in no_ops.get(name, ())):
            continue
        fail(
            name[:TEXT_MAX],
            f"The parameter {name[:TEXT_MAX]!r} with this value is not served; leave it out.",
            "unsupported_parameter",
        )


def _same(value: object, usual: object) -> bool:
    return type(value) is type(usual) and value == usual  # in Python, True == 1


def model_name(value: object) -> str:
    """The model that a body names. Raises BadRequest."""
    if not isinstance(value, str) or not value or len(value) > TEXT_MAX:
        fail("model", "model must name a model; GET /v1/models lists them.")
    return value


def flag(value: object, name: str) -> bool:
    """true or false; null is false. Raises BadRequest."""
    if value is None or isinstance(value, bool):
        return bool(value)
    fail(name, f"{name} must be true or false.")


def integer(value: object, name: str, least: int, greatest: int) -> int | None:
    """A whole number within bounds, or None; 1.0 is whole too. Raises BadRequest."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) <= SAFE_INTEGER_MAX:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
        fail(name, f"{name} must be an integer from {least} to {greatest}.")
    return value


def seed_of(value: object) -> int | None:
    """OpenAI's signed 64 bits, reduced to the 32 that engines draw from and receipts name."""
    seed = integer(value, "seed", -(2**63), 2**63 - 1)
    return None if seed is None else seed % 2**32
