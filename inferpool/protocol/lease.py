"""Leases: the ten-second renewal of an offer. Unsigned, on a pipe that is already pinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inferpool.protocol.encoding import canonical, number, parse
from inferpool.protocol.errors import Refused
from inferpool.protocol.wire import Reader

_U32: Final = 2**32 - 1
_U64: Final = 2**64 - 1
LEASE_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Lease:
    """What a node can take now. A node whose leases stop is gone (`LEASE_VALID_MS`)."""

    epoch: int
    sequence: int
    free_slots: int
    expected_wait_ms: int
    first_unit_ms: int  # measured time to the first token or row
    unit_us: int  # measured time for each further one, in microseconds

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical(
            {
                "epoch": number(self.epoch),
                "sequence": number(self.sequence),
                "freeSlots": self.free_slots,
                "expectedWaitMs": self.expected_wait_ms,
                "firstUnitMs": self.first_unit_ms,
                "unitUs": self.unit_us,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Lease:
        """Parse. Raises Refused(bad_encoding)."""
        try:
            reader = Reader(parse(data, LEASE_MAX))
        except ValueError as error:
            raise Refused(f"a lease that is not JSON: {error}", code="bad_encoding") from None
        lease = cls(
            epoch=reader.integer("epoch", _U64),
            sequence=reader.integer("sequence", _U64),
            free_slots=reader.integer("freeSlots", _U32),
            expected_wait_ms=reader.integer("expectedWaitMs", _U32),
            first_unit_ms=reader.integer("firstUnitMs", _U32),
            unit_us=reader.integer("unitUs", _U32),
        )
        reader.done()
        return lease
