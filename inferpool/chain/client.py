"""`EvmChain`: the seam's real implementation, for any JSON-RPC URL.

Reads need nothing but the URL; writes need the key of their sender. Use one `EvmChain` for each
sender of a process and chain (`with_sender` shares the connection): two objects with one key would
fight over its nonces, and lose time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from inferpool.chain import cases
from inferpool.chain.abi import contract, encode
from inferpool.chain.addresses import DEV_CHAIN_ID, DEV_REGISTRY_ADDRESS, MULTICALL3_ADDRESS
from inferpool.chain.authorization import binding_digest, claim_batch_digest, refund_digest
from inferpool.chain.base import (
    ChannelState,
    Claim,
    DepositAuthorization,
    Permit2Deposit,
    Registration,
    TransactionReceipt,
    Transfer,
)
from inferpool.chain.events import REORG_DEPTH, EventReader
from inferpool.chain.rpc import Post, Rpc, RpcRefused, post_by_urllib, unavailable
from inferpool.chain.sender import RECEIPT_TIMEOUT_S, Sender, fees_from_history, receipt_of
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.offer import SignedOffer
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.voucher import (
    CHANNELS_ADDRESS,
    COLLECTOR_3009_ADDRESS,
    COLLECTOR_PERMIT2_ADDRESS,
    ChannelConfig,
)

CLAIMS_MAX: Final = 100  # of one transaction

_SETTLEMENT: Final = contract("BatchSettlement")
_REGISTRY: Final = contract("Registry")
_COURT: Final = contract("Disputes")
_TOKEN: Final = contract("TestDollar")
_MULTICALL: Final = contract("Multicall3")


class EvmChain:
    """A chain behind a URL. `authorizer` is the receiver's authoriser, where claims or refunds
    are sent by somebody else; `registry` is the registry's address on this chain."""

    def __init__(
        self,
        rpc: Rpc,
        chain_id: int,
        *,
        sender: Key | None = None,
        authorizer: Key | None = None,
        registry: bytes = DEV_REGISTRY_ADDRESS,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        finality_blocks: int = 0,
    ) -> None:
        assert finality_blocks >= 0, "a depth is never negative"
        self.rpc = rpc
        self.chain_id = chain_id
        self.registry = registry
        self.finality_blocks = finality_blocks
        self._authorizer = authorizer
        self._receipt_timeout_s = receipt_timeout_s
        self._sender = (
            Sender(rpc, sender, chain_id, receipt_timeout_s, confirmations=finality_blocks)
            if sender
            else None
        )
        self._events = EventReader(rpc, registry, max(REORG_DEPTH, finality_blocks))

    @classmethod
    async def connect(
        cls,
        urls: str | Sequence[str],
        *,
        sender: Key | None = None,
        authorizer: Key | None = None,
        registry: bytes = DEV_REGISTRY_ADDRESS,
        post: Post = post_by_urllib,
        finality_blocks: int = 0,
    ) -> EvmChain:
        """Ask for the chain's id. Several URLs stand in for each other; what counts must lie
        `finality_blocks` deep, where the chain is no development chain.

        Raises Unavailable, and ValueError for a strange URL.
        """
        rpc = Rpc(urls, post)
        chain_id = int(await rpc.call("eth_chainId"), 16)
        return cls(
            rpc,
            chain_id,
            sender=sender,
            authorizer=authorizer,
            registry=registry,
            finality_blocks=0 if chain_id == DEV_CHAIN_ID else finality_blocks,
        )

    def with_sender(self, sender: Key, authorizer: Key | None = None) -> EvmChain:
        """The same chain for another sender."""
        return EvmChain(
            self.rpc,
            self.chain_id,
            sender=sender,
            authorizer=authorizer,
            registry=self.registry,
            receipt_timeout_s=self._receipt_timeout_s,
            finality_blocks=self.finality_blocks,
        )

    # -- reading

    async def now_s(self) -> int:
        """Time of the latest block."""
        block = await self.rpc.call("eth_getBlockByNumber", "latest", False)
        return int(block["timestamp"], 16)

    async def channel(self, channel_id: bytes) -> ChannelState:
        """One channel's state. What favours its reader is believed once it is final, what does not
        at once: the balance is the lower one of now and `finality_blocks` ago."""
        state = await self._channel_at(channel_id, "latest")
        if not self.finality_blocks or not state.balance:
            return state
        head = int(await self.rpc.call("eth_blockNumber"), 16)
        final = await self._channel_at(channel_id, hex(max(0, head - self.finality_blocks)))
        return replace(state, balance=min(state.balance, final.balance))

    async def _channel_at(self, channel_id: bytes, block: str) -> ChannelState:
        """The state in one block, its three parts in one call."""
        names = ("channels", "pendingWithdrawals", "refundNonce")
        calls = [(CHANNELS_ADDRESS, _SETTLEMENT.call(name, channel_id)) for name in names]
        data = _MULTICALL.call("tryAggregate", True, calls)
        (answers,) = _MULTICALL.functions["tryAggregate"].result(
            await self._read(MULTICALL3_ADDRESS, data, block)
        )
        (balance, claimed), (amount, started_s), (nonce,) = (
            _SETTLEMENT.functions[name].result(answer)
            for name, (_, answer) in zip(names, answers, strict=True)
        )
        return ChannelState(balance, claimed, amount, started_s, nonce)

    async def token_balance(self, token: bytes, owner: bytes) -> int:
        """Base units of `token` that `owner` holds."""
        answer = await self._read(token, _TOKEN.call("balanceOf", owner))
        return int(_TOKEN.functions["balanceOf"].result(answer)[0])

    async def takes_authorizations(self, token: bytes) -> bool:
        """Whether a token has EIP-3009: it then knows the state of any holder's nonces."""
        try:
            answer = await self._read(
                token, _TOKEN.call("authorizationState", bytes(20), bytes(32))
            )
        except RpcRefused as refusal:
            # Silence and trouble are not an answer: only what the token itself says is.
            if any(word in refusal.message.lower() for word in ("revert", "opcode")):
                return False
            raise
        return answer in (bytes(32), bytes(31) + b"\1")

    async def allowance(self, token: bytes, owner: bytes, spender: bytes) -> int:
        """Base units of `token` that `spender` may move of what `owner` holds."""
        answer = await self._read(token, _TOKEN.call("allowance", owner, spender))
        return int(_TOKEN.functions["allowance"].result(answer)[0])

    async def gas_balance(self, owner: bytes) -> int:
        """Wei of the chain's own coin that `owner` holds."""
        return int(await self.rpc.call("eth_getBalance", to_hex(owner), "latest"), 16)

    async def withdrawing(self, receiver: bytes, since_block: int) -> tuple[list[bytes], int]:
        """Channels of a receiver on which a withdrawal was started, and the next `since_block`.

        The last blocks are read again each time, for reorgs: an id may come more than once, and
        `channel` tells whether the withdrawal is still under way.
        """
        return await self._events.withdrawing(receiver, since_block)

    async def registrations(self) -> list[Registration]:
        """All nodes that are registered now; after the first call only new blocks are read."""
        return await self._events.registrations()

    # -- channels

    async def deposit(
        self,
        config: ChannelConfig,
        amount: int,
        authorization: DepositAuthorization | Permit2Deposit,
    ) -> TransactionReceipt:
        """Fund a channel by EIP-3009 or Permit2; anyone may send it."""
        if isinstance(authorization, Permit2Deposit):
            data = encode(
                ["uint256", "uint256", "bytes", "bytes"],
                [authorization.nonce, authorization.deadline_s, authorization.signature, b""],
            )
            return await self._settlement(
                "deposit", _terms(config), amount, COLLECTOR_PERMIT2_ADDRESS, data
            )
        collector_data = encode(
            ["uint256", "uint256", "uint256", "bytes"],
            [
                authorization.valid_after_s,
                authorization.valid_before_s,
                authorization.salt,
                authorization.signature,
            ],
        )
        return await self._settlement(
            "deposit", _terms(config), amount, COLLECTOR_3009_ADDRESS, collector_data
        )

    async def claim(self, claims: Sequence[Claim]) -> TransactionReceipt:
        """Claim up to 100 channels in one transaction; one bad row refuses all."""
        assert 1 <= len(claims) <= CLAIMS_MAX, f"1 to {CLAIMS_MAX} claims, not {len(claims)}"
        rows = [
            (
                (_terms(claim.config), claim.voucher.max_claimable),
                claim.voucher.signature,
                claim.total_claimed,
            )
            for claim in claims
        ]
        if all(self._is_receiver_side(claim.config) for claim in claims):
            return await self._settlement("claim", rows)
        signature = self._authorized(claims[0].config).sign(
            claim_batch_digest(claims, self.chain_id)
        )
        return await self._settlement("claimWithSignature", rows, signature)

    async def settle(self, receiver: bytes, token: bytes) -> TransactionReceipt:
        """Pay out to the receiver all that was claimed for it; anyone may send it."""
        return await self._settlement("settle", receiver, token)

    async def transfer_authorized(self, token: bytes, transfer: Transfer) -> TransactionReceipt:
        """Move tokens by their holder's signature; anyone may send it."""
        return await self._send(token, _transfer_call(transfer))

    async def transferred(self, token: bytes, transfer: Transfer) -> TransactionReceipt | None:
        """The transaction by which this sender moved tokens so before: found by the event of its
        nonce, and known by sender and call. Raises Unavailable while it does not count yet."""
        assert self._sender is not None, "this chain was opened without a sender's key"
        hash_ = await self._events.authorization_used(token, transfer.holder, transfer.nonce)
        if hash_ is None:
            return None
        sent, mined, head = await self.rpc.batch(
            [
                ("eth_getTransactionByHash", [hash_]),
                ("eth_getTransactionReceipt", [hash_]),
                ("eth_blockNumber", []),
            ]
        )
        ours = (to_hex(self._sender.key.address), to_hex(token), to_hex(_transfer_call(transfer)))
        if sent is None or mined is None:
            raise unavailable("the chain was reorganised while it was read; try again")
        found = (str(sent["from"]), str(sent["to"]), str(sent["input"]))
        if tuple(item.lower() for item in found) != ours:
            return None
        if int(head, 16) < int(mined["blockNumber"], 16) + self.finality_blocks:
            raise unavailable("the transfer is mined, and not deep enough to count; try again")
        return receipt_of(mined)

    async def unsettled(self, receiver: bytes, token: bytes) -> int:
        """Base units that were claimed for a receiver and are not paid out to it yet."""
        data = _SETTLEMENT.call("receivers", receiver, token)
        answer = await self._read(CHANNELS_ADDRESS, data)
        claimed, settled = _SETTLEMENT.functions["receivers"].result(answer)
        return int(claimed) - int(settled)

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Start the payer's way out; sent by the payer or its authoriser."""
        return await self._settlement("initiateWithdraw", _terms(config), amount)

    async def finalize_withdraw(self, config: ChannelConfig) -> TransactionReceipt:
        """End the payer's way out, once the channel's delay is over."""
        return await self._settlement("finalizeWithdraw", _terms(config))

    async def refund(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Give unclaimed money back to the payer; by the receiver's side or its signature."""
        if self._is_receiver_side(config):
            return await self._settlement("refund", _terms(config), amount)
        channel_id = config.channel_id(self.chain_id)
        nonce = (await self.channel(channel_id)).refund_nonce
        digest = refund_digest(channel_id, nonce, amount, self.chain_id)
        signature = self._authorized(config).sign(digest)
        return await self._settlement(
            "refundWithSignature", _terms(config), amount, nonce, signature
        )

    # -- the registry; the sender is the owner

    async def register(self, node: Key, endpoint: str, stake: int = 0) -> TransactionReceipt:
        """Enter a node; its key agrees here. The stake needs an allowance for the registry."""
        signature = await self._binding(node)
        return await self._registered("register", node.address, endpoint, stake, signature)

    async def replace_key(self, node: Key) -> TransactionReceipt:
        """Put another node key into service."""
        return await self._registered("replace_key", node.address, await self._binding(node))

    async def set_endpoint(self, endpoint: str) -> TransactionReceipt:
        """Change where the node is found."""
        return await self._registered("set_endpoint", endpoint)

    async def add_stake(self, amount: int) -> TransactionReceipt:
        """Add base units to the stake, out of the registry's allowance."""
        return await self._registered("add_stake", amount)

    async def unstake(self, amount: int) -> TransactionReceipt:
        """Start the way out of some stake: seven days."""
        return await self._registered("unstake", amount)

    async def withdraw_stake(self) -> TransactionReceipt:
        """Take out what has been unbonding for seven days."""
        return await self._registered("withdraw_stake")

    async def deregister(self) -> TransactionReceipt:
        """Leave the registry; all stake starts its way out."""
        return await self._registered("deregister")

    async def stake(self, owner: bytes) -> tuple[int, int, int]:
        """Base units at stake, base units on their way out, and the second when those may leave."""
        answer = await self._read(self.registry, _REGISTRY.call("stake_of", owner))
        (at_stake,) = _REGISTRY.functions["stake_of"].result(answer)
        answer = await self._read(self.registry, _REGISTRY.call("unbonding_of", owner))
        ((unbonding, ready_at_s),) = _REGISTRY.functions["unbonding_of"].result(answer)
        return at_stake, unbonding, ready_at_s

    # -- the court; the sender is the reporter, any one, and gets a tenth of the penalty

    async def report_two_receipts(
        self, first: SignedReceipt, second: SignedReceipt
    ) -> TransactionReceipt:
        """Have a key punished for two receipts with one request id or number of a channel."""
        arguments = (cases.signed_receipt_struct(first), cases.signed_receipt_struct(second))
        return await self._reported("report_two_receipts", *arguments)

    async def report_overcharge(
        self, receipt: SignedReceipt, offer: SignedOffer
    ) -> TransactionReceipt:
        """Have a key punished for a charge above its offer's prices."""
        return await self._reported("report_overcharge", cases.exhibit_struct(receipt, offer))

    async def report_other_manifest(
        self, receipt: SignedReceipt, offer: SignedOffer
    ) -> TransactionReceipt:
        """Have a key punished for a receipt that is not of the service that it names."""
        return await self._reported("report_other_manifest", cases.exhibit_struct(receipt, offer))

    async def court(self) -> bytes:
        """The address of the registry's court. Raises Refused where there is none of ours: what
        is sent to an address without code succeeds, and does nothing."""
        answer = await self._read(self.registry, _REGISTRY.call("COURT"))
        found: bytes = _REGISTRY.functions["COURT"].result(answer)[0]
        answer = await self._read(found, _COURT.call("REGISTRY"))
        if _COURT.functions["REGISTRY"].result(answer) != (self.registry,):
            raise Refused("the registry's court judges for another one", code="chain_reverted")
        return found

    # -- tokens

    async def transfer(self, token: bytes, to: bytes, amount: int) -> TransactionReceipt:
        """Send base units of a token."""
        return await self._send(token, _TOKEN.call("transfer", to, amount))

    async def transfer_gas(self, to: bytes, wei: int) -> TransactionReceipt:
        """Send wei of the chain's own coin."""
        return await self._send(to, b"", wei)

    async def gas_price(self) -> int:
        """Wei for one gas that a transaction of now offers at most."""
        history = await self.rpc.call("eth_feeHistory", "0x4", "latest", [50])
        return fees_from_history(history).max_fee

    async def approve(self, token: bytes, spender: bytes, amount: int) -> TransactionReceipt:
        """Allow a spender, such as the registry, some of the sender's tokens."""
        return await self._send(token, _TOKEN.call("approve", spender, amount))

    async def faucet(self, owner: bytes, wei: int, units: int) -> None:
        """Test ETH and test dollars; on a development chain only."""
        await self.rpc.call("inferpool_faucet", to_hex(owner), hex(wei), hex(units))

    # -- inside

    async def _read(self, to: bytes, data: bytes, block: str = "latest") -> bytes:
        answer = await self.rpc.call("eth_call", {"to": to_hex(to), "data": to_hex(data)}, block)
        if answer == "0x":
            raise RpcRefused(f"no contract at {to_hex(to)}; is this the right chain?", 3)
        try:
            return bytes.fromhex(answer[2:])
        except (TypeError, ValueError):
            raise unavailable("the chain's answer is no hex") from None

    async def _send(self, to: bytes, data: bytes, value: int = 0) -> TransactionReceipt:
        assert self._sender is not None, "this chain was opened without a sender's key"
        receipt, _ = await self._sender.send(to, data, value)
        return receipt

    async def _settlement(self, function: str, *args: object) -> TransactionReceipt:
        return await self._send(CHANNELS_ADDRESS, _SETTLEMENT.call(function, *args))

    async def _registered(self, function: str, *args: object) -> TransactionReceipt:
        return await self._send(self.registry, _REGISTRY.call(function, *args))

    async def _reported(self, function: str, *args: object) -> TransactionReceipt:
        return await self._send(await self.court(), _COURT.call(function, *args))

    async def _binding(self, node: Key) -> bytes:
        """A node key's agreement to the sender as its owner."""
        assert self._sender is not None, "this chain was opened without the owner's key"
        answer = await self._read(self.registry, _REGISTRY.call("nonces", node.address))
        (nonce,) = _REGISTRY.functions["nonces"].result(answer)
        owner = self._sender.key.address
        return node.sign(
            binding_digest(
                owner, node.address, nonce, chain_id=self.chain_id, registry=self.registry
            )
        )

    def _is_receiver_side(self, config: ChannelConfig) -> bool:
        assert self._sender is not None, "this chain was opened without a sender's key"
        return self._sender.key.address in (config.receiver, config.receiver_authorizer)

    def _authorized(self, config: ChannelConfig) -> Key:
        """The key that signs for others to send. The contract would refuse any other."""
        key = self._authorizer
        assert key is not None, "the sender is a stranger and there is no authoriser's key"
        assert key.address == config.receiver_authorizer, "not this channel's authoriser"
        return key


def _transfer_call(transfer: Transfer) -> bytes:
    return _TOKEN.call(
        "transferWithAuthorization",
        transfer.holder,
        transfer.to,
        transfer.amount,
        transfer.valid_after_s,
        transfer.valid_before_s,
        transfer.nonce,
        transfer.signature,
    )


def _terms(config: ChannelConfig) -> tuple[Any, ...]:
    """A channel's terms as the ABI's tuple."""
    return (
        config.payer,
        config.payer_authorizer,
        config.receiver,
        config.receiver_authorizer,
        config.token,
        config.withdraw_delay_s,
        config.salt,
    )
