"""Request ids that their payer recognises as its own, even after it lost its book.

An id is 16 random bytes and 16 bytes of HMAC-SHA-256 over them and the channel, under a key that
only the payer has. To everyone else it is 32 random bytes. So a receipt for a request whose record
went down in a crash can be told from one that a node invented.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from inferpool.identity.signing import Key

_HALF = 16


@dataclass(frozen=True, slots=True)
class RequestIds:
    """Makes and recognises the ids of one payer."""

    _secret: bytes

    @classmethod
    def of(cls, authorizer: Key) -> RequestIds:
        """Ids under a secret derived from the payer's voucher key."""
        return cls(hashlib.sha256(b"inferpool request ids" + authorizer.secret).digest())

    def mint(self, random: bytes, channel_id: bytes) -> bytes:
        """An id from 16 random bytes, for one channel."""
        assert len(random) == _HALF, "16 random bytes make an id"
        return random + self._mark(random, channel_id)

    def ours(self, request_id: bytes, channel_id: bytes) -> bool:
        """Whether we minted this id for this channel."""
        random, mark = request_id[:_HALF], request_id[_HALF:]
        return hmac.compare_digest(mark, self._mark(random, channel_id))

    def _mark(self, random: bytes, channel_id: bytes) -> bytes:
        return hmac.digest(self._secret, random + channel_id, "sha256")[:_HALF]
