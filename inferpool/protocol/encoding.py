"""The one way in which bytes, addresses, integers and objects are written.

Canonical JSON: UTF-8, keys sorted, no spaces, no floats, integers above 2**53-1 as decimal
strings, bytes and addresses as lower-case 0x hex. What is signed is never this text but the
EIP-712 digest of the object, so that no two texts of one object can disagree about it.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import orjson

from inferpool.protocol.eip712 import keccak256

SAFE_INTEGER_MAX: Final = 2**53 - 1  # what every JSON reader keeps exact


def to_hex(value: bytes) -> str:
    """Bytes as 0x and lower-case hex."""
    return "0x" + value.hex()


@lru_cache(maxsize=4096)
def hex_bytes(value: bytes) -> bytes:
    """`to_hex` in bytes, for headers that say the same again and again."""
    return to_hex(value).encode()


def from_hex(value: object, length: int) -> bytes:
    """0x hex of exactly `length` bytes, either case. Raises ValueError."""
    if not isinstance(value, str) or len(value) != 2 + 2 * length or value[:2] != "0x":
        raise ValueError(f"expected 0x and {2 * length} hex digits")
    data = bytes.fromhex(value[2:])
    if len(data) != length:  # fromhex skips white space
        raise ValueError(f"expected 0x and {2 * length} hex digits")
    return data


@lru_cache(maxsize=4096)
def to_checksum(address: bytes) -> str:
    """A 20-byte address in the mixed-case form of EIP-55."""
    assert len(address) == 20, "an address has 20 bytes"
    digits = address.hex()
    marks = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        c.upper() if int(m, 16) >= 8 else c for c, m in zip(digits, marks[:40], strict=True)
    )


def integer(value: object, maximum: int) -> int:
    """An integer of canonical JSON, 0 to `maximum`. Raises ValueError."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        number = int(value)
        if str(number) != value or number <= SAFE_INTEGER_MAX:
            raise ValueError("an integer in a string must need it, without leading zeros")
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
        if number > SAFE_INTEGER_MAX:
            raise ValueError("an integer above 2**53-1 is written as a string")
    else:
        raise ValueError("expected an integer")
    if not 0 <= number <= maximum:
        raise ValueError(f"expected an integer from 0 to {maximum}")
    return number


def number(value: int) -> int | str:
    """An integer as canonical JSON writes it."""
    return value if value <= SAFE_INTEGER_MAX else str(value)


def canonical(value: Mapping[str, object]) -> bytes:
    """Canonical JSON of an object whose values are already in wire form."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def parse(data: bytes, limit: int) -> dict[str, object]:
    """An object from JSON of at most `limit` bytes. Raises ValueError."""
    if len(data) > limit:
        raise ValueError(f"over {limit} bytes")
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def to_base64(data: bytes) -> str:
    """Standard base64 with padding, as x402's headers carry it."""
    return binascii.b2a_base64(data, newline=False).decode()


def from_base64(text: str | bytes) -> bytes:
    """Strict standard base64. Raises ValueError."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def sha256(data: bytes) -> bytes:
    """SHA-256: hashes of content (bodies, files), where no contract has to compute them."""
    return hashlib.sha256(data).digest()
