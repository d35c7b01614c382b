"""secp256k1 signatures over EIP-712 digests, by coincurve.

Stricter than most: 65 bytes, low s (EIP-2), v 27 or 28. What a contract would refuse is refused
here, so that a voucher that was taken can always be claimed.
"""

from __future__ import annotations

from typing import Final

import coincurve

from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.errors import Refused

HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Key:
    """A private key and its address. Its repr never shows the secret."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        self._key = coincurve.PrivateKey(secret)
        self.address = keccak256(self._key.public_key.format(compressed=False)[1:])[12:]

    def sign(self, digest: bytes) -> bytes:
        """65 bytes r, s, v (27 or 28) over a 32-byte digest; deterministic (RFC 6979)."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))

    @property
    def secret(self) -> bytes:
        """The 32-byte secret; for keystores and transaction signing only."""
        return self._key.secret

    def __repr__(self) -> str:
        return f"Key(address=0x{self.address.hex()})"


def recover(digest: bytes, signature: bytes) -> bytes:
    """The 20-byte address that signed `digest`. Raises Refused(bad_signature)."""
    if len(signature) != 65:
        raise Refused(f"a signature has 65 bytes, not {len(signature)}")
    if signature[64] not in (27, 28):
        raise Refused(f"a signature's v must be 27 or 28, not {signature[64]}")
    if int.from_bytes(signature[32:64], "big") > HALF_ORDER:
        raise Refused("a signature's s must be in the lower half of the order (EIP-2)")
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None
        )
    except Exception as error:  # coincurve raises bare Exception for a point off the curve
        raise Refused(f"a signature that no key can have made: {error}") from None
    return keccak256(key.format(compressed=False)[1:])[12:]


def verify(digest: bytes, signature: bytes, address: bytes) -> None:
    """Raise Refused unless `address` signed `digest`; the zero address signs nothing."""
    if not any(address):
        raise Refused("the zero address cannot sign")
    signer = recover(digest, signature)
    if signer != address:
        raise Refused(f"signed by 0x{signer.hex()}, not by 0x{address.hex()}")
