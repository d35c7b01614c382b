"""The rules of the settlement contract and of a token, in plain Python.

The same checks in the same order with the same reasons as the contracts; a differential test runs
both on the same sequences. Every operation checks first and changes then, so that one which is
refused leaves no trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn

from inferpool.chain.authorization import (
    deposit_nonce,
    permit2_digest,
    verify_deposit,
    verify_transfer,
)
from inferpool.chain.base import (
    ChannelState,
    Claim,
    DepositAuthorization,
    Permit2Deposit,
    Transfer,
)
from inferpool.identity.signing import verify
from inferpool.protocol.eip712 import UINT128_MAX
from inferpool.protocol.errors import Refused
from inferpool.protocol.voucher import (
    CHANNELS_ADDRESS,
    PERMIT2_ADDRESS,
    WITHDRAW_DELAY_MAX_S,
    WITHDRAW_DELAY_MIN_S,
    ChannelConfig,
)

_UINT256_MAX: Final = 2**256 - 1
_EMPTY: Final = ChannelState(0, 0, 0, 0, 0)
NOBODY: Final = bytes(20)


def refuse(reason: str) -> NoReturn:
    """Raise what a reverted transaction raises."""
    raise Refused(f"the chain reverted: {reason}", code="chain_reverted")


@dataclass(slots=True)
class Totals:
    """What a receiver has in one token over all its channels."""

    claimed: int = 0
    settled: int = 0


@dataclass(slots=True)
class Tokens:
    """Balances and allowances of any number of tokens, EIP-3009 included."""

    domain: tuple[str, str]  # name and version of every token's signing domain
    balances: dict[tuple[bytes, bytes], int] = field(default_factory=lambda: defaultdict(int))
    allowances: dict[tuple[bytes, bytes, bytes], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    used: set[tuple[bytes, bytes, bytes]] = field(default_factory=set)  # token, holder, nonce
    plain: set[bytes] = field(default_factory=set)  # tokens without EIP-3009

    def transfer(self, token: bytes, holder: bytes, to: bytes, amount: int) -> None:
        """Move base units."""
        if to == NOBODY:
            refuse("dollar: no receiver")
        if amount > self.balances[token, holder]:
            refuse("dollar: balance too small")
        self.balances[token, holder] -= amount
        self.balances[token, to] += amount

    def pull(self, token: bytes, holder: bytes, spender: bytes, amount: int) -> None:
        """Move base units to a spender out of its allowance; the largest one is without end."""
        allowed = self.allowances[token, holder, spender]
        if amount > allowed:
            refuse("dollar: allowance too small")
        self.transfer(token, holder, spender, amount)
        if allowed != _UINT256_MAX:
            self.allowances[token, holder, spender] = allowed - amount

    def transfer_authorized(
        self, token: bytes, transfer: Transfer, chain_id: int, now_s: int
    ) -> None:
        """Move base units by the holder's signature, once."""
        use = (token, transfer.holder, transfer.nonce)
        self.check_use(use, transfer.valid_after_s, transfer.valid_before_s, now_s)
        name, version = self.domain
        try:
            verify_transfer(transfer, token, chain_id=chain_id, name=name, version=version)
        except Refused:
            refuse("dollar: invalid signature")
        self.transfer(token, transfer.holder, transfer.to, transfer.amount)
        self.used.add(use)

    def check_use(
        self, use: tuple[bytes, bytes, bytes], after_s: int, before_s: int, now_s: int
    ) -> None:
        """Refuse an authorisation out of its time, or one that was used."""
        if use[0] in self.plain:
            refuse("execution reverted")
        if now_s <= after_s:
            refuse("dollar: authorization is not yet valid")
        if now_s >= before_s:
            refuse("dollar: authorization is expired")
        if use in self.used:
            refuse("dollar: authorization is used")


