# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title x402 Batch Settlement for development chains
@custom:contract-name BatchSettlement
@license Apache-2.0
@notice Payment channels of the x402 scheme `batch-settlement`, written anew from the public
        contract's rules: the same functions, events, errors and typed data, at the same
        address, so that unmodified x402 clients, servers and facilitators work. On a public
        chain the public contract is there already and this one is not used. Narrower than it:
        at most 100 claims a call, signatures of 65 bytes, 1,024 bytes of collector data.
@custom:kill Cannot be stopped. There is no owner, no upgrade, no pause and no fee: money leaves
        a channel only to its receiver, by the payer's vouchers, or back to its payer.
"""


from ethereum.ercs import IERC20
import eip712
import channel_types as types
import signatures
initializes: eip712
initializes: types[eip712 := eip712]
exports: eip712.eip712Domain


interface Collector:
    def collect(
        payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[1_024]
    ): nonpayable


MIN_WITHDRAW_DELAY: public(constant(uint40)) = 900
MAX_WITHDRAW_DELAY: public(constant(uint40)) = 2_592_000
_LOW: constant(uint256) = 2**128 - 1

# Two 128-bit numbers to a word: one storage slot for each channel keeps a claim at 18,600 gas.
_channels: HashMap[bytes32, uint256]  # balance | total claimed << 128
_withdrawals: HashMap[bytes32, uint256]  # amount | initiated at << 128
_receivers: HashMap[address, HashMap[address, uint256]]  # claimed | settled << 128
refundNonce: public(HashMap[bytes32, uint256])

event ChannelCreated:
    channelId: indexed(bytes32)
    config: types.ChannelConfig

event ChannelClosed:
    channelId: indexed(bytes32)
    config: types.ChannelConfig

event Deposited:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128
    newBalance: uint128

event Claimed:
    channelId: indexed(bytes32)
    sender: indexed(address)
    claimAmount: uint128
    newTotalClaimed: uint128

event Settled:
    receiver: indexed(address)
    token: indexed(address)
    sender: indexed(address)
    amount: uint128

event Refunded:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128

event WithdrawInitiated:
    channelId: indexed(bytes32)
    amount: uint128
    finalizeAfter: uint40

event WithdrawFinalized:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128


@deploy
def __init__():
    """@dev Sets the signing domain of channels, vouchers, refunds and claim batches."""
    eip712.__init__("x402 Batch Settlement", "1")


@external
def deposit(
    config: types.ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[1_024]
):
    """
    @dev Funds a channel. The collector pulls the money; what counts is that the balance of
         this contract grew by exactly `amount`.
    @param config The channel's terms.
    @param amount Base units of the token.
    @param collector The contract that pulls.
    @param collectorData What the collector needs, such as the payer's signature.
    """
    if empty(address) in [config.payer, config.receiver, config.receiverAuthorizer, config.token]:
        raw_revert(method_id("InvalidChannel()"))
    if config.withdrawDelay < MIN_WITHDRAW_DELAY or config.withdrawDelay > MAX_WITHDRAW_DELAY:
        raw_revert(method_id("WithdrawDelayOutOfRange()"))
    if amount == 0:
        raw_revert(method_id("ZeroDeposit()"))
    if collector == empty(address):
        raw_revert(method_id("InvalidCollector()"))
    channel_id: bytes32 = types._channel_id(config)
    channel: uint256 = self._channels[channel_id]
    added: uint256 = convert(amount, uint256)
    balance: uint256 = (channel & _LOW) + added
    if balance > _LOW:
        raw_revert(method_id("DepositOverflow()"))
    self._channels[channel_id] = channel + added  # no carry: the sum fits in the low half
    token: IERC20 = IERC20(config.token)
    before: uint256 = staticcall token.balanceOf(self)
    extcall Collector(collector).collect(
        config.payer, config.token, added, channel_id, collectorData
    )
    if staticcall token.balanceOf(self) != before + added:
        raw_revert(method_id("DepositCollectionFailed()"))
    if channel == 0:
        log ChannelCreated(channelId=channel_id, config=config)
    log Deposited(
        channelId=channel_id, sender=msg.sender, amount=amount, newBalance=convert(balance, uint128)
    )


@external
def claim(voucherClaims: DynArray[types.VoucherClaim, 100]):
    """
    @dev Books what vouchers allow; sent by each channel's receiver or its authoriser. One bad
         row reverts all: simulate first.
    @param voucherClaims The rows.
    """
    if len(voucherClaims) == 0:
        raw_revert(method_id("EmptyBatch()"))
    for row: types.VoucherClaim in voucherClaims:
        if not self._is_receiver_side(msg.sender, row.voucher.channel):
            raw_revert(method_id("NotAuthorizedToClaim()"))
        self._claim(row, types._channel_id(row.voucher.channel))


@external
def claimWithSignature(
    voucherClaims: DynArray[types.VoucherClaim, 100], authorizerSignature: Bytes[65]
):
    """
    @dev As `claim`, sent by anyone, for channels of one authoriser who signed the batch.
    @param voucherClaims The rows.
    @param authorizerSignature The authoriser's signature over `getClaimBatchDigest`.
    """
    if len(voucherClaims) == 0:
        raw_revert(method_id("EmptyBatch()"))
    authorizer: address = voucherClaims[0].voucher.channel.receiverAuthorizer
    channel_ids: DynArray[bytes32, 100] = types._channel_ids(voucherClaims)
    digest: bytes32 = types._batch_digest(voucherClaims, channel_ids)
    if not signatures._signed_by(authorizer, digest, authorizerSignature):
        raw_revert(method_id("InvalidSignature()"))
    index: uint256 = 0
    for row: types.VoucherClaim in voucherClaims:
        if row.voucher.channel.receiverAuthorizer != authorizer:
            raw_revert(method_id("NotReceiverAuthorizer()"))
        self._claim(row, channel_ids[index])
        index += 1


@external
def settle(receiver: address, token: address):
    """
    @dev Pays out to a receiver all that was claimed for it and not yet paid; sent by anyone.
    @param receiver Who is paid.
    @param token In which token.
    """
    totals: uint256 = self._receivers[receiver][token]
    claimed: uint256 = totals & _LOW
    due: uint256 = claimed - (totals >> 128)
    if due == 0:
        return
    self._receivers[receiver][token] = claimed | (claimed << 128)
    log Settled(receiver=receiver, token=token, sender=msg.sender, amount=convert(due, uint128))
    self._pay(token, receiver, due)


@external
def initiateWithdraw(config: types.ChannelConfig, amount: uint128):
    """
    @dev Starts the payer's way out. Vouchers that are not claimed hold nothing back: the
         receiver has `withdrawDelay` seconds to claim them.
    @param config The channel's terms.
    @param amount Base units; what is left at the end may be less.
    """
    if msg.sender not in [config.payer, config.payerAuthorizer]:
        raw_revert(method_id("InvalidChannel()"))
    if amount == 0:
        raw_revert(method_id("NothingToWithdraw()"))
    channel_id: bytes32 = types._channel_id(config)
    if self._withdrawals[channel_id] != 0:
        raw_revert(method_id("WithdrawalAlreadyPending()"))
    if convert(amount, uint256) > self._available(self._channels[channel_id]):
        raw_revert(method_id("WithdrawAmountExceedsAvailable()"))
    self._withdrawals[channel_id] = convert(amount, uint256) | (block.timestamp << 128)
    log WithdrawInitiated(
        channelId=channel_id,
        amount=amount,
        finalizeAfter=convert(block.timestamp, uint40) + config.withdrawDelay,
    )


@external
def finalizeWithdraw(config: types.ChannelConfig):
    """
    @dev Ends the payer's way out: pays what was asked for, or what claims have left of it.
    @param config The channel's terms.
    """
    if msg.sender not in [config.payer, config.payerAuthorizer]:
        raw_revert(method_id("NotAuthorizedToFinalizeWithdraw()"))
    channel_id: bytes32 = types._channel_id(config)
    withdrawal: uint256 = self._withdrawals[channel_id]
    if withdrawal == 0:
        raw_revert(method_id("WithdrawalNotPending()"))
    if block.timestamp < (withdrawal >> 128) + convert(config.withdrawDelay, uint256):
        raw_revert(method_id("WithdrawDelayNotElapsed()"))
    self._withdrawals[channel_id] = 0
    channel: uint256 = self._channels[channel_id]
    paid: uint256 = min(withdrawal & _LOW, self._available(channel))
    self._channels[channel_id] = channel - paid
    log WithdrawFinalized(channelId=channel_id, sender=msg.sender, amount=convert(paid, uint128))
    if channel == paid:
        log ChannelClosed(channelId=channel_id, config=config)
    if paid > 0:
        self._pay(config.token, config.payer, paid)


@external
def refund(config: types.ChannelConfig, amount: uint128):
    """
    @dev Gives unclaimed money back to the payer at once; sent by the receiver's side.
    @param config The channel's terms.
    @param amount Base units at most.
    """
    if not self._is_receiver_side(msg.sender, config):
        raw_revert(method_id("NotAuthorizedToRefund()"))
    self._refund(config, types._channel_id(config), amount)


@external
def refundWithSignature(
    config: types.ChannelConfig,
    amount: uint128,
    nonce: uint256,
    receiverAuthorizerSignature: Bytes[65],
):
    """
    @dev As `refund`, sent by anyone with the authoriser's signature.
    @param config The channel's terms.
    @param amount Base units at most.
    @param nonce Must be the channel's `refundNonce`.
    @param receiverAuthorizerSignature The signature over `getRefundDigest`.
    """
    channel_id: bytes32 = types._channel_id(config)
    if nonce != self.refundNonce[channel_id]:
        raw_revert(method_id("InvalidRefundNonce()"))
    digest: bytes32 = types._refund_digest(channel_id, nonce, amount)
    if not signatures._signed_by(config.receiverAuthorizer, digest, receiverAuthorizerSignature):
        raw_revert(method_id("InvalidSignature()"))
    self._refund(config, channel_id, amount)


@external
@reentrant
def multicall(data: DynArray[Bytes[4_096], 8]) -> DynArray[Bytes[64], 8]:
    """
    @dev Calls this contract several times for the same sender; facilitators claim and refund
         in one transaction by it. Reentrant, since each inner call takes the lock itself.
    @param data The calls.
    @return DynArray What they answered.
    """
    results: DynArray[Bytes[64], 8] = []
    for call: Bytes[4_096] in data:
        results.append(raw_call(self, call, max_outsize=64, is_delegate_call=True))
    return results


@external
@view
def channels(channelId: bytes32) -> (uint128, uint128):
    """
    @dev Returns a channel's money.
    @return Its balance, claimed money included, and the total that was claimed.
    """
    return self._halves(self._channels[channelId])


@external
@view
def pendingWithdrawals(channelId: bytes32) -> (uint128, uint40):
    """
    @dev Returns the withdrawal under way on a channel, zeros where there is none.
    @return Its amount and the second in which it was initiated.
    """
    withdrawal: uint256 = self._withdrawals[channelId]
    return convert(withdrawal & _LOW, uint128), convert(withdrawal >> 128, uint40)


@external
@view
def receivers(receiver: address, token: address) -> (uint128, uint128):
    """
    @dev Returns a receiver's totals over all channels.
    @return What was claimed for it and what of that was settled.
    """
    return self._halves(self._receivers[receiver][token])


@external
@view
def getChannelId(config: types.ChannelConfig) -> bytes32:
    """
    @dev Returns the id of a channel.
    @param config The channel's terms.
    @return bytes32 The EIP-712 digest of the terms.
    """
    return types._channel_id(config)


@external
@view
def getVoucherDigest(channelId: bytes32, maxClaimableAmount: uint128) -> bytes32:
    """
    @dev Returns what a payer's authoriser signs.
    @param channelId The channel.
    @param maxClaimableAmount The cumulative ceiling.
    @return bytes32 The digest.
    """
    return types._voucher_digest(channelId, maxClaimableAmount)


@external
@view
def getRefundDigest(channelId: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    """
    @dev Returns what a receiver's authoriser signs for a refund.
    @param channelId The channel.
    @param nonce The channel's `refundNonce`.
    @param amount Base units at most.
    @return bytes32 The digest.
    """
    return types._refund_digest(channelId, nonce, amount)


@external
@view
def getClaimBatchDigest(voucherClaims: DynArray[types.VoucherClaim, 100]) -> bytes32:
    """
    @dev Returns what a receiver's authoriser signs for `claimWithSignature`.
    @param voucherClaims The rows.
    @return bytes32 The digest.
    """
    return types._batch_digest(voucherClaims, types._channel_ids(voucherClaims))


@internal
def _claim(row: types.VoucherClaim, channel_id: bytes32):
    """
    @dev Books one row. A total that was claimed before is left alone, which makes replays
         harmless; the signature is checked only where money moves.
    """
    channel: uint256 = self._channels[channel_id]
    total: uint256 = convert(row.totalClaimed, uint256)
    if total <= channel >> 128:
        return
    if row.totalClaimed > row.voucher.maxClaimableAmount:
        raw_revert(method_id("ClaimExceedsCeiling()"))
    if total > channel & _LOW:
        raw_revert(method_id("ClaimExceedsBalance()"))
    config: types.ChannelConfig = row.voucher.channel
    digest: bytes32 = types._voucher_digest(channel_id, row.voucher.maxClaimableAmount)
    signed: bool = False
    if config.payerAuthorizer != empty(address):
        signed = signatures._recover(digest, row.signature) == config.payerAuthorizer
    else:
        signed = signatures._signed_by(config.payer, digest, row.signature)
    if not signed:
        raw_revert(method_id("InvalidSignature()"))
    fresh: uint256 = total - (channel >> 128)
    self._channels[channel_id] = (channel & _LOW) | (total << 128)
    totals: uint256 = self._receivers[config.receiver][config.token]
    if (totals & _LOW) + fresh > _LOW:  # would run over into what was settled
        raw_revert(b"")
    self._receivers[config.receiver][config.token] = totals + fresh
    log Claimed(
        channelId=channel_id,
        sender=msg.sender,
        claimAmount=convert(fresh, uint128),
        newTotalClaimed=row.totalClaimed,
    )


@internal
def _refund(config: types.ChannelConfig, channel_id: bytes32, amount: uint128):
    """
    @dev Pays back what is free, and takes it off a withdrawal under way. The nonce moves also
         where nothing is left to pay, so that a signature is never good twice.
    """
    if amount == 0:
        raw_revert(method_id("ZeroRefund()"))
    self.refundNonce[channel_id] += 1
    channel: uint256 = self._channels[channel_id]
    paid: uint256 = min(convert(amount, uint256), self._available(channel))
    if paid == 0:
        return
    self._channels[channel_id] = channel - paid
    withdrawal: uint256 = self._withdrawals[channel_id]
    if withdrawal != 0:
        rest: uint256 = withdrawal - paid if paid < withdrawal & _LOW else 0
        self._withdrawals[channel_id] = rest
    log Refunded(channelId=channel_id, sender=msg.sender, amount=convert(paid, uint128))
    if channel == paid:
        log ChannelClosed(channelId=channel_id, config=config)
    self._pay(config.token, config.payer, paid)


@internal
def _pay(token: address, to: address, amount: uint256):
    """@dev Sends tokens out; the last act of every function that calls it."""
    paid: bool = extcall IERC20(token).transfer(to, amount, default_return_value=True)
    assert paid, "settlement: token refused"


@internal
@pure
def _is_receiver_side(sender: address, config: types.ChannelConfig) -> bool:
    """@dev Tells whether `sender` may claim and refund for a channel."""
    return sender in [config.receiver, config.receiverAuthorizer]


@internal
@pure
def _available(channel: uint256) -> uint256:
    """
    @dev Returns the part of a channel's balance that was not claimed; never below zero, since
         no claim passes the balance and nothing else is paid out than what this returns.
    """
    return (channel & _LOW) - (channel >> 128)


@internal
@pure
def _halves(word: uint256) -> (uint128, uint128):
    """@dev Splits a packed word into its low and high number."""
    return convert(word & _LOW, uint128), convert(word >> 128, uint128)
