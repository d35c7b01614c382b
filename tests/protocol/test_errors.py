"""Each code has a status and a type; bodies have the shapes of the two APIs."""

from __future__ import annotations

import re

import pytest

from inferpool.protocol import errors
from inferpool.protocol.errors import CODES, InferpoolError

CLASSES = [
    kind
    for kind in (InferpoolError, *InferpoolError.__subclasses__())
    if kind.__module__ == errors.__name__  # other modules refine them
]
OPENAI_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "insufficient_quota",
    "server_error",
    "payment_error",
}


@pytest.mark.parametrize("code", CODES)
def test_code(code: str) -> None:
    status, kind, meaning = CODES[code]
    assert re.fullmatch("[a-z]+(_[a-z0-9]+)*", code)
    assert status in {400, 401, 402, 403, 404, 405, 409, 413, 415, 422, 429, 500, 502, 503, 504}
    assert kind in OPENAI_TYPES
    assert (kind == "server_error") == (status >= 500)
    assert meaning.endswith(".")
    error = InferpoolError("What to do.", code=code, param="model", retry_after_s=2)
    assert (error.status, error.type, error.code) == (status, kind, code)
    assert str(error) == "What to do."
    assert error.retry_after_s == 2
    assert error.openai() == {
        "error": {"message": "What to do.", "type": kind, "param": "model", "code": code}
    }
    assert error.oip() == {"error": "What to do.", "code": code}


@pytest.mark.parametrize("kind", CLASSES)
def test_class(kind: type[InferpoolError]) -> None:
    error = kind("What to do.")
    assert error.code == kind.default
    assert error.code in CODES
    assert (error.param, error.retry_after_s) == (None, None)
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


def test_unlisted_codes_are_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="unlisted error code nonsense"):
        InferpoolError("x", code="nonsense")


def test_one_tree() -> None:
    assert {kind.__name__ for kind in CLASSES} == {
        "InferpoolError",
        "BadRequest",
        "Unauthorized",
        "PaymentRequired",
        "RateLimited",
        "Unavailable",
        "Refused",
    }
