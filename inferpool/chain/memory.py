"""`MemoryChain`: the seam in memory, deterministic, for the simulator and for tests; and
`FailingChain`, which wraps any chain and fails where it is told to.

The rules are in `ledger`, `registry_ledger` and `court_ledger`; here are senders, signatures for
others, and block numbers. Each transaction is a block of its own. There are no fees that run
out, and no reorgs: those are in `sim.reorgs`.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from inferpool.chain.addresses import (
    DEV_CHAIN_ID,
    DEV_COURT_ADDRESS,
    DEV_DOLLAR_ADDRESS,
    DEV_REGISTRY_ADDRESS,
    DOLLAR_NAME,
    DOLLAR_VERSION,
)
from inferpool.chain.base import (
    Chain,
    ChannelState,
    Claim,
    DepositAuthorization,
    Permit2Deposit,
    Registration,
    TransactionReceipt,
    Transfer,
)
from inferpool.chain.court_ledger import CourtLedger, Verdict
from inferpool.chain.ledger import Settlement, Tokens, refuse
from inferpool.chain.registry_ledger import RegistryLedger
from inferpool.identity.signing import Key
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.offer import SignedOffer
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.voucher import ChannelConfig

CLAIMS_MAX: Final = 100
GAS_PRICE_WEI: Final = 10**9
# Rounded from tests/chain/gas.json, so that a claimer weighs claims as on a real chain.
GAS: Final = {
    "deposit": 113_000,
    "claim": 34_000,
    "claim_row": 18_600,
    "settle": 45_000,
    "withdraw": 50_000,
    "refund": 72_000,
    "token": 51_000,
    "registry": 134_000,
    "report": 130_000,
}
_GAS_BALANCE_WEI: Final = 10**18


@dataclass(slots=True)
class _World:
    """What all senders share."""

    now_s: Callable[[], int]
    tokens: Tokens
    settlement: Settlement
    registry: RegistryLedger
    court: CourtLedger
    block: int = 0
    withdrawals: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    # by sender, and what was moved
    transfers: dict[tuple[bytes, bytes, Transfer], TransactionReceipt] = field(default_factory=dict)


class MemoryChain:
    """One sender's view of a chain in memory; `with_sender` gives another's view of the same."""

    def __init__(
        self,
        now_s: Callable[[], int],
        *,
        sender: bytes = bytes(20),
        authorizer: Key | None = None,
        chain_id: int = DEV_CHAIN_ID,
        token: bytes = DEV_DOLLAR_ADDRESS,
        plain: bool = False,
    ) -> None:
        """`plain`: the token has no EIP-3009."""
        tokens = Tokens((DOLLAR_NAME, DOLLAR_VERSION))
        tokens.plain |= {token} if plain else set()
        self.chain_id = chain_id
        self._token = token
        self._sender = sender
        self._authorizer = authorizer
        registry = RegistryLedger(tokens, token, DEV_REGISTRY_ADDRESS, DEV_COURT_ADDRESS)
        self._world = _World(
            now_s,
            tokens,
            Settlement(chain_id, tokens),
            registry,
            CourtLedger(registry, chain_id, DEV_COURT_ADDRESS),
        )

    def with_sender(self, sender: Key | bytes, authorizer: Key | None = None) -> Self:
        """The same chain for another sender."""
        view = copy.copy(self)
        view._sender = sender.address if isinstance(sender, Key) else sender
        view._authorizer = authorizer
        return view

    def fund(self, owner: bytes, amount: int) -> None:
        """Mint base units of the token."""
        self._world.tokens.balances[self._token, owner] += amount

    def supply(self) -> int:
        """Base units of the token in all hands: what was minted, whatever happened since."""
        balances = self._world.tokens.balances
        return sum(held for (token, _), held in balances.items() if token == self._token)

    # -- reading

    async def now_s(self) -> int:
        """The injected clock's time: a block could be mined at any moment."""
        return self._world.now_s()

    async def channel(self, channel_id: bytes) -> ChannelState:
        """One channel's state."""
        return self._world.settlement.state(channel_id)

    async def token_balance(self, token: bytes, owner: bytes) -> int:
        """Base units of `token` that `owner` holds."""
        return self._world.tokens.balances[token, owner]

    async def takes_authorizations(self, token: bytes) -> bool:
        """Whether a token has EIP-3009."""
        return token not in self._world.tokens.plain

    async def allowance(self, token: bytes, owner: bytes, spender: bytes) -> int:
        """Base units of `token` that `spender` may move of what `owner` holds."""
        return self._world.tokens.allowances[token, owner, spender]

    async def gas_balance(self, owner: bytes) -> int:
        """Always enough."""
        return _GAS_BALANCE_WEI

    async def withdrawing(self, receiver: bytes, since_block: int) -> tuple[list[bytes], int]:
        """Channels of a receiver on which a withdrawal was started, and the next block."""
        found = {
            channel_id: None
            for block, whose, channel_id in self._world.withdrawals
            if block >= since_block and whose == receiver
        }
        return list(found), self._world.block + 1

    async def registrations(self) -> list[Registration]:
        """All nodes that are registered now."""
        return self._world.registry.listed()

    # -- channels

    async def deposit(
        self,
        config: ChannelConfig,
        amount: int,
        authorization: DepositAuthorization | Permit2Deposit,
    ) -> TransactionReceipt:
        """Fund a channel by the payer's authorisation."""
        self._world.settlement.deposit(config, amount, authorization, self._world.now_s())
        return self._mined("deposit")

    async def claim(self, claims: Sequence[Claim]) -> TransactionReceipt:
        """Claim up to 100 channels, all or none; for others by the authoriser's signature."""
        assert 1 <= len(claims) <= CLAIMS_MAX, f"1 to {CLAIMS_MAX} claims, not {len(claims)}"
        if not all(self._is_receiver_side(claim.config) for claim in claims):
            self._check_authorizer(claims[0].config)
        first = claims[0].config.receiver_authorizer

        def check(config: ChannelConfig) -> None:
            if not self._is_receiver_side(config) and config.receiver_authorizer != first:
                refuse("NotReceiverAuthorizer")

        self._world.settlement.claim(claims, check)
        return self._mined("claim", GAS["claim_row"] * len(claims))

    async def settle(self, receiver: bytes, token: bytes) -> TransactionReceipt:
        """Pay out to the receiver all that was claimed for it."""
        self._world.settlement.settle(receiver, token)
        return self._mined("settle")

    async def transfer_authorized(self, token: bytes, transfer: Transfer) -> TransactionReceipt:
        """Move tokens by their holder's signature."""
        world = self._world
        world.tokens.transfer_authorized(token, transfer, self.chain_id, world.now_s())
        mined = self._mined("token")
        world.transfers[self._sender, token, transfer] = mined
        return mined

    async def transferred(self, token: bytes, transfer: Transfer) -> TransactionReceipt | None:
        """The transaction by which this sender moved tokens so before."""
        return self._world.transfers.get((self._sender, token, transfer))

    async def unsettled(self, receiver: bytes, token: bytes) -> int:
        """Base units that were claimed for a receiver and are not paid out to it yet."""
        totals = self._world.settlement.receivers[receiver, token]
        return totals.claimed - totals.settled

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Start the payer's way out."""
        now_s = self._world.now_s()
        channel_id = self._world.settlement.initiate_withdraw(config, amount, self._sender, now_s)
        receipt = self._mined("withdraw")
        self._world.withdrawals.append((receipt.block_number, config.receiver, channel_id))
        return receipt

    async def finalize_withdraw(self, config: ChannelConfig) -> TransactionReceipt:
        """End the payer's way out."""
        self._world.settlement.finalize_withdraw(config, self._sender, self._world.now_s())
        return self._mined("withdraw")

    async def refund(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Give unclaimed money back to the payer."""
        if not self._is_receiver_side(config):
            self._check_authorizer(config)
        self._world.settlement.refund(config, amount)
        return self._mined("refund")

    # -- the registry; the sender is the owner

    async def register(self, node: Key, endpoint: str, stake: int = 0) -> TransactionReceipt:
        """Enter a node; its key agrees by being here."""
        self._world.registry.register(self._sender, node.address, endpoint, stake)
        return self._mined("registry")

    async def replace_key(self, node: Key) -> TransactionReceipt:
        """Put another node key into service."""
        self._world.registry.replace_key(self._sender, node.address)
        return self._mined("registry")

    async def set_endpoint(self, endpoint: str) -> TransactionReceipt:
        """Change where the node is found."""
        self._world.registry.set_endpoint(self._sender, endpoint)
        return self._mined("registry")

    async def add_stake(self, amount: int) -> TransactionReceipt:
        """Add to the stake out of the registry's allowance."""
        self._world.registry.add_stake(self._sender, amount)
        return self._mined("registry")

    async def unstake(self, amount: int) -> TransactionReceipt:
        """Start the way out of some stake."""
        self._world.registry.unstake(self._sender, amount, self._world.now_s())
        return self._mined("registry")

    async def withdraw_stake(self) -> TransactionReceipt:
        """Take out what has been unbonding for seven days."""
        self._world.registry.withdraw_stake(self._sender, self._world.now_s())
        return self._mined("registry")

    async def deregister(self) -> TransactionReceipt:
        """Leave the registry."""
        self._world.registry.deregister(self._sender, self._world.now_s())
        return self._mined("registry")

    async def slash(self, owner: bytes, amount: int, to: bytes) -> TransactionReceipt:
        """Take an owner's stake; the court only."""
        self._world.registry.slash(self._sender, owner, amount, to)
        return self._mined("registry")

    # -- the court; the sender is the reporter

    async def report_two_receipts(
        self, first: SignedReceipt, second: SignedReceipt
    ) -> TransactionReceipt:
        """Have a key punished for two receipts with one request id or number of a channel."""
        self._world.court.report_two_receipts(self._sender, first, second)
        return self._mined("report")

    async def report_overcharge(
        self, receipt: SignedReceipt, offer: SignedOffer
    ) -> TransactionReceipt:
        """Have a key punished for a charge above its offer's prices."""
        self._world.court.report_overcharge(self._sender, receipt, offer)
        return self._mined("report")

    async def report_other_manifest(
        self, receipt: SignedReceipt, offer: SignedOffer
    ) -> TransactionReceipt:
        """Have a key punished for a receipt that is not of the service that it names."""
        self._world.court.report_other_manifest(self._sender, receipt, offer)
        return self._mined("report")

    def verdicts(self) -> list[Verdict]:
        """All that was judged, in order."""
        return list(self._world.court.verdicts)

    # -- tokens

    async def transfer(self, token: bytes, to: bytes, amount: int) -> TransactionReceipt:
        """Send base units of a token."""
        self._world.tokens.transfer(token, self._sender, to, amount)
        return self._mined("token")

    async def approve(self, token: bytes, spender: bytes, amount: int) -> TransactionReceipt:
        """Allow a spender some of the sender's tokens."""
        self._world.tokens.allowances[token, self._sender, spender] = amount
        return self._mined("token")

    # -- inside

    def _mined(self, kind: str, more_gas: int = 0) -> TransactionReceipt:
        self._world.block += 1
        gas = GAS[kind] + more_gas
        hash_ = keccak256(self._world.block.to_bytes(32, "big"))
        return TransactionReceipt(hash_, self._world.block, gas, gas * GAS_PRICE_WEI)

    def _is_receiver_side(self, config: ChannelConfig) -> bool:
        return self._sender in (config.receiver, config.receiver_authorizer)

    def _check_authorizer(self, config: ChannelConfig) -> None:
        """The same programmer's errors as `EvmChain`."""
        assert self._authorizer is not None, "the sender is a stranger without authoriser's key"
        assert self._authorizer.address == config.receiver_authorizer, "another authoriser"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call fails: before it reached the chain, or `after` it took effect, when only the
    answer is lost. The second is the one that loses money where it is taken for the first."""

    error: Exception
    after: bool = False


Result = TypeVar("Result")


class FailingChain:
    """Any chain, with failures: `decide` gets each call's name and says how it fails, if so."""

    def __init__(self, chain: Chain, decide: Callable[[str], Failure | None]) -> None:
        self.chain_id = chain.chain_id
        self._chain = chain
        self._decide = decide

    async def now_s(self) -> int:
        """As the seam says."""
        return await self._through("now_s", self._chain.now_s)

    async def channel(self, channel_id: bytes) -> ChannelState:
        """As the seam says."""
        return await self._through("channel", lambda: self._chain.channel(channel_id))

    async def token_balance(self, token: bytes, owner: bytes) -> int:
        """As the seam says."""
        return await self._through("token_balance", lambda: self._chain.token_balance(token, owner))

    async def takes_authorizations(self, token: bytes) -> bool:
        """As the seam says."""
        return await self._through(
            "takes_authorizations", lambda: self._chain.takes_authorizations(token)
        )

    async def allowance(self, token: bytes, owner: bytes, spender: bytes) -> int:
        """As the seam says."""
        return await self._through(
            "allowance", lambda: self._chain.allowance(token, owner, spender)
        )

    async def deposit(
        self,
        config: ChannelConfig,
        amount: int,
        authorization: DepositAuthorization | Permit2Deposit,
    ) -> TransactionReceipt:
        """As the seam says."""
        return await self._through(
            "deposit", lambda: self._chain.deposit(config, amount, authorization)
        )

    async def claim(self, claims: Sequence[Claim]) -> TransactionReceipt:
        """As the seam says."""
        return await self._through("claim", lambda: self._chain.claim(claims))

    async def settle(self, receiver: bytes, token: bytes) -> TransactionReceipt:
        """As the seam says."""
        return await self._through("settle", lambda: self._chain.settle(receiver, token))

    async def transfer_authorized(self, token: bytes, transfer: Transfer) -> TransactionReceipt:
        """As the seam says."""
        return await self._through(
            "transfer_authorized", lambda: self._chain.transfer_authorized(token, transfer)
        )

    async def transferred(self, token: bytes, transfer: Transfer) -> TransactionReceipt | None:
        """As the seam says."""
        return await self._through("transferred", lambda: self._chain.transferred(token, transfer))

    async def unsettled(self, receiver: bytes, token: bytes) -> int:
        """As the seam says."""
        return await self._through("unsettled", lambda: self._chain.unsettled(receiver, token))

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """As the seam says."""
        return await self._through(
            "initiate_withdraw", lambda: self._chain.initiate_withdraw(config, amount)
        )

    async def finalize_withdraw(self, config: ChannelConfig) -> TransactionReceipt:
        """As the seam says."""
        return await self._through(
            "finalize_withdraw", lambda: self._chain.finalize_withdraw(config)
        )

    async def refund(self, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """As the seam says."""
        return await self._through("refund", lambda: self._chain.refund(config, amount))

    async def withdrawing(self, receiver: bytes, since_block: int) -> tuple[list[bytes], int]:
        """As the seam says."""
        return await self._through(
            "withdrawing", lambda: self._chain.withdrawing(receiver, since_block)
        )

    async def registrations(self) -> list[Registration]:
        """As the seam says."""
        return await self._through("registrations", self._chain.registrations)

    async def _through(self, name: str, call: Callable[[], Awaitable[Result]]) -> Result:
        failure = self._decide(name)
        if failure is not None and not failure.after:
            raise failure.error
        result = await call()
        if failure is not None:
            raise failure.error
        return result
