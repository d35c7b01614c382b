"""Receipts: the node's signed word on one attempt. No receipt, no charge; one per request id."""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache
from typing import Final

import orjson

from inferpool.protocol import eip712
from inferpool.protocol.encoding import (
    SAFE_INTEGER_MAX,
    from_base64,
    number,
    parse,
    to_base64,
    to_hex,
)
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import OFFER_SERVICES_MAX, RECEIPT_MAX, TEXT_MAX
from inferpool.protocol.usage import Usage
from inferpool.protocol.value import value
from inferpool.protocol.wire import Reader

_U64: Final = eip712.UINT64_MAX
_U128: Final = eip712.UINT128_MAX
_RECEIPT_TYPE: Final = eip712.keccak256(
    b"Receipt(bytes32 requestId,bytes32 requestHash,bytes32 responseHash,bytes32 evidenceHash,"
    b"bytes32 manifest,string class,bytes32 offerHash,uint16 service,bytes32 channelId,uint64 seq,"
    b"uint64 promptUnits,uint64 outputUnits,uint128 chargePico,uint128 chargedTotal,uint64 seed,"
    b"uint64 startedMs,uint64 endedMs,uint8 outcome)"
)
# Words of 32 bytes: a uint64; then seven uint64 with two uint128 among them, and a uint8.
_WORD: Final = struct.Struct(">24xQ")
_WORDS: Final = struct.Struct(">24xQ24xQ24xQ16xQQ16xQQ24xQ24xQ24xQ24xQ")
_DIGESTED: Final = 32 * 19


class Outcome(IntEnum):
    """How an attempt ended; what was sent is charged in each case."""

    COMPLETE = 0
    CANCELLED = 1  # the payer left
    FAILED = 2  # the engine failed in the middle; the node lived to say so


@value
class Receipt:
    """Hashes are SHA-256, amounts pico-USD, times UNIX ms.

    `charged_total_pico_usd` is the channel's exact total with this charge; `seq` counts the
    channel's receipts from 1, so that a payer that lost one can ask for it.
    """

    request_id: bytes
    request_hash: bytes
    response_hash: bytes
    evidence_hash: bytes
    manifest: bytes
    engine_class: str
    offer_hash: bytes
    service: int  # its index in the offer: a court opens this one, and hashes the others
    channel_id: bytes
    seq: int
    prompt_units: int
    output_units: int
    charge_pico_usd: int
    charged_total_pico_usd: int
    seed: int
    started_ms: int
    ended_ms: int
    outcome: Outcome

    @property
    def usage(self) -> Usage:
        """The units that were charged."""
        return Usage(self.prompt_units, self.output_units)

    def digest(self, chain_id: int) -> bytes:
        """What the node key signs."""
        packed = b"".join(
            (
                _RECEIPT_TYPE,
                self.request_id,
                self.request_hash,
                self.response_hash,
                self.evidence_hash,
                self.manifest,
                eip712.string(self.engine_class),
                self.offer_hash,
                _WORD.pack(self.service),
                self.channel_id,
                _WORDS.pack(
                    self.seq,
                    self.prompt_units,
                    self.output_units,
                    self.charge_pico_usd >> 64,
                    self.charge_pico_usd & _U64,
                    self.charged_total_pico_usd >> 64,
                    self.charged_total_pico_usd & _U64,
                    self.seed,
                    self.started_ms,
                    self.ended_ms,
                    self.outcome,
                ),
            )
        )
        assert len(packed) == _DIGESTED, "a hash of a receipt has 32 bytes"
        found = eip712.keccak256(packed)
        return eip712.digest(eip712.inferpool_domain(chain_id), found)

    def to_wire(self) -> dict[str, object]:
        """Canonical JSON object."""
        return {
            "requestId": to_hex(self.request_id),
            "requestHash": to_hex(self.request_hash),
            "responseHash": to_hex(self.response_hash),
            "evidenceHash": to_hex(self.evidence_hash),
            "manifest": to_hex(self.manifest),
            "class": self.engine_class,
            "offerHash": to_hex(self.offer_hash),
            "service": self.service,
            "channelId": to_hex(self.channel_id),
            "seq": number(self.seq),
            "promptUnits": number(self.prompt_units),
            "outputUnits": number(self.output_units),
            "chargePico": number(self.charge_pico_usd),
            "chargedTotal": number(self.charged_total_pico_usd),
            "seed": number(self.seed),
            "startedMs": number(self.started_ms),
            "endedMs": number(self.ended_ms),
            "outcome": int(self.outcome),
        }

    @classmethod
    def from_wire(cls, reader: Reader) -> Receipt:
        """Parse; the reader raises Refused(bad_encoding)."""
        receipt = cls(
            request_id=reader.data("requestId", 32),
            request_hash=reader.data("requestHash", 32),
            response_hash=reader.data("responseHash", 32),
            evidence_hash=reader.data("evidenceHash", 32),
            manifest=reader.data("manifest", 32),
            engine_class=reader.text("class", TEXT_MAX),
            offer_hash=reader.data("offerHash", 32),
            service=reader.integer("service", OFFER_SERVICES_MAX - 1),
            channel_id=reader.data("channelId", 32),
            seq=reader.integer("seq", _U64),
            prompt_units=reader.integer("promptUnits", _U64),
            output_units=reader.integer("outputUnits", _U64),
            charge_pico_usd=reader.integer("chargePico", _U128),
            charged_total_pico_usd=reader.integer("chargedTotal", _U128),
            seed=reader.integer("seed", _U64),
            started_ms=reader.integer("startedMs", _U64),
            ended_ms=reader.integer("endedMs", _U64),
            outcome=Outcome(reader.integer("outcome", max(Outcome))),
        )
        if receipt.ended_ms < receipt.started_ms:
            reader.refuse("endedMs", "before startedMs")
        reader.done()
        return receipt


