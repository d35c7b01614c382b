"""What is signed around a channel, besides vouchers: deposits, claim batches, refunds, bindings.

Deposits are EIP-3009 `ReceiveWithAuthorization` under the token's own domain; batches and refunds
are under the settlement contract's; bindings of node keys under the registry's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from inferpool.chain.base import Claim, DepositAuthorization, Permit2Deposit, Transfer
from inferpool.identity.signing import Key, verify
from inferpool.protocol import eip712
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.voucher import (
    COLLECTOR_3009_ADDRESS,
    COLLECTOR_PERMIT2_ADDRESS,
    PERMIT2_ADDRESS,
    ChannelConfig,
    channels_domain,
)

_RECEIVE_TYPE: Final = keccak256(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    b"uint256 validBefore,bytes32 nonce)"
)
_PERMIT2_DOMAIN: Final = keccak256(
    b"EIP712Domain(string name,uint256 chainId,address verifyingContract)"
)
_PERMITTED_TYPE: Final = keccak256(b"TokenPermissions(address token,uint256 amount)")
_WITNESS_TYPE: Final = keccak256(b"DepositWitness(bytes32 channelId)")
_PERMIT2_TYPE: Final = keccak256(
    b"PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,"
    b"uint256 deadline,DepositWitness witness)DepositWitness(bytes32 channelId)"
    b"TokenPermissions(address token,uint256 amount)"
)
_TRANSFER_TYPE: Final = keccak256(
    b"TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    b"uint256 validBefore,bytes32 nonce)"
)
_CLAIM_ENTRY_TYPE: Final = keccak256(
    b"ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
_CLAIM_BATCH_TYPE: Final = keccak256(
    b"ClaimBatch(ClaimEntry[] claims)"
    b"ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
_REFUND_TYPE: Final = keccak256(b"Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
_BINDING_TYPE: Final = keccak256(b"Binding(address owner,address node,uint256 nonce)")


def deposit_nonce(channel_id: bytes, salt: int) -> bytes:
    """The nonce of a deposit's authorisation: it funds this channel and no other."""
    return keccak256(eip712.word(channel_id) + eip712.uint(salt))


def deposit_digest(
    config: ChannelConfig,
    amount: int,
    authorization: DepositAuthorization,
    *,
    chain_id: int,
    name: str,
    version: str,
) -> bytes:
    """The digest that the payer signs; `name` and `version` are of the token's signing domain."""
    nonce = deposit_nonce(config.channel_id(chain_id), authorization.salt)
    struct = keccak256(
        _RECEIVE_TYPE
        + eip712.address(config.payer)
        + eip712.address(COLLECTOR_3009_ADDRESS)
        + eip712.uint(amount)
        + eip712.uint(authorization.valid_after_s)
        + eip712.uint(authorization.valid_before_s)
        + eip712.word(nonce)
    )
    return eip712.digest(eip712.domain(name, version, chain_id, config.token), struct)


def authorize_deposit(
    key: Key,
    config: ChannelConfig,
    amount: int,
    *,
    chain_id: int,
    name: str,
    version: str,
    valid_before_s: int,
    salt: int,
    valid_after_s: int = 0,
) -> DepositAuthorization:
    """Sign a deposit of `amount` base units with the payer's key; each `salt` is good once."""
    assert key.address == config.payer, "only the payer can authorise a deposit"
    draft = DepositAuthorization(valid_after_s, valid_before_s, salt, b"")
    digest = deposit_digest(config, amount, draft, chain_id=chain_id, name=name, version=version)
    return DepositAuthorization(valid_after_s, valid_before_s, salt, key.sign(digest))


def verify_deposit(
    config: ChannelConfig,
    amount: int,
    authorization: DepositAuthorization,
    *,
    chain_id: int,
    name: str,
    version: str,
) -> None:
    """Raise Refused(bad_signature) unless the payer signed this deposit. Times are the chain's."""
    digest = deposit_digest(
        config, amount, authorization, chain_id=chain_id, name=name, version=version
    )
    verify(digest, authorization.signature, config.payer)


