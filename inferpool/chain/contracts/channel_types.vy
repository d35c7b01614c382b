# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title Typed data of payment channels
@custom:contract-name channel_types
@license Apache-2.0
@notice A module: the structs of x402's `batch-settlement` and the digests that are signed.
"""


import eip712
uses: eip712


_CHANNEL_CONFIG_TYPE_HASH: constant(bytes32) = keccak256(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER_TYPE_HASH: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
_REFUND_TYPE_HASH: constant(bytes32) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
_CLAIM_ENTRY_TYPE_HASH: constant(bytes32) = keccak256(
    "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
_CLAIM_BATCH_TYPE_HASH: constant(bytes32) = keccak256(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)


struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32

struct Voucher:
    channel: ChannelConfig
    maxClaimableAmount: uint128

struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[65]
    totalClaimed: uint128


@internal
@view
def _channel_id(config: ChannelConfig) -> bytes32:
    """@dev See `getChannelId`."""
    return eip712._digest(keccak256(abi_encode(_CHANNEL_CONFIG_TYPE_HASH, config)))


@internal
@view
def _channel_ids(rows: DynArray[VoucherClaim, 100]) -> DynArray[bytes32, 100]:
    """@dev Returns the ids of all rows' channels, in order."""
    channel_ids: DynArray[bytes32, 100] = []
    for row: VoucherClaim in rows:
        channel_ids.append(self._channel_id(row.voucher.channel))
    return channel_ids


@internal
@view
def _voucher_digest(channel_id: bytes32, ceiling: uint128) -> bytes32:
    """@dev See `getVoucherDigest`."""
    return eip712._digest(keccak256(abi_encode(_VOUCHER_TYPE_HASH, channel_id, ceiling)))


@internal
@view
def _refund_digest(channel_id: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    """@dev See `getRefundDigest`."""
    return eip712._digest(keccak256(abi_encode(_REFUND_TYPE_HASH, channel_id, nonce, amount)))


@internal
@view
def _batch_digest(
    rows: DynArray[VoucherClaim, 100], channel_ids: DynArray[bytes32, 100]
) -> bytes32:
    """@dev See `getClaimBatchDigest`. `slice` cuts the two length words off the encoded array."""
    entries: DynArray[bytes32, 100] = []
    index: uint256 = 0
    for row: VoucherClaim in rows:
        ceiling: uint128 = row.voucher.maxClaimableAmount
        entry: Bytes[128] = abi_encode(
            _CLAIM_ENTRY_TYPE_HASH, channel_ids[index], ceiling, row.totalClaimed
        )
        entries.append(keccak256(entry))
        index += 1
    root: bytes32 = keccak256(b"")
    if len(entries) > 0:
        root = keccak256(slice(abi_encode(entries), 64, len(entries) * 32))
    return eip712._digest(keccak256(abi_encode(_CLAIM_BATCH_TYPE_HASH, root)))
