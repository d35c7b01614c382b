"""Request ids that their payer recognises as its own, even after it lost its book.

An id is 16 unique bytes and 16 bytes of HMAC-SHA-256 over them and the channel, under a key that
only the payer has. To everyone else it is a time and 26 random bytes. So a receipt for a request
whose record went down in a crash can be told from one that a node invented.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from inferpool.identity.signing import Key

_HALF = 16
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


_TIME = 6  # bytes of UNIX ms: until the year 10889


def unique(now_ms: int, random: Callable[[int], bytes], size: int = _HALF) -> bytes:
    """Bytes that no other call gives: the time, then random ones.

    The time comes first so that ids grow: a book then adds to the last page of an index, where
    random ids would each change a page of their own (35 against 26 us a row, 16 in a commit).
    """
    return now_ms.to_bytes(_TIME, "big") + random(size - _TIME)


@dataclass(frozen=True, slots=True)
class RequestIds:
    """Makes and recognises the ids of one payer."""

    _secret: bytes
    _inner: hashlib._Hash = field(init=False, repr=False, compare=False)
    _outer: hashlib._Hash = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Both halves of the HMAC as far as the key goes (RFC 2104): a fifth of `hmac.digest`."""
        key = self._secret.ljust(hashlib.sha256().block_size, b"\0")
        assert len(self._secret) <= len(key), "a longer key would be hashed first"
        object.__setattr__(self, "_inner", hashlib.sha256(key.translate(_INNER)))
        object.__setattr__(self, "_outer", hashlib.sha256(key.translate(_OUTER)))

    @classmethod
    def of(cls, authorizer: Key) -> RequestIds:
        """Ids under a secret derived from the payer's voucher key."""
        return cls(hashlib.sha256(b"inferpool request ids" + authorizer.secret).digest())

    def mint(self, random: bytes, channel_id: bytes) -> bytes:
        """An id from 16 unique bytes, for one channel."""
        assert len(random) == _HALF, "16 unique bytes make an id"
        return random + self._mark(random, channel_id)

    def ours(self, request_id: bytes, channel_id: bytes) -> bool:
        """Whether we minted this id for this channel."""
        random, mark = request_id[:_HALF], request_id[_HALF:]
        return hmac.compare_digest(mark, self._mark(random, channel_id))

    def _mark(self, random: bytes, channel_id: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(random + channel_id)
        outer.update(inner.digest())
        return outer.digest()[:_HALF]
