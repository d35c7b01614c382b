# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title Signatures
@custom:contract-name signatures
@license Apache-2.0
@notice A module without state: who signed a digest. Signatures have 65 bytes (r, s, v), s in
        the lower half of the order (EIP-2) and v of 27 or 28; everything else has no signer.
"""


_HALF_ORDER: constant(uint256) = (
    57_896_044_618_658_097_711_785_492_504_343_953_926_418_782_139_537_452_191_302_581_570_759_080_747_168
)
_ERC1271_MAGIC: constant(bytes4) = 0x1626ba7e  # isValidSignature(bytes32,bytes)


@internal
@pure
def _recover(digest: bytes32, signature: Bytes[65]) -> address:
    """
    @dev Recovers the signer of a digest. The precompile refuses any v but 27 and 28.
    @param digest The 32 bytes that were signed.
    @param signature r, s and v in 65 bytes.
    @return address The signer, or the zero address where there is none.
    """
    if len(signature) != 65:
        return empty(address)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    if s > _HALF_ORDER:
        return empty(address)
    r: uint256 = extract32(signature, 0, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    return ecrecover(digest, v, r, s)


@internal
@view
def _signed_by(signer: address, digest: bytes32, signature: Bytes[65]) -> bool:
    """
    @dev Tells whether `signer` signed: a key by recovery, a contract by EIP-1271. The zero
         address signs nothing, or else every broken signature would be its own.
    @param signer The key or contract that should have signed.
    @param digest The 32 bytes that were signed.
    @param signature The signature, of at most 65 bytes.
    @return bool Whether it did.
    """
    if signer == empty(address):
        return False
    if not signer.is_contract:
        return self._recover(digest, signature) == signer
    success: bool = False
    answer: Bytes[32] = b""
    success, answer = raw_call(
        signer,
        abi_encode(digest, signature, method_id=_ERC1271_MAGIC),
        max_outsize=32,
        is_static_call=True,
        revert_on_failure=False,
    )
    return (
        success
        and len(answer) == 32
        and convert(answer, bytes32) == convert(_ERC1271_MAGIC, bytes32)
    )
