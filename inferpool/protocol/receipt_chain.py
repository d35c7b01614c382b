"""Chained receipts: for small calls one signature of the node covers many receipts.

Each receipt of a chain carries a running hash over the receipts before it and itself; the node
signs the last one once the chain has 64 receipts or is 100 ms old. What travels with an answer is
only what its payer cannot know by itself: payer and node make the same receipt from it.
"""

from __future__ import annotations

import struct
from typing import Final

from inferpool.protocol import eip712
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.encoding import from_base64, to_base64
from inferpool.protocol.errors import Refused
from inferpool.protocol.evidence import NO_EVIDENCE
from inferpool.protocol.limits import CHAIN_RECEIPTS_MAX
from inferpool.protocol.receipt import Outcome, Receipt
from inferpool.protocol.value import value

START: Final = bytes(32)  # the running hash before a chain's first receipt
_CHAIN_TYPE: Final = eip712.keccak256(
    b"ReceiptChain(bytes32 channelId,uint64 firstSeq,uint16 count,bytes32 head)"
)
# seq, units in, units out, charge, total (low, high), seed, started, ended, outcome; then the
# chain's first seq and the position in it
_SHORT: Final = struct.Struct("<QQQQQQQQQBQH")
_PROOF: Final = struct.Struct("<QH")
_SIZE: Final = _SHORT.size + 32
_SIZE_PROVED: Final = _SIZE + _PROOF.size + 65
_U64: Final = eip712.UINT64_MAX
_OUTCOMES: Final = tuple(Outcome)  # by number, which they have from 0 up
assert all(item == at for at, item in enumerate(_OUTCOMES)), "outcomes are numbered from 0"


def link(before: bytes, receipt_digest: bytes) -> bytes:
    """The running hash with one more receipt: keccak256(before || the receipt's digest)."""
    return eip712.keccak256(before + receipt_digest)


def chain_digest(
    channel_id: bytes, first_seq: int, count: int, head: bytes, chain_id: int
) -> bytes:
    """What the node signs for the `count` receipts of the chain that began with `first_seq`."""
    found = eip712.keccak256(
        _CHAIN_TYPE
        + eip712.word(channel_id)
        + eip712.uint(first_seq)
        + eip712.uint(count)
        + eip712.word(head)
    )
    return eip712.digest(eip712.inferpool_domain(chain_id), found)


@value
class ChainProof:
    """The node's signature over an ended chain; its head is what the payer has computed itself."""

    first_seq: int
    count: int
    signature: bytes


@value
class ChainedReceipt:
    """What an answer carries instead of a signed receipt. Amounts in pico-USD, times UNIX ms.

    `first_seq` names the chain by its first receipt, `position` counts from 0 within it.
    """

    seq: int
    prompt_units: int
    output_units: int
    charge_pico_usd: int
    charged_total_pico_usd: int
    seed: int
    started_ms: int
    ended_ms: int
    outcome: Outcome
    first_seq: int
    position: int
    link: bytes
    proof: ChainProof | None = None  # of the chain that ended before this one

    @classmethod
    def of(
        cls, receipt: Receipt, first_seq: int, position: int, link: bytes, proof: ChainProof | None
    ) -> ChainedReceipt:
        """From the whole receipt, which has no evidence."""
        assert receipt.evidence_hash == NO_EVIDENCE, "evidence takes a receipt of its own"
        return cls(
            receipt.seq,
            receipt.prompt_units,
            receipt.output_units,
            receipt.charge_pico_usd,
            receipt.charged_total_pico_usd,
            receipt.seed,
            receipt.started_ms,
            receipt.ended_ms,
            receipt.outcome,
            first_seq,
            position,
            link,
            proof,
        )

    def receipt(self, attempt: Attempt, request_hash: bytes, response_hash: bytes) -> Receipt:
        """The whole receipt, from what the payer knows of its attempt and has received."""
        return Receipt(
            attempt.request_id,
            request_hash,
            response_hash,
            NO_EVIDENCE,
            attempt.service.manifest,
            attempt.service.engine_class,
            attempt.offer_hash,
            attempt.offer.index(attempt.service),
            attempt.channel_id,
            self.seq,
            self.prompt_units,
            self.output_units,
            self.charge_pico_usd,
            self.charged_total_pico_usd,
            self.seed,
            self.started_ms,
            self.ended_ms,
            self.outcome,
        )

    def encode(self) -> bytes:
        """Little-endian members, the running hash, and the proof where there is one."""
        short = _SHORT.pack(
            self.seq,
            self.prompt_units,
            self.output_units,
            self.charge_pico_usd,
            self.charged_total_pico_usd & _U64,
            self.charged_total_pico_usd >> 64,
            self.seed,
            self.started_ms,
            self.ended_ms,
            self.outcome,
            self.first_seq,
            self.position,
        )
        if self.proof is None:
            return short + self.link
        proof = _PROOF.pack(self.proof.first_seq, self.proof.count)
        return short + self.link + proof + self.proof.signature

    def header(self) -> bytes:
        """Value of the header `Inferpool-Chained-Receipt`."""
        return to_base64(self.encode()).encode()

    @classmethod
    def decode(cls, data: bytes) -> ChainedReceipt:
        """Parse. Raises Refused(bad_encoding); checks no hash and no signature."""
        if len(data) not in (_SIZE, _SIZE_PROVED):
            raise _bad(f"{_SIZE} or {_SIZE_PROVED} bytes, not {len(data)}")
        seq, units_in, units_out, charge, low, high, *rest = _SHORT.unpack_from(data)
        seed, started_ms, ended_ms, outcome, first_seq, position = rest
        proof = None
        if len(data) == _SIZE_PROVED:
            first, count = _PROOF.unpack_from(data, _SIZE)
            proof = ChainProof(first, count, data[_SIZE + _PROOF.size :])
            if not 0 < count <= CHAIN_RECEIPTS_MAX:
                raise _bad(f"a chain of {count}")
        if outcome >= len(_OUTCOMES) or ended_ms < started_ms:
            raise _bad("an outcome or a time that cannot be")
        if position >= CHAIN_RECEIPTS_MAX or not 0 < first_seq <= seq:
            raise _bad("a place in the chain that cannot be")
        return cls(
            seq,
            units_in,
            units_out,
            charge,
            low | high << 64,
            seed,
            started_ms,
            ended_ms,
            _OUTCOMES[outcome],
            first_seq,
            position,
            data[_SHORT.size : _SIZE],
            proof,
        )

    @classmethod
    def from_header(cls, value: bytes) -> ChainedReceipt:
        """Parse the header's value. Raises Refused(bad_encoding)."""
        try:
            return cls.decode(from_base64(value))
        except ValueError as error:
            raise _bad(str(error)) from None


def _bad(why: str) -> Refused:
    return Refused(f"a chained receipt that cannot be read: {why}", code="bad_encoding")
