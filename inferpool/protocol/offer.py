"""Offers: what a node serves, at which price, on which terms; signed, valid for ten minutes.

The hash of an offer is its EIP-712 digest; receipts name it, and a court can check any one service
of it by the hashes of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from inferpool.protocol import eip712, parameters
from inferpool.protocol.encoding import canonical, number, parse, to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.job import Task
from inferpool.protocol.limits import (
    OFFER_ENDPOINTS_MAX,
    OFFER_MAX,
    OFFER_SERVICES_MAX,
    PARAMETERS_TEXT_MAX,
    TEXT_MAX,
)
from inferpool.protocol.units import DECIMALS_MAX
from inferpool.protocol.voucher import WITHDRAW_DELAY_MAX_S, WITHDRAW_DELAY_MIN_S
from inferpool.protocol.wire import Reader

_U32: Final = 2**32 - 1
_U64: Final = eip712.UINT64_MAX
_U128: Final = eip712.UINT128_MAX

_ENDPOINT: Final = "Endpoint(string url,bytes32 tlsSpki)"
_SERVICE: Final = (
    "Service(bytes32 manifest,string model,string task,string class,"
    "uint64 priceInPico,uint64 priceOutPico,uint32 context,uint32 defaultMaxOutput,"
    "uint32 templateOverhead,uint32 messageOverhead,bool resume,bool audited)"
)
_TERMS: Final = (
    "Terms(uint64 chainId,address asset,string assetName,string assetVersion,uint8 assetDecimals,"
    "address payee,address receiverAuthorizer,uint128 minDeposit,uint40 withdrawDelay,"
    "uint32 window)"
)
_OFFER: Final = (
    "Offer(address owner,address node,uint64 epoch,uint64 sequence,uint64 validUntilMs,"
    "Endpoint[] endpoints,Service[] services,Terms terms)"
)
_ENDPOINT_TYPE: Final = eip712.keccak256(_ENDPOINT.encode())
_SERVICE_TYPE: Final = eip712.keccak256(_SERVICE.encode())
_TERMS_TYPE: Final = eip712.keccak256(_TERMS.encode())
_OFFER_TYPE: Final = eip712.keccak256((_OFFER + _ENDPOINT + _SERVICE + _TERMS).encode())
_BINDING_TYPE: Final = eip712.keccak256(
    b"NodeBinding(address owner,address node,uint64 validUntilMs)"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the node is reached; `tls_spki` is the SHA-256 of its public key (zero: plain HTTP,
    on loopback only)."""

    url: str
    tls_spki: bytes = bytes(32)

    def struct_hash(self) -> bytes:
        """EIP-712 hash of the struct."""
        return eip712.keccak256(
            _ENDPOINT_TYPE + eip712.string(self.url) + eip712.word(self.tls_spki)
        )

    def to_wire(self) -> dict[str, object]:
        """Canonical JSON object."""
        return {"url": self.url, "tlsSpki": to_hex(self.tls_spki)}

    @classmethod
    def from_wire(cls, reader: Reader) -> Endpoint:
        """Parse; the reader raises Refused(bad_encoding)."""
        endpoint = cls(url=reader.text("url", TEXT_MAX), tls_spki=reader.data("tlsSpki", 32))
        reader.done()
        return endpoint


@dataclass(frozen=True, slots=True)
class Service:
    """One model in one precision class; prices in pico-USD per unit (micro-USD per million)."""

    manifest: bytes  # 32 bytes: the manifest's own hash
    model: str
    task: Task
    engine_class: str
    price_in_pico_usd_per_unit: int
    price_out_pico_usd_per_unit: int
    context: int  # the largest request in units: tokens in + out, rows, seconds
    default_max_output: int
    template_overhead: int  # tokens that the chat template adds once
    message_overhead: int  # tokens that it adds for each message
    resume: bool
    audited: bool
    # Names of what it takes beyond the common (`parameters`): told beside the offer, not in it.
    parameters: tuple[str, ...] = ()

    @property
    def call_class(self) -> tuple[bytes, str]:
        """Calls that take comparable time at one node: manifest and task."""
        return self.manifest, self.task

    def struct_hash(self) -> bytes:
        """EIP-712 hash of the struct."""
        return eip712.keccak256(
            _SERVICE_TYPE
            + eip712.word(self.manifest)
            + eip712.string(self.model)
            + eip712.string(self.task)
            + eip712.string(self.engine_class)
            + eip712.uint(self.price_in_pico_usd_per_unit)
            + eip712.uint(self.price_out_pico_usd_per_unit)
            + eip712.uint(self.context)
            + eip712.uint(self.default_max_output)
            + eip712.uint(self.template_overhead)
            + eip712.uint(self.message_overhead)
            + eip712.uint(self.resume)
            + eip712.uint(self.audited)
        )

    def to_wire(self) -> dict[str, object]:
        """Canonical JSON object."""
        return {
            "manifest": to_hex(self.manifest),
            "model": self.model,
            "task": self.task.value,
            "class": self.engine_class,
            "priceInPico": number(self.price_in_pico_usd_per_unit),
            "priceOutPico": number(self.price_out_pico_usd_per_unit),
            "context": self.context,
            "defaultMaxOutput": self.default_max_output,
            "templateOverhead": self.template_overhead,
            "messageOverhead": self.message_overhead,
            "resume": self.resume,
            "audited": self.audited,
        }

    @classmethod
    def from_wire(cls, reader: Reader) -> Service:
        """Parse; the reader raises Refused(bad_encoding)."""
        service = cls(
            manifest=reader.data("manifest", 32),
            model=reader.text("model", TEXT_MAX),
            task=Task(reader.choice("task", [task.value for task in Task])),
            engine_class=reader.text("class", TEXT_MAX),
            price_in_pico_usd_per_unit=reader.integer("priceInPico", _U64),
            price_out_pico_usd_per_unit=reader.integer("priceOutPico", _U64),
            context=reader.integer("context", _U32),
            default_max_output=reader.integer("defaultMaxOutput", _U32),
            template_overhead=reader.integer("templateOverhead", _U32),
            message_overhead=reader.integer("messageOverhead", _U32),
            resume=reader.flag("resume"),
            audited=reader.flag("audited"),
        )
        reader.done()
        return service


