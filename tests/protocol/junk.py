"""What a stranger may send instead of a valid body."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st

from inferpool.protocol.errors import InferpoolError

T = TypeVar("T")


def answer(parse: Callable[[bytes], T], data: bytes) -> T | InferpoolError:
    """What a parser makes of some bytes; any other exception than ours fails the test."""
    try:
        return parse(data)
    except InferpoolError as error:
        return error


# Letters with a lone surrogate and a control character among them.
texts = st.text(st.sampled_from('ab0x \u0000\n\u007fé模🦙\ud800"\\'), max_size=8)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**32, 2**53, 2**63, 2**64, 2**128, 10**400, -(2**63), -(2**64)]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["9" * 5_000, "0x", "0x" + "0" * 64, "text", "x" * 300, "9007199254740992"]),
    texts,
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)

DEEP = [b'{"a":' * 1_100, b"[" * 100_000, b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}"]
DUPLICATE = b'{"version":1,"version":2,"model":"a","model":["b"],"inputs":[],"inputs":{}}'

raw = st.one_of(
    st.binary(max_size=200),
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([*DEEP, DUPLICATE, b"", b"\xef\xbb\xbf{}", b'"\\ud800"', b"{}{}", b"NaN"]),
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a value."""
    found = [prefix] if prefix else []
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, item in pairs:
        found += paths(item, (*prefix, key))
    return found


def put(value: Any, path: tuple[Any, ...], item: Any) -> Any:
    """A copy of a value with another item in one place."""
    copy: Any = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = item if len(path) == 1 else put(value[path[0]], path[1:], item)
    return copy


@st.composite
def mutated(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """A valid body with a member replaced, lost or added, a byte changed or the end cut off."""
    path = draw(st.sampled_from(paths(body)))
    kind = draw(st.sampled_from(["replace", "lose", "add", "byte", "cut"]))
    if kind == "replace":
        return json.dumps(put(body, path, draw(values))).encode()
    if kind == "add":
        where = draw(st.sampled_from([(), *(p for p in paths(body) if _is_dict(body, p))]))
        return json.dumps(put(body, (*where, draw(texts)), draw(values))).encode()
    if kind == "lose" and isinstance(path[-1], str):
        parent = _at(body, path[:-1])
        rest = {key: item for key, item in parent.items() if key != path[-1]}
        return json.dumps(put(body, path[:-1], rest) if path[:-1] else rest).encode()
    text = bytearray(json.dumps(body).encode())
    place = draw(st.integers(0, len(text) - 1))
    if kind == "byte":
        text[place] = draw(st.integers(0, 255))
        return bytes(text)
    return bytes(text[:place])


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _is_dict(body: Any, path: tuple[Any, ...]) -> bool:
    return isinstance(_at(body, path), dict)