class Settlement:
    """The channels. `now_s` is the time of the block that the operation is in."""

    def __init__(self, chain_id: int, tokens: Tokens) -> None:
        self.channels: dict[bytes, ChannelState] = {}
        self.receivers: dict[tuple[bytes, bytes], Totals] = defaultdict(Totals)
        self._chain_id = chain_id
        self._tokens = tokens

    def state(self, channel_id: bytes) -> ChannelState:
        """One channel; all zero where it was never funded."""
        return self.channels.get(channel_id, _EMPTY)

    def deposit(
        self,
        config: ChannelConfig,
        amount: int,
        permit: DepositAuthorization | Permit2Deposit,
        now_s: int,
    ) -> None:
        """Fund a channel by the payer's authorisation, or its permit."""
        if NOBODY in (config.payer, config.receiver, config.receiver_authorizer, config.token):
            refuse("InvalidChannel")
        if not WITHDRAW_DELAY_MIN_S <= config.withdraw_delay_s <= WITHDRAW_DELAY_MAX_S:
            refuse("WithdrawDelayOutOfRange")
        if amount == 0:
            refuse("ZeroDeposit")
        channel_id = config.channel_id(self._chain_id)
        channel = self.state(channel_id)
        if channel.balance + amount > UINT128_MAX:
            refuse("DepositOverflow")
        if isinstance(permit, Permit2Deposit):
            self._pull_by_permit2(config, amount, permit, now_s)
        else:
            use = (config.token, config.payer, deposit_nonce(channel_id, permit.salt))
            self._check_permit(config, amount, permit, use, now_s)
            self._tokens.transfer(config.token, config.payer, CHANNELS_ADDRESS, amount)
            self._tokens.used.add(use)
        self.channels[channel_id] = replace(channel, balance=channel.balance + amount)

    def _pull_by_permit2(
        self, config: ChannelConfig, amount: int, permit: Permit2Deposit, now_s: int
    ) -> None:
        if now_s > permit.deadline_s:
            refuse("SignatureExpired")
        use = (PERMIT2_ADDRESS, config.payer, permit.nonce.to_bytes(32, "big"))
        if use in self._tokens.used:
            refuse("InvalidNonce")
        digest = permit2_digest(config, amount, permit, chain_id=self._chain_id)
        try:
            verify(digest, permit.signature, config.payer)
        except Refused:
            refuse("InvalidSigner")
        spender = (config.token, config.payer, PERMIT2_ADDRESS)
        if amount > self._tokens.allowances[spender]:
            refuse("dollar: allowance too small")
        self._tokens.transfer(config.token, config.payer, CHANNELS_ADDRESS, amount)
        if self._tokens.allowances[spender] != _UINT256_MAX:
            self._tokens.allowances[spender] -= amount
        self._tokens.used.add(use)

    def _check_permit(
        self,
        config: ChannelConfig,
        amount: int,
        permit: DepositAuthorization,
        use: tuple[bytes, bytes, bytes],
        now_s: int,
    ) -> None:
        self._tokens.check_use(use, permit.valid_after_s, permit.valid_before_s, now_s)
        name, version = self._tokens.domain
        try:
            verify_deposit(
                config, amount, permit, chain_id=self._chain_id, name=name, version=version
            )
        except Refused:
            refuse("dollar: invalid signature")

    def claim(
        self,
        claims: Sequence[Claim],
        check: Callable[[ChannelConfig], None],
    ) -> None:
        """Book claims, all or none; `check` refuses rows that the sender may not send."""
        channels: dict[bytes, ChannelState] = {}
        fresh: dict[tuple[bytes, bytes], int] = defaultdict(int)
        for claim in claims:
            check(claim.config)
            channel_id = claim.config.channel_id(self._chain_id)
            channel = channels.get(channel_id, self.state(channel_id))
            if claim.total_claimed <= channel.total_claimed:
                continue
            self._check_claim(claim, channel_id, channel)
            fresh[claim.config.receiver, claim.config.token] += (
                claim.total_claimed - channel.total_claimed
            )
            channels[channel_id] = replace(channel, total_claimed=claim.total_claimed)
        self.channels |= channels
        for account, amount in fresh.items():
            self.receivers[account].claimed += amount

    def _check_claim(self, claim: Claim, channel_id: bytes, channel: ChannelState) -> None:
        if claim.total_claimed > claim.voucher.max_claimable:
            refuse("ClaimExceedsCeiling")
        if claim.total_claimed > channel.balance:
            refuse("ClaimExceedsBalance")
        # The contract hashes the id that it computes, not the one that the voucher names.
        digest = replace(claim.voucher, channel_id=channel_id).digest(self._chain_id)
        signer = claim.config.payer_authorizer
        try:
            verify(digest, claim.voucher.signature, signer if any(signer) else claim.config.payer)
        except Refused:
            refuse("InvalidSignature")

    def settle(self, receiver: bytes, token: bytes) -> None:
        """Pay out what was claimed and not yet settled."""
        totals = self.receivers[receiver, token]
        due = totals.claimed - totals.settled
        if due:
            self._tokens.transfer(token, CHANNELS_ADDRESS, receiver, due)
            totals.settled = totals.claimed

    def initiate_withdraw(
        self, config: ChannelConfig, amount: int, sender: bytes, now_s: int
    ) -> bytes:
        """Start the payer's way out; the channel's id."""
        if sender not in (config.payer, config.payer_authorizer):
            refuse("InvalidChannel")
        if amount == 0:
            refuse("NothingToWithdraw")
        channel_id = config.channel_id(self._chain_id)
        channel = self.state(channel_id)
        if channel.withdraw_started_s:
            refuse("WithdrawalAlreadyPending")
        if amount > channel.balance - channel.total_claimed:
            refuse("WithdrawAmountExceedsAvailable")
        self.channels[channel_id] = replace(
            channel, withdraw_amount=amount, withdraw_started_s=now_s
        )
        return channel_id

    def finalize_withdraw(self, config: ChannelConfig, sender: bytes, now_s: int) -> None:
        """End the payer's way out."""
        if sender not in (config.payer, config.payer_authorizer):
            refuse("NotAuthorizedToFinalizeWithdraw")
        channel_id = config.channel_id(self._chain_id)
        channel = self.state(channel_id)
        if not channel.withdraw_started_s:
            refuse("WithdrawalNotPending")
        if now_s < channel.withdraw_started_s + config.withdraw_delay_s:
            refuse("WithdrawDelayNotElapsed")
        paid = min(channel.withdraw_amount, channel.balance - channel.total_claimed)
        self._tokens.transfer(config.token, CHANNELS_ADDRESS, config.payer, paid)
        self.channels[channel_id] = replace(
            channel, balance=channel.balance - paid, withdraw_amount=0, withdraw_started_s=0
        )

    def refund(self, config: ChannelConfig, amount: int) -> None:
        """Give unclaimed money back; the caller has checked the sender or the signature."""
        if amount == 0:
            refuse("ZeroRefund")
        channel_id = config.channel_id(self._chain_id)
        channel = self.state(channel_id)
        paid = min(amount, channel.balance - channel.total_claimed)
        self._tokens.transfer(config.token, CHANNELS_ADDRESS, config.payer, paid)
        left = max(0, channel.withdraw_amount - paid)
        self.channels[channel_id] = ChannelState(
            balance=channel.balance - paid,
            total_claimed=channel.total_claimed,
            withdraw_amount=left,
            withdraw_started_s=channel.withdraw_started_s if left else 0,
            refund_nonce=channel.refund_nonce + 1,
        )
