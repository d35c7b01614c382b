"""Payment channels and cumulative vouchers of x402 v2, scheme `batch-settlement`.

A channel is the hash of its seven terms; a voucher says "the receiver may have claimed up to
`max_claimable` base units of this channel in all", signed by the channel's `payer_authorizer`.
Source: the public contract x402BatchSettlement (type strings and addresses are its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from inferpool.protocol import eip712
from inferpool.protocol.encoding import canonical, from_hex, to_checksum, to_hex
from inferpool.protocol.value import value

CHANNELS_ADDRESS: Final = bytes.fromhex("4020074e9df2ce1dee5a9c1b5c3f541d02a10003")
COLLECTOR_3009_ADDRESS: Final = bytes.fromhex("4020806089470a89826cb9fb1f4059150b550004")
COLLECTOR_PERMIT2_ADDRESS: Final = bytes.fromhex("4020425faf3b746c082c2f942b4e5159887b0005")
PERMIT2_ADDRESS: Final = bytes.fromhex("000000000022d473030f116ddee9f6b43ac78ba3")

_CONFIG_TYPE: Final = eip712.keccak256(
    b"ChannelConfig(address payer,address payerAuthorizer,address receiver,"
    b"address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER_TYPE: Final = eip712.keccak256(b"Voucher(bytes32 channelId,uint128 maxClaimableAmount)")

WITHDRAW_DELAY_MIN_S: Final = 900  # the contract's own bounds
WITHDRAW_DELAY_MAX_S: Final = 30 * 86_400


@lru_cache(maxsize=64)
def channels_domain(chain_id: int) -> bytes:
    """Domain separator of the batch-settlement contract on one chain."""
    return eip712.domain("x402 Batch Settlement", "1", chain_id, CHANNELS_ADDRESS)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The seven terms of a channel; addresses are 20 bytes, the salt 32, the delay seconds."""

    payer: bytes
    payer_authorizer: bytes
    receiver: bytes
    receiver_authorizer: bytes
    token: bytes
    withdraw_delay_s: int
    salt: bytes

    def __hash__(self) -> int:
        """By two members, which tell channels apart: terms are looked up with each request."""
        return hash((self.salt, self.payer))

    def channel_id(self, chain_id: int) -> bytes:
        """The channel's 32-byte id on a chain; a payer shows the same terms each time."""
        return _channel_id(self, chain_id)

    def to_wire(self) -> dict[str, object]:
        """The object `channelConfig` of x402's headers."""
        return {
            "payer": to_checksum(self.payer),
            "payerAuthorizer": to_checksum(self.payer_authorizer),
            "receiver": to_checksum(self.receiver),
            "receiverAuthorizer": to_checksum(self.receiver_authorizer),
            "token": to_checksum(self.token),
            "withdrawDelay": self.withdraw_delay_s,
            "salt": to_hex(self.salt),
        }

    @classmethod
    def from_wire(cls, wire: object) -> ChannelConfig:
        """Parse `channelConfig`. Raises ValueError on anything but its seven members."""
        if not isinstance(wire, dict) or len(wire) != 7:
            raise ValueError("channelConfig must have seven members")
        delay = wire.get("withdrawDelay")
        if not isinstance(delay, int) or isinstance(delay, bool) or not 0 <= delay < 2**40:
            raise ValueError("channelConfig.withdrawDelay must be a number of seconds")
        return cls(
            payer=from_hex(wire.get("payer"), 20),
            payer_authorizer=from_hex(wire.get("payerAuthorizer"), 20),
            receiver=from_hex(wire.get("receiver"), 20),
            receiver_authorizer=from_hex(wire.get("receiverAuthorizer"), 20),
            token=from_hex(wire.get("token"), 20),
            withdraw_delay_s=delay,
            salt=from_hex(wire.get("salt"), 32),
        )


@lru_cache(maxsize=4096)
def canonical_config(config: ChannelConfig) -> bytes:
    """Canonical JSON of a channel's terms, as ledgers keep them with each write."""
    return canonical(config.to_wire())


@lru_cache(maxsize=4096)
def _channel_id(config: ChannelConfig, chain_id: int) -> bytes:
    struct = eip712.keccak256(
        _CONFIG_TYPE
        + eip712.address(config.payer)
        + eip712.address(config.payer_authorizer)
        + eip712.address(config.receiver)
        + eip712.address(config.receiver_authorizer)
        + eip712.address(config.token)
        + eip712.uint(config.withdraw_delay_s)
        + eip712.word(config.salt)
    )
    return eip712.digest(channels_domain(chain_id), struct)


@value
class Voucher:
    """One signed promise; `max_claimable` is cumulative, in base units of the channel's token."""

    channel_id: bytes
    max_claimable: int
    signature: bytes = b""

    def digest(self, chain_id: int) -> bytes:
        """The 32 bytes that the payer's authoriser signs."""
        return voucher_digest(self.channel_id, self.max_claimable, chain_id)


def voucher_digest(channel_id: bytes, max_claimable: int, chain_id: int) -> bytes:
    """Digest of a voucher. Raises ValueError for an amount that uint128 does not hold."""
    if not 0 <= max_claimable <= eip712.UINT128_MAX:
        raise ValueError("a voucher's amount must fit in 128 bits")
    struct = eip712.keccak256(_VOUCHER_TYPE + eip712.word(channel_id) + eip712.uint(max_claimable))
    return eip712.digest(channels_domain(chain_id), struct)
