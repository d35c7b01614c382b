"""A development chain in this process, clients of it, and the roles that play on it.

The suites that use `world` also run against another chain: INFERPOOL_TEST_RPC=http://... names it
(anvil: it must know the usual development keys and anvil_setCode).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import pytest

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, DOLLAR_NAME, DOLLAR_VERSION, FIXED
from inferpool.chain.authorization import authorize_deposit
from inferpool.chain.base import Claim, DepositAuthorization
from inferpool.chain.client import EvmChain
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.node import Node
from inferpool.chain.devchain.server import reply
from inferpool.chain.rpc import Rpc, post_by_urllib
from inferpool.chain.sender import Sender
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.voucher import ChannelConfig, Voucher

ANVIL_URL = os.environ.get("INFERPOOL_TEST_RPC")
START_S = 1_800_000_000
FOREVER_S = 2**40
Result = TypeVar("Result")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the second chain's tests out, aloud, where there is no second chain."""
    if ANVIL_URL is not None:
        return
    left_out = [item for item in items if item.get_closest_marker("anvil")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("anvil")]
        print(f"\n{len(left_out)} tests of a second chain left out: INFERPOOL_TEST_RPC is not set")


def key(name: str) -> Key:
    """A role's key, the same in every run."""
    return Key(name.encode().rjust(32, b"\1"))


@dataclass(frozen=True)
class Roles:
    """Who acts. The authoriser signs vouchers (hot), the operator claims for the receiver."""

    payer: Key = field(default_factory=lambda: key("payer"))
    authorizer: Key = field(default_factory=lambda: key("authorizer"))
    receiver: Key = field(default_factory=lambda: key("receiver"))
    operator: Key = field(default_factory=lambda: key("operator"))
    stranger: Key = field(default_factory=lambda: key("stranger"))
    liar: Key = field(default_factory=lambda: key("liar"))
    owner: Key = field(default_factory=lambda: key("owner"))
    court: Key = field(default_factory=lambda: key("court"))
    reporter: Key = field(default_factory=lambda: key("reporter"))


class Clock:
    """UNIX seconds that move only when told."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> int:
        return self.now_s


@dataclass
class World:
    """One chain and short words for what tests do on it."""

    url: str
    post: Any
    chain_id: int
    is_devchain: bool
    roles: Roles = field(default_factory=Roles)
    salts: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def rpc(self, method: str, *parameters: object) -> Any:
        return run(Rpc(self.url, self.post).call(method, *parameters))

    def chain(self, sender: Key, authorizer: Key | None = None, **options: Any) -> EvmChain:
        return EvmChain(
            Rpc(self.url, self.post),
            self.chain_id,
            sender=sender,
            authorizer=authorizer,
            **options,
        )

    def fund(self, owner: bytes, units: int = 10**9, wei: int = 10**20) -> None:
        if self.is_devchain:
            self.rpc("inferpool_faucet", to_hex(owner), hex(wei), hex(units))
            return
        self.rpc("anvil_setBalance", to_hex(owner), hex(wei))
        if units:
            minter = Sender(Rpc(self.url, self.post), DEV_KEYS[0], self.chain_id)
            run(minter.send(DEV_DOLLAR_ADDRESS, contract("TestDollar").call("mint", owner, units)))

    def balance(self, owner: bytes) -> int:
        return run(self.chain(self.roles.payer).token_balance(DEV_DOLLAR_ADDRESS, owner))

    def pass_time(self, seconds: int) -> None:
        self.rpc("evm_increaseTime", seconds)
        self.rpc("evm_mine")

    def config(self, **changes: Any) -> ChannelConfig:
        """A channel of its own; `changes` replace terms."""
        terms = {
            "payer": self.roles.payer.address,
            "payer_authorizer": self.roles.authorizer.address,
            "receiver": self.roles.receiver.address,
            "receiver_authorizer": self.roles.operator.address,
            "token": DEV_DOLLAR_ADDRESS,
            "withdraw_delay_s": 900,
            "salt": next(self.salts).to_bytes(32, "big"),
        }
        return ChannelConfig(**(terms | changes))

    def authorization(
        self, config: ChannelConfig, amount: int, salt: int | None = None
    ) -> DepositAuthorization:
        return authorize_deposit(
            self.roles.payer,
            config,
            amount,
            chain_id=self.chain_id,
            name=DOLLAR_NAME,
            version=DOLLAR_VERSION,
            valid_before_s=FOREVER_S,
            salt=next(self.salts) if salt is None else salt,
        )

    def deposit(self, config: ChannelConfig, amount: int) -> None:
        sender = self.chain(self.roles.stranger)
        run(sender.deposit(config, amount, self.authorization(config, amount)))

    def voucher(self, config: ChannelConfig, amount: int, signer: Key | None = None) -> Voucher:
        draft = Voucher(config.channel_id(self.chain_id), amount)
        signature = (signer or self.roles.authorizer).sign(draft.digest(self.chain_id))
        return Voucher(draft.channel_id, amount, signature)

    def claim(
        self,
        config: ChannelConfig,
        ceiling: int,
        total: int | None = None,
        signer: Key | None = None,
    ) -> Claim:
        total = ceiling if total is None else total
        return Claim(config, self.voucher(config, ceiling, signer), total)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end."""
    return asyncio.run(work)