@dataclass(frozen=True, slots=True)
class Terms:
    """How the node is paid. Amounts in base units of the asset, the delay in seconds."""

    chain_id: int  # 0: a pool without a chain, where nothing is paid
    asset: bytes
    asset_name: str  # of the token's EIP-712 domain, for deposits by EIP-3009
    asset_version: str
    asset_decimals: int
    payee: bytes
    receiver_authorizer: bytes
    min_deposit: int
    withdraw_delay_s: int
    window: int = 1  # maxima that one voucher may cover; 1 for strangers

    @property
    def network(self) -> str:
        """CAIP-2 name, as x402 wants it."""
        return f"eip155:{self.chain_id}"

    def struct_hash(self) -> bytes:
        """EIP-712 hash of the struct."""
        return eip712.keccak256(
            _TERMS_TYPE
            + eip712.uint(self.chain_id)
            + eip712.address(self.asset)
            + eip712.string(self.asset_name)
            + eip712.string(self.asset_version)
            + eip712.uint(self.asset_decimals)
            + eip712.address(self.payee)
            + eip712.address(self.receiver_authorizer)
            + eip712.uint(self.min_deposit)
            + eip712.uint(self.withdraw_delay_s)
            + eip712.uint(self.window)
        )

    def to_wire(self) -> dict[str, object]:
        """Canonical JSON object."""
        return {
            "chainId": number(self.chain_id),
            "asset": to_hex(self.asset),
            "assetName": self.asset_name,
            "assetVersion": self.asset_version,
            "assetDecimals": self.asset_decimals,
            "payee": to_hex(self.payee),
            "receiverAuthorizer": to_hex(self.receiver_authorizer),
            "minDeposit": number(self.min_deposit),
            "withdrawDelay": self.withdraw_delay_s,
            "window": self.window,
        }

    @classmethod
    def from_wire(cls, reader: Reader) -> Terms:
        """Parse; the reader raises Refused(bad_encoding)."""
        terms = cls(
            chain_id=reader.integer("chainId", _U64),
            asset=reader.data("asset", 20),
            asset_name=reader.text("assetName", TEXT_MAX),
            asset_version=reader.text("assetVersion", TEXT_MAX),
            asset_decimals=reader.integer("assetDecimals", DECIMALS_MAX),
            payee=reader.data("payee", 20),
            receiver_authorizer=reader.data("receiverAuthorizer", 20),
            min_deposit=reader.integer("minDeposit", _U128),
            withdraw_delay_s=reader.integer("withdrawDelay", WITHDRAW_DELAY_MAX_S),
            window=reader.integer("window", _U32),
        )
        if terms.chain_id and terms.withdraw_delay_s < WITHDRAW_DELAY_MIN_S:
            raise Refused("withdrawDelay is below the contract's minimum", code="bad_encoding")
        if terms.window < 1:
            raise Refused("window must be at least 1", code="bad_encoding")
        reader.done()
        return terms


