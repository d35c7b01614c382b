# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title EIP-3009 Deposit Collector for development chains
@custom:contract-name Erc3009Collector
@license Apache-2.0
@notice Pulls a deposit that the payer authorised by EIP-3009 and hands it to the settlement
        contract. Same collector data as x402's: abi.encode(validAfter, validBefore, salt,
        signature); the authorisation's nonce is keccak256(abi.encode(channelId, salt)), so
        that it funds this one channel and no other.
@custom:kill Cannot be stopped; holds no money between transactions, has no owner, no upgrade.
"""


from ethereum.ercs import IERC20


interface Erc3009:
    def receiveWithAuthorization(
        owner: address,
        to: address,
        amount: uint256,
        valid_after: uint256,
        valid_before: uint256,
        nonce: bytes32,
        signature: Bytes[65],
    ): nonpayable


_SETTLEMENT: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003


@external
def collect(
    payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[1_024]
):
    """
    @dev Moves `amount` from the payer to the settlement contract; called by that contract only.
    @param payer The payer who signed.
    @param token The token with EIP-3009.
    @param amount Base units.
    @param channelId The channel that is funded.
    @param data The ABI-encoded authorisation.
    """
    assert msg.sender == _SETTLEMENT, "collector: only the settlement contract"
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[65] = b""
    valid_after, valid_before, salt, signature = abi_decode(
        data, (uint256, uint256, uint256, Bytes[65])
    )
    nonce: bytes32 = keccak256(abi_encode(channelId, salt))
    extcall Erc3009(token).receiveWithAuthorization(
        payer, self, amount, valid_after, valid_before, nonce, signature
    )
    paid: bool = extcall IERC20(token).transfer(_SETTLEMENT, amount, default_return_value=True)
    assert paid, "collector: token refused"
