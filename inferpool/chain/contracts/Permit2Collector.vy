# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Permit2 Deposit Collector for development chains
@custom:contract-name Permit2Collector
@license Apache-2.0
@notice Pulls a deposit that the payer authorised by Permit2, for tokens without EIP-3009. Same
        collector data as x402's: abi.encode(nonce, deadline, signature, permit), where permit is
        empty or abi.encode(value, deadline, v, r, s) of an EIP-2612 permit that gives Permit2 its
        allowance. The witness is the channel's id, so that it funds this one channel and no other.
@custom:kill Cannot be stopped; holds no money between transactions, has no owner, no upgrade.
"""


interface Permit2:
    def permitWitnessTransferFrom(
        permit: PermitTransferFrom,
        transferDetails: SignatureTransferDetails,
        owner: address,
        witness: bytes32,
        witnessTypeString: String[256],
        signature: Bytes[65],
    ): nonpayable




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


_SETTLEMENT: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003
_PERMIT2: constant(address) = 0x000000000022D473030F116dDEE9F6B43aC78BA3
_WITNESS_TYPE: constant(String[116]) = (
    "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)"
)
_WITNESS_TYPE_HASH: constant(bytes32) = keccak256("DepositWitness(bytes32 channelId)")


@external
def collect(
    payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[1_024]
):
    """
    @dev Moves `amount` from the payer to the settlement contract; called by that contract only.
    @param payer The payer who signed.
    @param token The token; the payer gave Permit2 an allowance, or permits it here.
    @param amount Base units; the payer permitted exactly so many.
    @param channelId The channel that is funded.
    @param data The ABI-encoded authorisation.
    """
    assert msg.sender == _SETTLEMENT, "collector: only the settlement contract"
    nonce: uint256 = 0
    deadline: uint256 = 0
    signature: Bytes[65] = b""
    allowance: Bytes[160] = b""
    nonce, deadline, signature, allowance = abi_decode(
        data, (uint256, uint256, Bytes[65], Bytes[160])
    )
    if len(allowance) != 0:
        self._permit(payer, token, allowance)
    extcall Permit2(_PERMIT2).permitWitnessTransferFrom(
        PermitTransferFrom(
            permitted=TokenPermissions(token=token, amount=amount), nonce=nonce, deadline=deadline
        ),
        SignatureTransferDetails(to=_SETTLEMENT, requestedAmount=amount),
        payer,
        keccak256(abi_encode(_WITNESS_TYPE_HASH, channelId)),
        _WITNESS_TYPE,
        signature,
    )


@internal
def _permit(payer: address, token: address, data: Bytes[160]):
    """
    @dev Gives Permit2 its allowance. One that fails is let be: somebody may have sent it first.
    """
    value: uint256 = 0
    deadline: uint256 = 0
    v: uint8 = 0
    r: bytes32 = empty(bytes32)
    s: bytes32 = empty(bytes32)
    value, deadline, v, r, s = abi_decode(data, (uint256, uint256, uint8, bytes32, bytes32))
    call: Bytes[228] = abi_encode(
        payer,
        _PERMIT2,
        value,
        deadline,
        v,
        r,
        s,
        method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
    )
    _: bool = raw_call(token, call, revert_on_failure=False)