@dataclass(frozen=True, slots=True)
class Offer:
    """All that a node sells. `epoch` grows at each start, `sequence` within one."""

    owner: bytes
    node: bytes
    epoch: int
    sequence: int
    valid_until_ms: int
    endpoints: tuple[Endpoint, ...]
    services: tuple[Service, ...]
    terms: Terms

    def digest(self) -> bytes:
        """The offer's hash: what the node key signs."""
        struct = eip712.keccak256(
            _OFFER_TYPE
            + eip712.address(self.owner)
            + eip712.address(self.node)
            + eip712.uint(self.epoch)
            + eip712.uint(self.sequence)
            + eip712.uint(self.valid_until_ms)
            + eip712.array(endpoint.struct_hash() for endpoint in self.endpoints)
            + eip712.array(service.struct_hash() for service in self.services)
            + self.terms.struct_hash()
        )
        return eip712.digest(eip712.inferpool_domain(self.terms.chain_id), struct)

    def index(self, service: Service) -> int:
        """Where a service stands in the offer; receipts name it by that."""
        return self.services.index(service)

    def service(self, model: str) -> Service | None:
        """The service that a model name or manifest id (0x hex) asks for; ids come first, so
        that no service can name itself with another's id."""
        for service in self.services:
            if model == to_hex(service.manifest):
                return service
        for service in self.services:
            if model == service.model:
                return service
        return None

    def to_wire(self) -> dict[str, object]:
        """Canonical JSON object."""
        return {
            "owner": to_hex(self.owner),
            "node": to_hex(self.node),
            "epoch": number(self.epoch),
            "sequence": number(self.sequence),
            "validUntilMs": number(self.valid_until_ms),
            "endpoints": [endpoint.to_wire() for endpoint in self.endpoints],
            "services": [service.to_wire() for service in self.services],
            "terms": self.terms.to_wire(),
        }

    @classmethod
    def from_wire(cls, reader: Reader) -> Offer:
        """Parse; the reader raises Refused(bad_encoding)."""
        offer = cls(
            owner=reader.data("owner", 20),
            node=reader.data("node", 20),
            epoch=reader.integer("epoch", _U64),
            sequence=reader.integer("sequence", _U64),
            valid_until_ms=reader.integer("validUntilMs", _U64),
            endpoints=tuple(map(Endpoint.from_wire, reader.many("endpoints", OFFER_ENDPOINTS_MAX))),
            services=tuple(map(Service.from_wire, reader.many("services", OFFER_SERVICES_MAX))),
            terms=Terms.from_wire(reader.one("terms")),
        )
        # A receipt names manifest and class: they must lead to one price.
        if len({(s.manifest, s.engine_class) for s in offer.services}) < len(offer.services):
            reader.refuse("services", "two services of one manifest and class")
        reader.done()
        return offer


def binding_digest(owner: bytes, node: bytes, valid_until_ms: int, chain_id: int) -> bytes:
    """What an owner signs to vouch for a node key that is not in the registry, for some time."""
    struct = eip712.keccak256(
        _BINDING_TYPE + eip712.address(owner) + eip712.address(node) + eip712.uint(valid_until_ms)
    )
    return eip712.digest(eip712.inferpool_domain(chain_id), struct)


@dataclass(frozen=True, slots=True)
class SignedOffer:
    """An offer as it travels: with the node's signature and, unless the registry binds the key,
    its owner's word for it (65 bytes or none) with the end of that word in UNIX ms. Where a
    service has `parameters`, the node signs them over the offer's hash (65 bytes, else none)."""

    offer: Offer
    signature: bytes
    owner_signature: bytes = b""
    owner_valid_until_ms: int = 0
    parameters_signature: bytes = b""

    @property
    def parameter_texts(self) -> list[str]:
        """The parameters of each service as they travel; none where no service has any."""
        texts = [parameters.join(service.parameters) for service in self.offer.services]
        return texts if any(texts) else []

    def parameters_digest(self) -> bytes | None:
        """What the node key signs of them beside the offer; None where there is nothing to say."""
        texts, chain_id = self.parameter_texts, self.offer.terms.chain_id
        return parameters.digest(self.offer.digest(), texts, chain_id) if texts else None

    def encode(self) -> bytes:
        """Canonical JSON."""
        value: dict[str, object] = {
            "version": 1,
            "offer": self.offer.to_wire(),
            "signature": to_hex(self.signature),
            "ownerSignature": to_hex(self.owner_signature),
            "ownerValidUntilMs": number(self.owner_valid_until_ms),
        }
        if self.parameter_texts:
            value["parameters"] = self.parameter_texts
            value["parametersSignature"] = to_hex(self.parameters_signature)
        return canonical(value)

    @classmethod
    def decode(cls, data: bytes) -> SignedOffer:
        """Parse what a stranger sent. Raises Refused(bad_encoding); checks no signature."""
        try:
            reader = Reader(parse(data, OFFER_MAX))
        except ValueError as error:
            raise Refused(f"an offer that is not JSON: {error}", code="bad_encoding") from None
        if reader.integer("version", _U32) != 1:
            raise Refused("an offer of another version", code="bad_encoding")
        signed = cls(
            offer=Offer.from_wire(reader.one("offer")),
            signature=reader.data("signature", 65),
            owner_signature=reader.data_or_none("ownerSignature", 65),
            owner_valid_until_ms=reader.integer("ownerValidUntilMs", _U64),
        )
        if reader.has("parameters"):
            signed = _with_parameters(signed, reader)
        reader.done()
        return signed


def _with_parameters(signed: SignedOffer, reader: Reader) -> SignedOffer:
    services = signed.offer.services
    texts = reader.texts("parameters", len(services), PARAMETERS_TEXT_MAX)
    if not any(texts):
        reader.refuse("parameters", "left out where there are none")
    try:
        named = tuple(
            replace(service, parameters=parameters.split(text))
            for service, text in zip(services, texts, strict=True)
        )
    except ValueError as error:
        reader.refuse("parameters", str(error))
    signature = reader.data("parametersSignature", 65)
    offer = replace(signed.offer, services=named)
    return replace(signed, offer=offer, parameters_signature=signature)