# Seq, units in, units out, charge, total (each low, high), seed, started, ended; outcome, service,
# bytes of the signature (0 or 65) and of the class: how ledgers keep a receipt.
_PACKED: Final = struct.Struct("<B7Q3QBHBH")
_PACKED_VERSION: Final = 1
_HASHES: Final = 7 * 32


_CANONICAL: Final = (
    '{"receipt":{"channelId":"0x%s","chargePico":%s,"chargedTotal":%s,"class":%s,"endedMs":%s,'
    '"evidenceHash":"0x%s","manifest":"0x%s","offerHash":"0x%s","outcome":%d,"outputUnits":%s,'
    '"promptUnits":%s,"requestHash":"0x%s","requestId":"0x%s","responseHash":"0x%s","seed":%s,'
    '"seq":%s,"service":%d,"startedMs":%s},"signature":"0x%s"}'
)


def _number(given: int) -> int | str:
    return given if given <= SAFE_INTEGER_MAX else f'"{given}"'


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


@value
class SignedReceipt:
    """A receipt as it travels: an object in the last chunk, base64 of it in a header.

    In a ledger a chained receipt has no signature of its own.
    """

    receipt: Receipt
    signature: bytes

    def to_wire(self) -> dict[str, object]:
        """Canonical JSON object."""
        return {"receipt": self.receipt.to_wire(), "signature": to_hex(self.signature)}

    def encode(self) -> bytes:
        """Canonical JSON: `canonical(self.to_wire())`, in half its time."""
        made = self.receipt
        return (
            _CANONICAL
            % (
                made.channel_id.hex(),
                _number(made.charge_pico_usd),
                _number(made.charged_total_pico_usd),
                _quoted(made.engine_class),
                _number(made.ended_ms),
                made.evidence_hash.hex(),
                made.manifest.hex(),
                made.offer_hash.hex(),
                made.outcome,
                _number(made.output_units),
                _number(made.prompt_units),
                made.request_hash.hex(),
                made.request_id.hex(),
                made.response_hash.hex(),
                _number(made.seed),
                _number(made.seq),
                made.service,
                _number(made.started_ms),
                self.signature.hex(),
            )
        ).encode()

    def pack(self) -> bytes:
        """How a ledger keeps it: a third of the canonical form's size and time."""
        made = self.receipt
        engine_class = made.engine_class.encode()
        return b"".join(
            (
                _PACKED.pack(
                    _PACKED_VERSION,
                    made.seq,
                    made.prompt_units,
                    made.output_units,
                    made.charge_pico_usd & _U64,
                    made.charge_pico_usd >> 64,
                    made.charged_total_pico_usd & _U64,
                    made.charged_total_pico_usd >> 64,
                    made.seed,
                    made.started_ms,
                    made.ended_ms,
                    made.outcome,
                    made.service,
                    len(self.signature),
                    len(engine_class),
                ),
                made.request_id,
                made.request_hash,
                made.response_hash,
                made.evidence_hash,
                made.manifest,
                made.offer_hash,
                made.channel_id,
                engine_class,
                self.signature,
            )
        )

    @classmethod
    def unpack(cls, data: bytes) -> SignedReceipt:
        """What a ledger has: packed, or canonical JSON as earlier versions wrote it."""
        if data[:1] == b"{":
            return cls.decode(data)
        version, seq, units_in, units_out, low, high, total_low, *rest = _PACKED.unpack_from(data)
        total_high, seed, started_ms, ended_ms, outcome, service, signature, name = rest
        assert version == _PACKED_VERSION, "a ledger of a later version"
        at = _PACKED.size
        hashes = [data[at + 32 * i : at + 32 * (i + 1)] for i in range(7)]
        request_id, request_hash, response_hash, evidence, manifest, offer, channel_id = hashes
        at += _HASHES
        receipt = Receipt(
            request_id,
            request_hash,
            response_hash,
            evidence,
            manifest,
            data[at : at + name].decode(),
            offer,
            service,
            channel_id,
            seq,
            units_in,
            units_out,
            low | high << 64,
            total_low | total_high << 64,
            seed,
            started_ms,
            ended_ms,
            Outcome(outcome),
        )
        return cls(receipt, data[at + name : at + name + signature])

    def header(self) -> bytes:
        """Value of the header `Inferpool-Receipt`."""
        return to_base64(self.encode()).encode()

    @classmethod
    def from_wire(cls, wire: dict[str, object]) -> SignedReceipt:
        """Parse an object. Raises Refused(bad_encoding); checks no signature."""
        reader = Reader(wire)
        signed = cls(Receipt.from_wire(reader.one("receipt")), reader.data("signature", 65))
        reader.done()
        return signed

    @classmethod
    def decode(cls, data: bytes) -> SignedReceipt:
        """Parse JSON. Raises Refused(bad_encoding); checks no signature."""
        usual = _read_canonical(data)
        if usual is not None:
            return usual
        try:
            return cls.from_wire(parse(data, RECEIPT_MAX))
        except ValueError as error:
            raise Refused(f"a receipt that is not JSON: {error}", code="bad_encoding") from None

    @classmethod
    def from_header(cls, value: bytes) -> SignedReceipt:
        """Parse the header's value. Raises Refused(bad_encoding)."""
        try:
            data = from_base64(value)
        except ValueError as error:
            raise Refused(f"a receipt that is not base64: {error}", code="bad_encoding") from None
        return cls.decode(data)


