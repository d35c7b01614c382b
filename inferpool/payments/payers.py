"""Whom the owner works for: everybody, only some, or everybody but some. Addresses decide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import Refused, Unauthorized


@dataclass(frozen=True, slots=True)
class Payers:
    """`allowed`: only these, where there are any; `denied`: never these."""

    allowed: frozenset[bytes] = frozenset()
    denied: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, allowed: Iterable[str], denied: Iterable[str]) -> Payers:
        """From addresses as text. Raises Refused(bad_config)."""
        return cls(_addresses("node.allow", allowed), _addresses("node.deny", denied))

    def check(self, payer: bytes) -> None:
        """Raises Unauthorized(payer_refused) for whom the owner does not want."""
        if payer in self.denied or (self.allowed and payer not in self.allowed):
            raise Unauthorized("This node's owner does not serve this payer.", code="payer_refused")


def _addresses(key: str, texts: Iterable[str]) -> frozenset[bytes]:
    try:
        return frozenset(from_hex(text, 20) for text in texts)
    except ValueError as error:
        raise Refused(f"{key}: {error}", code="bad_config", param=key) from None


ANYONE: Final = Payers()
