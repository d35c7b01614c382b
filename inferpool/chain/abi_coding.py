"""The contract ABI's encoding of values: words, heads and tails, as Solidity and Vyper write it.

Types are spelled as in signatures: uint8 to uint256, int8 to int256, address, bool, bytes1 to
bytes32, bytes, string, arrays `T[]` and `T[k]`, tuples `(T,U)`. Values: int, bool, bytes, str,
sequences; an address is 20 bytes. Decoding is strict: what no encoder writes is refused.
Source: the Solidity documentation's Contract ABI Specification, "Formal Specification of the
Encoding".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn

WORD: Final = 32
_ARRAY: Final = re.compile(r"(.+)\[(\d*)\]")
_ELEMENT: Final = re.compile(r"(uint|int|bytes)(\d*)|address|bool|string")


@dataclass(frozen=True, slots=True)
class _Type:
    """`kind`: an elementary one, `array` or `tuple`. `size`: bits, bytes, or elements; -1: any."""

    name: str
    kind: str
    size: int = 0
    parts: tuple[_Type, ...] = ()

    @property
    def dynamic(self) -> bool:
        """Whether its place in a head is taken by an offset."""
        if self.kind in ("array", "bytes"):
            return self.size < 0 or any(part.dynamic for part in self.parts)
        return self.kind == "string" or any(part.dynamic for part in self.parts)

    @property
    def head(self) -> int:
        """Bytes that it takes in a head."""
        if self.dynamic:
            return WORD
        if self.kind == "array":
            return self.size * self.parts[0].head
        return sum(part.head for part in self.parts) if self.kind == "tuple" else WORD


def encode(types: Sequence[str], values: Sequence[object]) -> bytes:
    """abi.encode of values. Raises ValueError for one that is not of its type."""
    return _encode_all([_parse(name) for name in types], values)


def decode(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """abi.decode. Raises ValueError; bytes after the last value are tolerated."""
    return tuple(_decode_all([_parse(name) for name in types], data, 0))


@lru_cache(maxsize=1024)
def _parse(name: str) -> _Type:
    """A type by its spelling. Raises ValueError."""
    if (array := _ARRAY.fullmatch(name)) is not None:
        size = int(array[2]) if array[2] else -1
        return _Type(name, "array", size, (_parse(array[1]),))
    if name.startswith("(") and name.endswith(")"):
        return _Type(name, "tuple", 0, tuple(map(_parse, _split(name[1:-1]))))
    found = _ELEMENT.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no type of the contract ABI")
    kind, digits = found[1] or name, found[2] or ""
    if kind in ("uint", "int"):
        bits = int(digits or 256)
        if not 8 <= bits <= 256 or bits % 8:
            raise ValueError(f"{name!r} is no type of the contract ABI")
        return _Type(name, kind, bits)
    if kind == "bytes":
        if digits and not 1 <= int(digits) <= WORD:
            raise ValueError(f"{name!r} is no type of the contract ABI")
        return _Type(name, kind, int(digits) if digits else -1)
    return _Type(name, kind)


def _split(text: str) -> list[str]:
    """The members of a tuple, at the commas that are not inside another."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts if text else []


# -- encoding ---------------------------------------------------------------------------------


def _encode_all(types: Sequence[_Type], values: Sequence[object]) -> bytes:
    if len(types) != len(values):
        raise ValueError(f"{len(types)} values are wanted, not {len(values)}")
    heads, tails = [], []
    offset = sum(kind.head for kind in types)
    for kind, value in zip(types, values, strict=True):
        data = _encode(kind, value)
        if kind.dynamic:
            heads.append(offset.to_bytes(WORD, "big"))
            tails.append(data)
            offset += len(data)
        else:
            heads.append(data)
    return b"".join([*heads, *tails])


