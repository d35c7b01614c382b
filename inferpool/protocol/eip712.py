"""Typed-data digests (EIP-712) packed by hand: 20 times the speed of a general encoder.

A struct hash is keccak256(typeHash || encoded members), a digest is keccak256(0x1901 || domain
separator || struct hash). Every struct of ours is declared once, with its type string, in the
module of its noun; golden vectors pin them (`tests/vectors/`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import sha3

UINT64_MAX: Final = 2**64 - 1
UINT128_MAX: Final = 2**128 - 1


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it (not NIST SHA3): 32 bytes."""
    digest: bytes = sha3.keccak_256(data).digest()
    return digest


def uint(value: int) -> bytes:
    """An unsigned integer as one 32-byte word. Raises OverflowError below 0 or past 2**256-1."""
    return value.to_bytes(32, "big")


def address(value: bytes) -> bytes:
    """A 20-byte address as one word."""
    assert len(value) == 20, f"an address has 20 bytes, not {len(value)}"
    return value.rjust(32, b"\0")


def word(value: bytes) -> bytes:
    """A bytes32 as it is."""
    assert len(value) == 32, f"a bytes32 has 32 bytes, not {len(value)}"
    return value


@lru_cache(maxsize=4096)  # models and classes: the same few in every request
def string(value: str) -> bytes:
    """A dynamic string: the hash of its UTF-8 bytes."""
    return keccak256(value.encode())


def array(hashes: Iterable[bytes]) -> bytes:
    """An array of structs: the hash of the members' struct hashes in order."""
    return keccak256(b"".join(hashes))


_DOMAIN: Final = "EIP712Domain(string name,string version,uint256 chainId{contract})"


@lru_cache(maxsize=256)
def domain(name: str, version: str, chain_id: int, contract: bytes | None = None) -> bytes:
    """Domain separator (32 bytes); `contract` is the 20-byte verifying contract where one is."""
    tail = ",address verifyingContract" if contract is not None else ""
    members = [
        keccak256(_DOMAIN.format(contract=tail).encode()),
        string(name),
        string(version),
        uint(chain_id),
    ]
    if contract is not None:
        members.append(address(contract))
    return keccak256(b"".join(members))


def digest(domain_separator: bytes, struct_hash: bytes) -> bytes:
    """What is signed: 32 bytes."""
    return keccak256(b"\x19\x01" + domain_separator + struct_hash)


@lru_cache(maxsize=64)
def inferpool_domain(chain_id: int) -> bytes:
    """The domain of offers, receipts and requests for evidence.

    It names no contract, so that an object stays valid when the court is deployed anew; the chain
    id keeps a signature for one chain from counting on another (0: a pool without a chain).
    """
    return domain("Inferpool", "1", chain_id)
