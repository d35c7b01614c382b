# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title Signed objects of the protocol
@custom:contract-name signed_objects
@license Apache-2.0
@notice A module without state: receipts and offers as nodes sign them (EIP-712), and their
        digests. A string is given by its hash, which is what its struct hash holds: so every
        struct has one length, and no name is too long to be judged. The domain names no
        contract: what a node signed outlives a court that is deployed anew.
"""


MAX_SERVICES: constant(uint256) = 128  # of one offer; parsers refuse more


_DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId)")
_NAME_HASH: constant(bytes32) = keccak256("Inferpool")
_VERSION_HASH: constant(bytes32) = keccak256("1")
_RECEIPT_TYPE: constant(bytes32) = keccak256(
    "Receipt(bytes32 requestId,bytes32 requestHash,bytes32 responseHash,bytes32 evidenceHash,bytes32 manifest,string class,bytes32 offerHash,uint16 service,bytes32 channelId,uint64 seq,uint64 promptUnits,uint64 outputUnits,uint128 chargePico,uint128 chargedTotal,uint64 seed,uint64 startedMs,uint64 endedMs,uint8 outcome)"
)
_SERVICE_TYPE: constant(bytes32) = keccak256(
    "Service(bytes32 manifest,string model,string task,string class,uint64 priceInPico,uint64 priceOutPico,uint32 context,uint32 defaultMaxOutput,uint32 templateOverhead,uint32 messageOverhead,bool resume,bool audited)"
)
_OFFER_TYPE: constant(bytes32) = keccak256(
    "Offer(address owner,address node,uint64 epoch,uint64 sequence,uint64 validUntilMs,Endpoint[] endpoints,Service[] services,Terms terms)Endpoint(string url,bytes32 tlsSpki)Service(bytes32 manifest,string model,string task,string class,uint64 priceInPico,uint64 priceOutPico,uint32 context,uint32 defaultMaxOutput,uint32 templateOverhead,uint32 messageOverhead,bool resume,bool audited)Terms(uint64 chainId,address asset,string assetName,string assetVersion,uint8 assetDecimals,address payee,address receiverAuthorizer,uint128 minDeposit,uint40 withdrawDelay,uint32 window)"
)


struct Receipt:
    requestId: bytes32
    requestHash: bytes32
    responseHash: bytes32
    evidenceHash: bytes32
    manifest: bytes32
    classHash: bytes32
    offerHash: bytes32
    service: uint16  # its index in the offer
    channelId: bytes32
    seq: uint64
    promptUnits: uint64
    outputUnits: uint64
    chargePico: uint128
    chargedTotal: uint128
    seed: uint64
    startedMs: uint64
    endedMs: uint64
    outcome: uint8

struct Service:
    manifest: bytes32
    modelHash: bytes32
    taskHash: bytes32
    classHash: bytes32
    priceInPico: uint64
    priceOutPico: uint64
    context: uint32
    defaultMaxOutput: uint32
    templateOverhead: uint32
    messageOverhead: uint32
    resume: bool
    audited: bool

struct Offer:
    owner: address
    node: address
    epoch: uint64
    sequence: uint64
    validUntilMs: uint64
    endpointsHash: bytes32
    serviceHashes: DynArray[bytes32, MAX_SERVICES]
    termsHash: bytes32

struct SignedReceipt:
    receipt: Receipt
    signature: Bytes[65]

struct Exhibit:
    receipt: Receipt
    signature: Bytes[65]
    offer: Offer  # the one that the receipt names
    offerSignature: Bytes[65]
    service: Service  # the one that the receipt names, opened


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    """@dev What is signed for a struct, on this chain, also after a fork of it."""
    separator: bytes32 = keccak256(abi_encode(_DOMAIN_TYPE, _NAME_HASH, _VERSION_HASH, chain.id))
    return keccak256(concat(x"1901", separator, struct_hash))


@internal
@view
def _receipt_digest(receipt: Receipt) -> bytes32:
    """@dev What a node signs for a receipt."""
    return self._digest(keccak256(abi_encode(_RECEIPT_TYPE, receipt)))


@internal
@pure
def _service_hash(service: Service) -> bytes32:
    """@dev A service as it stands in its offer's list."""
    return keccak256(abi_encode(_SERVICE_TYPE, service))


@internal
@view
def _offer_digest(offer: Offer) -> bytes32:
    """@dev What a node signs for an offer. `slice` cuts the two length words off the list."""
    services: bytes32 = keccak256(b"")
    count: uint256 = len(offer.serviceHashes)
    if count > 0:
        services = keccak256(slice(abi_encode(offer.serviceHashes), 64, count * 32))
    return self._digest(
        keccak256(
            abi_encode(
                _OFFER_TYPE,
                offer.owner,
                offer.node,
                offer.epoch,
                offer.sequence,
                offer.validUntilMs,
                offer.endpointsHash,
                services,
                offer.termsHash,
            )
        )
    )