def permit2_digest(
    config: ChannelConfig, amount: int, permit: Permit2Deposit, *, chain_id: int
) -> bytes:
    """What a payer signs for a deposit by Permit2; the witness is the channel's id."""
    permitted = keccak256(_PERMITTED_TYPE + eip712.address(config.token) + eip712.uint(amount))
    witness = keccak256(_WITNESS_TYPE + eip712.word(config.channel_id(chain_id)))
    struct = keccak256(
        _PERMIT2_TYPE
        + permitted
        + eip712.address(COLLECTOR_PERMIT2_ADDRESS)
        + eip712.uint(permit.nonce)
        + eip712.uint(permit.deadline_s)
        + witness
    )
    separator = keccak256(
        _PERMIT2_DOMAIN
        + keccak256(b"Permit2")
        + eip712.uint(chain_id)
        + eip712.address(PERMIT2_ADDRESS)
    )  # a domain without a version
    return eip712.digest(separator, struct)


def permit_deposit(
    key: Key, config: ChannelConfig, amount: int, *, chain_id: int, deadline_s: int, nonce: int
) -> Permit2Deposit:
    """Sign a deposit of `amount` base units by Permit2; each nonce is good once."""
    assert key.address == config.payer, "only the payer can permit a deposit"
    draft = Permit2Deposit(nonce, deadline_s, b"")
    digest = permit2_digest(config, amount, draft, chain_id=chain_id)
    return replace(draft, signature=key.sign(digest))


def transfer_digest(
    transfer: Transfer, token: bytes, *, chain_id: int, name: str, version: str
) -> bytes:
    """What a holder signs so that anyone may move its tokens so (EIP-3009)."""
    struct = keccak256(
        _TRANSFER_TYPE
        + eip712.address(transfer.holder)
        + eip712.address(transfer.to)
        + eip712.uint(transfer.amount)
        + eip712.uint(transfer.valid_after_s)
        + eip712.uint(transfer.valid_before_s)
        + eip712.word(transfer.nonce)
    )
    return eip712.digest(eip712.domain(name, version, chain_id, token), struct)


def sign_transfer(
    key: Key, draft: Transfer, token: bytes, *, chain_id: int, name: str, version: str
) -> Transfer:
    """Sign a transfer of the key's own tokens."""
    assert key.address == draft.holder, "only the holder can authorise a transfer"
    digest = transfer_digest(draft, token, chain_id=chain_id, name=name, version=version)
    return replace(draft, signature=key.sign(digest))


def verify_transfer(
    transfer: Transfer, token: bytes, *, chain_id: int, name: str, version: str
) -> None:
    """Raise Refused(bad_signature) unless the holder signed this transfer."""
    digest = transfer_digest(transfer, token, chain_id=chain_id, name=name, version=version)
    verify(digest, transfer.signature, transfer.holder)


def claim_batch_digest(claims: Sequence[Claim], chain_id: int) -> bytes:
    """What a receiver's authoriser signs so that anyone may send these claims."""
    entries = (
        keccak256(
            _CLAIM_ENTRY_TYPE
            + eip712.word(claim.config.channel_id(chain_id))
            + eip712.uint(claim.voucher.max_claimable)
            + eip712.uint(claim.total_claimed)
        )
        for claim in claims
    )
    struct = keccak256(_CLAIM_BATCH_TYPE + eip712.array(entries))
    return eip712.digest(channels_domain(chain_id), struct)


def refund_digest(channel_id: bytes, nonce: int, amount: int, chain_id: int) -> bytes:
    """What a receiver's authoriser signs so that anyone may send this refund."""
    struct = keccak256(
        _REFUND_TYPE + eip712.word(channel_id) + eip712.uint(nonce) + eip712.uint(amount)
    )
    return eip712.digest(channels_domain(chain_id), struct)


def binding_digest(
    owner: bytes, node: bytes, nonce: int, *, chain_id: int, registry: bytes
) -> bytes:
    """What a node key signs to agree to an owner; `nonce` is the registry's `nonces(node)`."""
    struct = keccak256(
        _BINDING_TYPE + eip712.address(owner) + eip712.address(node) + eip712.uint(nonce)
    )
    return eip712.digest(eip712.domain("Inferpool Registry", "1", chain_id, registry), struct)
