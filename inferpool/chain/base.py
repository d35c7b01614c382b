"""The seam to the chain: what payments, node and gateway ask of it, and nothing more.

Implementations: `client.EvmChain` (any JSON-RPC URL), `memory.MemoryChain` (the simulator),
`memory.FailingChain` (wraps one of them and fails on demand). Amounts are base units of the token,
times are UNIX seconds, addresses 20 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inferpool.protocol.voucher import ChannelConfig, Voucher


@dataclass(frozen=True, slots=True)
class ChannelState:
    """One channel as the contract holds it."""

    balance: int  # deposited in all, less refunds and withdrawals
    total_claimed: int
    withdraw_amount: int  # of a withdrawal under way, else 0
    withdraw_started_s: int  # 0 where none is under way
    refund_nonce: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of one channel: the best voucher and the cumulative total to take from it."""

    config: ChannelConfig
    voucher: Voucher
    total_claimed: int


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """A mined transaction; `gas_used` in gas, `fee_wei` what it cost the sender."""

    transaction_hash: bytes
    block_number: int
    gas_used: int
    fee_wei: int


@dataclass(frozen=True, slots=True)
class DepositAuthorization:
    """An EIP-3009 authorisation to fund a channel, signed by the payer's cold key.

    The nonce of the transfer is keccak256(abi.encode(channelId, salt)); times are UNIX seconds.
    """

    valid_after_s: int
    valid_before_s: int
    salt: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Permit2Deposit:
    """The same by Permit2, for tokens without EIP-3009: the holder once gave Permit2 an allowance,
    and signs each transfer, with the channel as witness. `deadline_s` in UNIX seconds."""

    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Transfer:
    """Tokens moved by the holder's signature alone (EIP-3009), sent by anyone; good once."""

    holder: bytes
    to: bytes
    amount: int  # base units
    valid_after_s: int
    valid_before_s: int
    nonce: bytes
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Registration:
    """One node of the registry, rebuilt from its events."""

    owner: bytes
    node: bytes  # address of the hot key that signs offers and receipts
    endpoint: str
    stake: int


class Chain(Protocol):
    """What the rest of Inferpool needs of a chain. Every call may raise `Unavailable`
    (`chain_unavailable`: try again) or `Refused` (`chain_reverted`: the chain said no)."""

    chain_id: int

    async def now_s(self) -> int:
        """Time of the latest block."""
        ...

    async def channel(self, channel_id: bytes) -> ChannelState:
        """One channel's state; all zero where it was never funded."""
        ...

    async def token_balance(self, token: bytes, owner: bytes) -> int:
        """Base units of `token` that `owner` holds."""
        ...

    async def takes_authorizations(self, token: bytes) -> bool:
        """Whether a token's holders can move it by signature alone (EIP-3009)."""
        ...

    async def allowance(self, token: bytes, owner: bytes, spender: bytes) -> int:
        """Base units of `token` that `spender` may move of what `owner` holds."""
        ...

    async def deposit(
        self,
        config: ChannelConfig,
        amount: int,
        authorization: DepositAuthorization | Permit2Deposit,
    ) -> TransactionReceipt:
        """Fund a channel by EIP-3009 or Permit2; anyone may send it, the signature counts."""
        ...

    async def claim(self, claims: Sequence[Claim]) -> TransactionReceipt:
        """Claim up to 100 channels of one receiver in one transaction.

        Sent by the receiver, its authoriser, or by anyone with the authoriser's signature.
        """
        ...

    async def settle(self, receiver: bytes, token: bytes) -> TransactionReceipt:
        """Pay out to the receiver all that was claimed for it."""
        ...

    async def transfer_authorized(self, token: bytes, transfer: Transfer) -> TransactionReceipt:
        """Move tokens by their holder's signature; refused where it was used before."""
        ...

    async def transferred(self, token: bytes, transfer: Transfer) -> TransactionReceipt | None:
        """The transaction by which this sender moved tokens so before, once it counts; None where
        it did not, or too long ago. Others' are not told: their money may be another's work."""
        ...

    async def unsettled(self, receiver: bytes, token: bytes) -> int:
        """Base units that were claimed for a receiver and are not paid out to it yet."""
        ...

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Start the payer's way out; sent by the payer or its authoriser."""
        ...

    async def finalize_withdraw(self, config: ChannelConfig) -> TransactionReceipt:
        """End the payer's way out, once the channel's delay is over."""
        ...

    async def refund(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Give unclaimed money back to the payer; by the receiver's side."""
        ...

    async def withdrawing(self, receiver: bytes, since_block: int) -> tuple[list[bytes], int]:
        """Channel ids on which a withdrawal was started since a block, and the next block."""
        ...

    async def registrations(self) -> list[Registration]:
        """All nodes that are registered now."""
        ...
