"""EIP-1559 transactions: RLP and the signature; the same bytes as eth-account writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inferpool.identity.signing import Key
from inferpool.protocol.eip712 import keccak256

_TYPE: Final = b"\x02"

Rlp = bytes | list["Rlp"]


@dataclass(frozen=True, slots=True)
class Transaction:
    """An unsigned transaction; `to` None creates a contract. Fees in wei for one gas."""

    chain_id: int
    nonce: int
    to: bytes | None
    data: bytes
    gas: int
    max_fee_wei: int
    max_priority_fee_wei: int
    value: int = 0


def rlp(value: Rlp) -> bytes:
    """Recursive length prefix of bytes and lists."""
    if isinstance(value, bytes):
        if len(value) == 1 and value[0] < 0x80:
            return value
        return _prefixed(value, 0x80)
    return _prefixed(b"".join(rlp(item) for item in value), 0xC0)


def sign_transaction(transaction: Transaction, key: Key) -> bytes:
    """The signed bytes; their keccak256 is the transaction's hash."""
    fields: list[Rlp] = [
        _integer(transaction.chain_id),
        _integer(transaction.nonce),
        _integer(transaction.max_priority_fee_wei),
        _integer(transaction.max_fee_wei),
        _integer(transaction.gas),
        transaction.to or b"",
        _integer(transaction.value),
        transaction.data,
        [],  # access list
    ]
    signature = key.sign(keccak256(_TYPE + rlp(fields)))
    words = (signature[64] - 27, int.from_bytes(signature[:32]), int.from_bytes(signature[32:64]))
    return _TYPE + rlp([*fields, *(_integer(word) for word in words)])


def created_address(sender: bytes, nonce: int) -> bytes:
    """Where the contract is that a sender's transaction number `nonce` creates."""
    return keccak256(rlp([sender, _integer(nonce)]))[12:]


def _integer(value: int) -> bytes:
    """Big-endian without leading zeros; zero is empty."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _prefixed(payload: bytes, base: int) -> bytes:
    if len(payload) < 56:
        return bytes((base + len(payload),)) + payload
    length = _integer(len(payload))
    return bytes((base + 55 + len(length),)) + length + payload
