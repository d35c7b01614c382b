"""The ABI's encoding against eth-abi, which shares no code with ours."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi.abi import decode as theirs_decode
from eth_abi.abi import encode as theirs_encode
from eth_abi.exceptions import DecodingError
from hypothesis import given, settings
from hypothesis import strategies as st

from inferpool.chain.abi_coding import decode, encode

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=400)
WORDS = st.integers(0, 31).map(lambda size: 8 * size + 8)


@st.composite
def elements(draw: st.DrawFn) -> tuple[str, Any]:
    """An elementary type and a value of it."""
    kind = draw(st.sampled_from(["uint", "int", "address", "bool", "bytesN", "bytes", "string"]))
    if kind == "uint":
        bits = draw(WORDS)
        return f"uint{bits}", draw(st.integers(0, 2**bits - 1))
    if kind == "int":
        bits = draw(WORDS)
        return f"int{bits}", draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    if kind == "address":
        return kind, draw(st.binary(min_size=20, max_size=20))
    if kind == "bool":
        return kind, draw(st.booleans())
    if kind == "bytesN":
        size = draw(st.integers(1, 32))
        return f"bytes{size}", draw(st.binary(min_size=size, max_size=size))
    return kind, draw(st.binary(max_size=70) if kind == "bytes" else st.text(max_size=40))


@st.composite
def pairs(draw: st.DrawFn, depth: int = 2) -> tuple[str, Any]:
    """A type, possibly nested, and a value of it."""
    shape = draw(st.sampled_from(["element", "array", "fixed", "tuple"] if depth else ["element"]))
    if shape == "element":
        return draw(elements())
    if shape == "tuple":
        parts = draw(st.lists(pairs(depth - 1), min_size=1, max_size=3))
        return f"({','.join(kind for kind, _ in parts)})", tuple(value for _, value in parts)
    kind, value = draw(pairs(depth - 1))
    count = draw(st.integers(0 if shape == "array" else 1, 3))
    return f"{kind}[{'' if shape == 'array' else count}]", (value,) * count


def same(value: Any) -> Any:
    """Theirs: addresses are hex strings."""
    if isinstance(value, tuple | list):
        return tuple(map(same, value))
    is_address = isinstance(value, str) and value.startswith("0x") and len(value) == 42
    return bytes.fromhex(value[2:]) if is_address else value


@SETTINGS
@given(st.lists(pairs(), max_size=4))
def test_the_same_bytes_and_the_same_values(given_: list[tuple[str, Any]]) -> None:
    types, values = [kind for kind, _ in given_], [value for _, value in given_]
    data = encode(types, values)
    assert data == theirs_encode(types, values)
    assert decode(types, data) == tuple(values) == same(theirs_decode(types, data))


TYPES = [
    "uint256",
    "(bytes32,uint128)[]",
    "string",
    "bytes",
    "bool[2]",
    "address",
    "int8",
    "bytes4",
]


@SETTINGS
@given(
    st.lists(st.sampled_from(TYPES), min_size=1, max_size=3),
    st.lists(st.integers(0, 96) | st.integers(0, 2**256 - 1) | st.just(32), max_size=12),
    st.binary(max_size=31),
)
def test_what_they_refuse_is_refused(types: list[str], words: list[int], end: bytes) -> None:
    data = b"".join(word.to_bytes(32, "big") for word in words) + end
    try:
        wanted = same(theirs_decode(types, data))
    except (DecodingError, ValueError, OverflowError):
        with pytest.raises(ValueError):  # noqa: PT011 - any sentence
            decode(types, data)
    else:
        assert decode(types, data) == wanted


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("uint8", 256),
        ("uint8", -1),
        ("uint8", True),
        ("int8", 128),
        ("address", bytes(19)),
        ("address", "0x" + "00" * 20),
        ("bool", 1),
        ("bytes4", bytes(5)),
        ("bytes4", bytes(3)),
        ("bytes", "text"),
        ("string", b"bytes"),
        ("uint8[2]", [1]),
        ("(uint8,uint8)", [1]),
        ("uint9", 1),
        ("bytes33", bytes(33)),
        ("float", 1),
        ("", 1),
    ],
)
def test_what_is_not_of_its_type_is_not_encoded(kind: str, value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any sentence
        encode([kind], [value])
