"""What makes a node its owner's: prices by model, policy, gateways, registration and stake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from inferpool.chain.addresses import DEV_CHAIN_ID
from inferpool.chain.client import EvmChain
from inferpool.config import Config, NodeConfig
from inferpool.daemon.chains import asset_of, registry_of
from inferpool.home import Home
from inferpool.identity.keys import KeyRing, Role
from inferpool.identity.signing import Key
from inferpool.node.control import Controls
from inferpool.node.duty import Duty
from inferpool.node.load import LoadMeter
from inferpool.node.measure import EnergyCounters
from inferpool.node.node import Node
from inferpool.node.policy import Policy, parse_hours
from inferpool.node.push import Pusher
from inferpool.payments.standing import Channels
from inferpool.protocol.encoding import to_checksum
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.lifecycle import NodeState
from inferpool.protocol.units import parse_usd
from inferpool.transport.http import LEARN, open_transport

_LOG = logging.getLogger("inferpool.node")
_FAUCET_WEI: Final = 10**18
_LEAST_WEI: Final = 10**15  # a registration takes a tenth of it at 1 gwei
_ROLES: Final = ("node", "gateway", "chain")


def per_unit(usd_per_million: str) -> int:
    """Pico-USD per unit from USD per million units: the same number as micro-USD."""
    try:
        return parse_usd(usd_per_million) // 10**6
    except ValueError as error:
        raise Refused(f"a price: {error}", code="bad_config") from None


def prices_of(config: NodeConfig) -> dict[str, tuple[int, int]]:
    """`node.prices` in pico-USD per unit, in and out. Raises Refused(bad_config)."""
    found = {}
    for line in config.prices:
        name, *prices = line.split()
        if len(prices) not in (1, 2):
            raise Refused(
                f'node.prices: {line!r} is not of the form "MODEL IN OUT" or "MODEL ROW"',
                code="bad_config",
                param="node.prices",
            )
        found[name] = (per_unit(prices[0]), per_unit(prices[1]) if len(prices) == 2 else 0)
    return found


def policy_of(config: NodeConfig) -> Policy:
    """The owner's wishes. Raises Refused(bad_config)."""
    return Policy(
        hours=parse_hours(config.hours),
        idle_load_percent=config.idle_load_percent if config.only_when_idle else None,
        memory_max=config.memory_max_mb << 20,
    )


class Provider:
    """A running node under its owner's control."""

    def __init__(
        self, node: Node, config: Config, home: Home, channels: Channels | None = None
    ) -> None:
        meter = LoadMeter(lambda: _ours(home))
        self.duty = Duty(node, policy_of(config.node), node.clock, meter, counters=EnergyCounters())
        # An offer is public and signed: a gateway without an authority's certificate may have it.
        self.pusher = Pusher(node, config.node.gateways, lambda url: open_transport(url, _pin(url)))
        from inferpool.daemon.wishes import Wishes  # which needs this module

        self.controls = Controls(self.duty, self.pusher, channels, Wishes(self.duty, config.node))
        node.withheld = "starting"
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """The first decision, and then the loops."""
        await self.duty.tick()
        self._tasks = [
            asyncio.create_task(self.duty.run(), name="duty"),
            asyncio.create_task(self.pusher.run(), name="pusher"),
        ]

    async def close(self) -> None:
        """Stop the loops."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.duty.state = NodeState.GONE


def _pin(url: str) -> bytes | None:
    return LEARN if url.startswith("https:") else None


def _ours(home: Home) -> Iterable[int]:
    """Processes of this pool: another role's work is not somebody else's."""
    for role in _ROLES:
        facts = home.running(role)
        if facts is not None:
            with suppress(ValueError):
                yield int(str(facts["pid"]))


async def enter(chain: EvmChain, config: Config, keys: KeyRing, url: str) -> None:
    """Enter the registry, or correct what it says, and stake; gas is spent only where it must be.

    Without gas a node whose gateways are named serves them unregistered. Raises Unavailable that
    names the address to fund where there is no other way.
    """
    owner, node = keys.key(Role.OWNER), keys.key(Role.NODE)
    if chain.chain_id == DEV_CHAIN_ID:
        await _fund(chain, config, keys)
    known = {item.owner: item for item in await chain.registrations()}
    found = known.get(owner.address)
    settled = found is not None and (found.node, found.endpoint) == (node.address, url)
    missing = max(0, config.node.stake_base_units - (found.stake if found else 0))
    if settled and not missing:
        return
    if await chain.gas_balance(owner.address) < _LEAST_WEI:
        address = to_checksum(owner.address)
        if config.node.gateways and not config.node.stake_base_units:
            _LOG.warning("not registered: %s holds no gas; serving the named gateways", address)
            return
        raise Unavailable(
            f"The owner key {address} holds no gas on chain {chain.chain_id}, so that this node"
            f" cannot register. Send it {_LEAST_WEI / 10**18:g} of the gas token, or name a"
            " gateway with --gateway URL, which needs no gas.",
            code="chain_unavailable",
        )
    sender = chain.with_sender(owner)
    if missing:
        await _allow_stake(sender, config, owner, missing)
    if found is None:
        await sender.register(node, url, missing)
        return
    if found.node != node.address:
        await sender.replace_key(node)
    if found.endpoint != url:
        await sender.set_endpoint(url)
    if missing:
        await sender.add_stake(missing)


async def _allow_stake(chain: EvmChain, config: Config, owner: Key, amount: int) -> None:
    token = asset_of(config.chain)
    balance = await chain.token_balance(token, owner.address)
    if balance < amount:
        raise Unavailable(
            f"The stake needs {amount} base units of {config.chain.asset_name};"
            f" {to_checksum(owner.address)} holds {balance}. Send it the rest, or stake less.",
            code="chain_unavailable",
        )
    await chain.approve(token, registry_of(config.chain), amount)


async def _fund(chain: EvmChain, config: Config, keys: KeyRing) -> None:
    """Test money from the development chain's faucet, where a key has too little."""
    for role in (Role.OWNER, Role.GAS):
        address = keys.key(role).address
        if await chain.gas_balance(address) < _FAUCET_WEI // 10:
            await chain.faucet(address, _FAUCET_WEI, 0)
    owner, stake = keys.key(Role.OWNER).address, config.node.stake_base_units
    if stake and await chain.token_balance(asset_of(config.chain), owner) < stake:
        await chain.faucet(owner, 0, stake)