def _encode(kind: _Type, value: object) -> bytes:
    if kind.kind == "tuple":
        return _encode_all(kind.parts, _sequence(kind, value))
    if kind.kind == "array":
        items = _sequence(kind, value)
        data = _encode_all(kind.parts * len(items), items)
        if kind.size < 0:
            return len(items).to_bytes(WORD, "big") + data
        if len(items) != kind.size:
            _refuse(kind, value)
        return data
    if kind.kind == "string":
        text = value.encode() if isinstance(value, str) else _refuse(kind, value)
        return len(text).to_bytes(WORD, "big") + _padded(text)
    return _element(kind, value)


def _element(kind: _Type, value: object) -> bytes:
    if kind.kind == "bool":
        return int(value if isinstance(value, bool) else _refuse(kind, value)).to_bytes(WORD, "big")
    if kind.kind in ("uint", "int"):
        signed = kind.kind == "int"
        if not isinstance(value, int) or isinstance(value, bool):
            _refuse(kind, value)
        least, most = (-(1 << kind.size - 1), 1 << kind.size - 1) if signed else (0, 1 << kind.size)
        if not least <= value < most:
            _refuse(kind, value)
        return value.to_bytes(WORD, "big", signed=signed)
    if not isinstance(value, bytes):
        _refuse(kind, value)
    if kind.kind == "address":
        return bytes(12) + value if len(value) == 20 else _refuse(kind, value)
    if kind.size < 0:
        return len(value).to_bytes(WORD, "big") + _padded(value)
    return _padded(value) if len(value) == kind.size else _refuse(kind, value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % WORD)


def _sequence(kind: _Type, value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        _refuse(kind, value)
    return value


def _refuse(kind: _Type, value: object) -> NoReturn:
    raise ValueError(f"{value!r} is no {kind.name}")


# -- decoding ---------------------------------------------------------------------------------


def _decode_all(types: Sequence[_Type], data: bytes, start: int) -> list[Any]:
    """Values whose heads begin at `start`, from where their offsets count."""
    found, at = [], start
    heads = sum(kind.head for kind in types)
    for kind in types:
        place = at
        if kind.dynamic:
            offset = _uint(data, at)
            if offset < heads:
                raise ValueError("an offset points back into the heads")
            place = start + offset
        found.append(_decode(kind, data, place))
        at += kind.head
    return found


def _decode(kind: _Type, data: bytes, at: int) -> Any:
    if kind.kind == "tuple":
        return tuple(_decode_all(kind.parts, data, at))
    if kind.kind == "array":
        size = kind.size
        if size < 0:
            size, at = _uint(data, at), at + WORD
            if size * kind.parts[0].head > len(data) - at:  # before anything of that size is made
                raise ValueError("an array is longer than the data")
        return tuple(_decode_all(kind.parts * size, data, at))
    if kind.kind == "string" or (kind.kind == "bytes" and kind.size < 0):
        size, at = _uint(data, at), at + WORD
        content = _slice(data, at, size)
        if any(_slice(data, at + size, -size % WORD)):
            raise ValueError("the padding is not zero")
        return content.decode() if kind.kind == "string" else content
    return _decode_element(kind, _slice(data, at, WORD))


def _decode_element(kind: _Type, word: bytes) -> Any:
    if kind.kind == "bytes":
        if any(word[kind.size :]):
            raise ValueError("the padding is not zero")
        return word[: kind.size]
    if kind.kind == "address":
        if any(word[:12]):
            raise ValueError("an address is longer than 20 bytes")
        return word[12:]
    value = int.from_bytes(word, "big", signed=kind.kind == "int")
    if kind.kind == "bool":
        if value not in (0, 1):
            raise ValueError("a bool is neither 0 nor 1")
        return bool(value)
    bits = kind.size - (kind.kind == "int")
    if not (-(1 << bits) if kind.kind == "int" else 0) <= value < 1 << bits:
        raise ValueError(f"{value} is no {kind.name}")
    return value


def _uint(data: bytes, at: int) -> int:
    return int.from_bytes(_slice(data, at, WORD), "big")


def _slice(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise ValueError("the data ends early")
    return data[at : at + size]
