# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title Permit2 signature transfers for development chains
@custom:contract-name Permit2
@license Apache-2.0
@notice Moves tokens by their holder's signature, within the allowance that the holder gave this
        contract once: the interface, type strings, domain and nonces of the public Permit2's
        `SignatureTransfer`, at its address, as far as x402 uses them (one token a transfer,
        with a witness). Its allowance transfers and batches are not here.
@custom:kill Cannot be stopped; holds no money, has no owner, no upgrade.
"""


from ethereum.ercs import IERC20
import signatures


struct TokenPermissions:
    token: address
    amount: uint256

struct PermitTransferFrom:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256

struct SignatureTransferDetails:
    to: address
    requestedAmount: uint256


_DOMAIN_TYPE_HASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,uint256 chainId,address verifyingContract)"
)
_TOKEN_TYPE_HASH: constant(bytes32) = keccak256("TokenPermissions(address token,uint256 amount)")
_WITNESS_STUB: constant(String[101]) = (
    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
)


nonceBitmap: public(HashMap[address, HashMap[uint256, uint256]])


event UnorderedNonceInvalidation:
    owner: indexed(address)
    word: uint256
    mask: uint256


@external
def permitWitnessTransferFrom(
    permit: PermitTransferFrom,
    transferDetails: SignatureTransferDetails,
    owner: address,
    witness: bytes32,
    witnessTypeString: String[256],
    signature: Bytes[65],
):
    """
    @dev Moves up to the permitted amount for the spender that the holder named, who is the
         caller, and marks the nonce as used.
    @param permit What the holder permits, and until when.
    @param transferDetails To whom, and how much of it.
    @param owner The holder who signed.
    @param witness The hash of what the holder bound the transfer to.
    @param witnessTypeString The end of the signed type, with the witness's own.
    @param signature The holder's signature.
    """
    if block.timestamp > permit.deadline:
        raw_revert(abi_encode(permit.deadline, method_id=method_id("SignatureExpired(uint256)")))
    if transferDetails.requestedAmount > permit.permitted.amount:
        raw_revert(
            abi_encode(permit.permitted.amount, method_id=method_id("InvalidAmount(uint256)"))
        )
    self._use(owner, permit.nonce)
    permitted: bytes32 = keccak256(
        abi_encode(_TOKEN_TYPE_HASH, permit.permitted.token, permit.permitted.amount)
    )
    struct_hash: bytes32 = keccak256(
        abi_encode(
            keccak256(concat(_WITNESS_STUB, witnessTypeString)),
            permitted,
            msg.sender,
            permit.nonce,
            permit.deadline,
            witness,
        )
    )
    digest: bytes32 = keccak256(concat(x"1901", self._separator(), struct_hash))
    if not signatures._signed_by(owner, digest, signature):
        raw_revert(method_id("InvalidSigner()"))
    paid: bool = extcall IERC20(permit.permitted.token).transferFrom(
        owner, transferDetails.to, transferDetails.requestedAmount, default_return_value=True
    )
    assert paid, "TRANSFER_FROM_FAILED"


@external
def invalidateUnorderedNonces(wordPos: uint256, mask: uint256):
    """
    @dev Marks nonces of the caller as used, so that what was signed with them is void.
    @param wordPos The number of the 256 nonces.
    @param mask Which of them, one bit each.
    """
    self.nonceBitmap[msg.sender][wordPos] |= mask
    log UnorderedNonceInvalidation(owner=msg.sender, word=wordPos, mask=mask)


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @dev Returns the signing domain of this chain; it has no version, as the public one's.
    @return bytes32 The separator.
    """
    return self._separator()


@internal
def _use(owner: address, nonce: uint256):
    """
    @dev Marks a nonce as used: its upper 248 bits name a word, the lower eight a bit in it.
    """
    bit: uint256 = 1 << (nonce & 255)
    used: uint256 = self.nonceBitmap[owner][nonce >> 8]
    if used & bit != 0:
        raw_revert(method_id("InvalidNonce()"))
    self.nonceBitmap[owner][nonce >> 8] = used | bit


@internal
@view
def _separator() -> bytes32:
    """
    @dev Returns the domain separator.
    """
    return keccak256(abi_encode(_DOMAIN_TYPE_HASH, keccak256("Permit2"), chain.id, self))