def _read_canonical(data: bytes) -> SignedReceipt | None:
    """What encodes to exactly these bytes, if it is a receipt: a quarter of the reader's time.

    None where anything is off, however little: the reader then says what.
    """
    if len(data) > RECEIPT_MAX:
        return None
    try:
        wire = orjson.loads(data)
        made, read = wire["receipt"], bytes.fromhex
        signed = SignedReceipt(
            Receipt(
                read(made["requestId"][2:]),
                read(made["requestHash"][2:]),
                read(made["responseHash"][2:]),
                read(made["evidenceHash"][2:]),
                read(made["manifest"][2:]),
                made["class"],
                read(made["offerHash"][2:]),
                made["service"],
                read(made["channelId"][2:]),
                int(made["seq"]),
                int(made["promptUnits"]),
                int(made["outputUnits"]),
                int(made["chargePico"]),
                int(made["chargedTotal"]),
                int(made["seed"]),
                int(made["startedMs"]),
                int(made["endedMs"]),
                Outcome(made["outcome"]),
            ),
            read(wire["signature"][2:]),
        )
        same = signed.encode() == data
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return signed if same and _is_sound(signed) else None


def _is_sound(signed: SignedReceipt) -> bool:
    made = signed.receipt
    hashes = (
        *(made.request_id, made.request_hash, made.response_hash, made.evidence_hash),
        *(made.manifest, made.offer_hash, made.channel_id),
    )
    small = (made.seq, made.prompt_units, made.output_units, made.seed, made.ended_ms)
    return (
        isinstance(made.engine_class, str)
        and all(
            len(item) == 32 for item in (*hashes, made.manifest, made.offer_hash, made.channel_id)
        )
        and len(signed.signature) == 65
        and min(small) >= 0
        and max(small) <= _U64
        and 0 <= made.charge_pico_usd <= _U128
        and 0 <= made.charged_total_pico_usd <= _U128
        and 0 <= made.started_ms <= made.ended_ms
        and 0 <= made.service < OFFER_SERVICES_MAX
        and len(made.engine_class.encode()) <= TEXT_MAX
        and made.engine_class.isprintable()
    )


_REQUEST_TYPE: Final = eip712.keccak256(b"ReceiptsRequest(address node,bytes32 channelId)")


def receipts_request_digest(node: bytes, channel_id: bytes, chain_id: int) -> bytes:
    """What a channel's payerAuthorizer signs to read the channel's receipts from their node."""
    struct = eip712.keccak256(_REQUEST_TYPE + eip712.address(node) + eip712.word(channel_id))
    return eip712.digest(eip712.inferpool_domain(chain_id), struct)
