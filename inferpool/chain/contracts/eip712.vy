# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title EIP-712 Domain
@custom:contract-name eip712
@license Apache-2.0
@notice A module: the domain separator of one name and version, for typed-data digests. It is
        cached, and rebuilt where the chain id or the address is not the one it was cached for,
        so that a signature never counts on a fork of the chain or on a copy of the code.
"""


_DOMAIN_TYPE_HASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


_NAME: immutable(String[32])
_VERSION: immutable(String[8])
_CACHED_SEPARATOR: immutable(bytes32)
_CACHED_CHAIN_ID: immutable(uint256)
_CACHED_SELF: immutable(address)


@deploy
def __init__(name: String[32], version: String[8]):
    """
    @dev Caches the domain separator of this deployment.
    @param name The name of the signing domain.
    @param version The version of the signing domain.
    """
    _NAME = name
    _VERSION = version
    _CACHED_CHAIN_ID = chain.id
    _CACHED_SELF = self
    _CACHED_SEPARATOR = keccak256(
        abi_encode(_DOMAIN_TYPE_HASH, keccak256(name), keccak256(version), chain.id, self)
    )


@external
@view
def eip712Domain() -> (
    bytes1, String[32], String[8], uint256, address, bytes32, DynArray[uint256, 1]
):
    """
    @dev Returns the domain as EIP-5267 describes it; bit map 0x0f: name, version, chain id and
         verifying contract are used, the salt is not.
    @return The bit map, name, version, chain id, contract, salt and extensions (none).
    """
    return 0x0f, _NAME, _VERSION, chain.id, self, empty(bytes32), []


@internal
@view
def _separator() -> bytes32:
    """
    @dev Returns the domain separator of this chain and this address.
    @return bytes32 The cached separator, or a new one after a fork of the chain.
    """
    if chain.id == _CACHED_CHAIN_ID and self == _CACHED_SELF:
        return _CACHED_SEPARATOR
    return keccak256(
        abi_encode(_DOMAIN_TYPE_HASH, keccak256(_NAME), keccak256(_VERSION), chain.id, self)
    )


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    """
    @dev Returns the digest that is signed for a struct.
    @param struct_hash The hash of the struct, its type hash included.
    @return bytes32 keccak256(0x1901 || separator || struct hash).
    """
    return keccak256(concat(x"1901", self._separator(), struct_hash))