def in_process(node: Node) -> Callable[[str, bytes], Coroutine[Any, Any, bytes]]:
    """A pipe to a node in this process."""

    async def post(url: str, body: bytes) -> bytes:
        return reply(node, body)

    return post


def fund_all(world: World) -> None:
    """Give every role both coins."""
    for role in fields(Roles):
        world.fund(getattr(world.roles, role.name).address)


@pytest.fixture(name="run")
def run_fixture() -> Any:
    return run


@pytest.fixture
def roles() -> Roles:
    return Roles()


@pytest.fixture
def new_key() -> Callable[[str], Key]:
    return key


@pytest.fixture(scope="session")
def shared() -> Iterator[tuple[Node, Clock]]:
    """One chain with funded roles for all tests of `dev_world`; each gives it back as it was."""
    clock = Clock()
    node = Node(clock_s=clock)
    fund_all(World("http://in.process", in_process(node), node.chain_id, is_devchain=True))
    yield node, clock
    node.close()


@pytest.fixture
def clock(shared: tuple[Node, Clock]) -> Clock:
    _, clock = shared
    clock.now_s = START_S
    return clock


@pytest.fixture
def node(clock: Clock) -> Iterator[Node]:
    """A chain of its own, at block 0."""
    node = Node(clock_s=clock)
    yield node
    node.close()


@pytest.fixture
def dev_world(shared: tuple[Node, Clock], clock: Clock) -> Iterator[World]:
    """The development chain, in this process, with funded roles."""
    node, _ = shared
    snapshot = node.snapshot()
    yield World("http://in.process", in_process(node), node.chain_id, is_devchain=True)
    assert node.revert(snapshot)


@pytest.fixture(params=["devchain", pytest.param("anvil", marks=pytest.mark.anvil)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The development chain, and the other one where there is one."""
    if request.param == "devchain":
        yield request.getfixturevalue("dev_world")
        return
    assert ANVIL_URL is not None
    chain_id = int(run(Rpc(ANVIL_URL).call("eth_chainId")), 16)
    world = World(ANVIL_URL, post_by_urllib, chain_id, is_devchain=False)
    for name, address in FIXED.items():
        world.rpc("anvil_setCode", to_hex(address), to_hex(contract(name).runtime))
    snapshot = world.rpc("evm_snapshot")
    fund_all(world)
    yield world
    world.rpc("evm_revert", snapshot)


@pytest.fixture
def refused(run: Any) -> Any:
    """Await work that the chain must refuse; its reason."""

    def check(work: Coroutine[Any, Any, Any]) -> str:
        with pytest.raises(Refused) as caught:
            run(work)
        assert caught.value.code == "chain_reverted"
        prefix = "the chain reverted: "
        assert caught.value.message.startswith(prefix), caught.value.message
        return caught.value.message.removeprefix(prefix)

    return check
