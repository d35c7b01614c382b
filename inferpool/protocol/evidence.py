"""Evidence: what an auditor needs to score an answer again; little-endian, hashed by SHA-256.

Layout: u32 prompt token count, u32 n, n token ids as u32, n log-probabilities as float32. Tensor
answers have no evidence: their re-run is the proof.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

from inferpool.protocol import eip712
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import OUTPUT_UNITS_MAX

NO_EVIDENCE: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Token ids with the log-probability (natural logarithm) of each."""

    prompt_units: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def encode(self) -> bytes:
        """The bytes that are hashed and served."""
        assert len(self.ids) == len(self.logprobs), "one log-probability a token"
        n = len(self.ids)
        return struct.pack(f"<II{n}I{n}f", self.prompt_units, n, *self.ids, *self.logprobs)

    def hash(self) -> bytes:
        """The receipt's `evidenceHash`."""
        return sha256(self.encode())

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Parse. Raises Refused(bad_encoding)."""
        if len(data) < 8:
            raise Refused("evidence is cut short", code="bad_encoding")
        prompt_units, n = struct.unpack_from("<II", data)
        if n > OUTPUT_UNITS_MAX or len(data) != 8 + 8 * n:
            raise Refused("evidence has the wrong length", code="bad_encoding")
        values = struct.unpack_from(f"<{n}I{n}f", data, 8)
        logprobs = values[n:]
        if not all(value < math.inf for value in logprobs):  # NaN would pass any comparison
            raise Refused("evidence holds NaN or infinity", code="bad_encoding")
        return cls(prompt_units, values[:n], logprobs)


_REQUEST_TYPE: Final = eip712.keccak256(b"EvidenceRequest(address node,bytes32 requestId)")


def evidence_request_digest(node: bytes, request_id: bytes, chain_id: int) -> bytes:
    """What the channel's payerAuthorizer signs to read the evidence of its request from a node."""
    struct_hash = eip712.keccak256(_REQUEST_TYPE + eip712.address(node) + eip712.word(request_id))
    return eip712.digest(eip712.inferpool_domain(chain_id), struct_hash)
