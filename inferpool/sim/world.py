"""A small world: nodes, gateways, clients, faults, and the rules checked as it goes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Final

from inferpool.chain.memory import MemoryChain
from inferpool.clock import Clock, LoopClock, SkewedClock
from inferpool.protocol.errors import InferpoolError, Unavailable
from inferpool.sim import invariants
from inferpool.sim.cheats import Leech, ask_back, finalize, steal, withdraw
from inferpool.sim.clients import Client
from inferpool.sim.loop import run_virtual
from inferpool.sim.parts import SimGateway, SimNode, key_of
from inferpool.sim.reorgs import ReorgChain
from inferpool.transport.base import Transport
from inferpool.transport.faulty import FaultyTransport, RandomFaults

EPOCH_MS: Final = 1_800_000_000_000
FUNDS: Final = 10**9  # base units that each gateway's payer starts with
WITHDRAW_DELAY_S: Final = 901.0
FINALITY: Final = 3  # blocks, where these are taken back
TRIES: Final = 4  # until whoever lost patience with the chain is at rest
REST_S: Final = 400.0  # long enough for the last late receipt to be fetched


@dataclass(frozen=True, slots=True)
class Options:
    """What a world is made of. `faults` 0: none; 1: as bad as it gets."""

    seed: int = 1
    seconds: float = 60.0
    nodes: int = 2
    gateways: int = 2
    clients: int = 4  # for each gateway
    faults: float = 1.0
    limit_pico_usd: int | None = None
    cheats: bool = False  # payers that take what they can, a node that claims all, withdrawals
    reorgs: bool = False  # blocks are taken back, up to finality, and payers ask for refunds
    window: int = 1  # maxima that a voucher may cover, as both sides allow it


@dataclass(slots=True)
class Report:
    """What happened. `digest` is equal for equal seeds, and for nothing else that was seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    charged_pico_usd: int = 0
    claimed_base_units: int = 0
    withdrawals: int = 0
    refunds: int = 0  # that payers asked for and got
    reorganised: int = 0  # transactions that were taken back
    leeched: int = 0  # answers that cheating payers got, each of them paid
    repelled: int = 0
    digest: str = ""


class World:
    """Builds the parts and runs them. Everything is drawn from the seed."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._random = Random(options.seed)
        clock = LoopClock(EPOCH_MS)
        self._clock: Clock = clock
        self._chain = self._chain_of(clock)
        self._report = Report()
        self._peaks: dict[bytes, int] = {}
        self._leeches: list[Leech] = []
        self._nodes = {f"http://node-{i}.sim": self._node(i, clock) for i in range(options.nodes)}
        self._gateways = [
            SimGateway(
                f"gateway-{i}",
                options.seed,
                clock,
                self._chain,
                self._child(),
                self._pipe,
                options.limit_pico_usd,
                window=options.window,
            )
            for i in range(options.gateways)
        ]

    def _chain_of(self, clock: Clock) -> MemoryChain:
        if not self._options.reorgs:
            return MemoryChain(lambda: clock.now_ms() // 1000)
        return ReorgChain(lambda: clock.now_ms() // 1000, self._child(), FINALITY)

    def _node(self, i: int, clock: Clock) -> SimNode:
        skewed = SkewedClock(clock, self._random.randint(-20_000, 20_000))
        url = f"http://node-{i}.sim"
        child, window = self._child(), self._options.window
        return SimNode(f"node-{i}", self._options.seed, url, skewed, self._chain, child, window)

    def _child(self) -> Random:
        return Random(self._random.getrandbits(64))

    def _pipe(self, url: str, spki: bytes | None) -> Transport:
        bad = self._options.faults
        faults = RandomFaults(
            self._child(),
            refuse=0.03 * bad,
            lose_request=0.01 * bad,
            lose_answer=0.02 * bad,
            cut=0.06 * bad,
            max_cut_after=20,
            delay=0.2 * bad,
            max_delay_s=0.5,
            duplicate=0.03 * bad,
        )
        return FaultyTransport(self._nodes[url].transport(), faults)

    async def run(self) -> Report:
        """Run the world to its end. Raises invariants.Violated, clients.BrokenAnswer."""
        await self._start()
        until_s = self._options.seconds
        clients = [
            Client(gateway, self._child())
            for gateway in self._gateways
            for _ in range(self._options.clients)
        ]
        self._leeches = self._cheats() if self._options.cheats else []
        jobs = [asyncio.create_task(client.run(until_s)) for client in clients]
        jobs += [asyncio.create_task(leech.run(until_s)) for leech in self._leeches]
        chaos = asyncio.create_task(self._chaos(until_s))
        beside = self._beside(until_s)
        try:
            while not all(job.done() for job in jobs):
                await asyncio.wait(jobs, timeout=0.25)
                self._check()
            for job in [*jobs, chaos]:
                await job
            await asyncio.sleep(REST_S)
            await self._rest(clients)
        finally:
            for job in beside:
                job.cancel()
            for gateway in self._gateways:
                await gateway.gateway.close()
        return self._report

    def _beside(self, until_s: float) -> list[asyncio.Task[None]]:
        """Where the chain has blocks: what makes them, and payers that want their money back."""
        if not isinstance(self._chain, ReorgChain):
            return []
        refunds = self._refunds(until_s, self._child())
        mining = self._chain.mine_for_ever(until_s + REST_S)
        return [asyncio.create_task(mining), asyncio.create_task(refunds)]

    async def _refunds(self, until_s: float, random: Random) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(random.uniform(1.0, 6.0))
            self._report.refunds += await ask_back(random.choice(self._gateways), random)

    async def _start(self) -> None:
        seed = self._options.seed
        for node in self._nodes.values():
            await node.start()
            owner = self._chain.with_sender(key_of(seed, f"{node.name}/owner"))
            await owner.register(key_of(seed, f"{node.name}/node"), node.url)
        for gateway in self._gateways:
            self._chain.fund(key_of(seed, f"{gateway.name}/payer").address, FUNDS)
            await gateway.start()

    async def _chaos(self, until_s: float) -> None:
        """Kill the node or a gateway now and then, and claim in between."""
        loop, random = asyncio.get_running_loop(), self._child()
        while True:
            await asyncio.sleep(random.uniform(2.0, 8.0))
            if loop.time() >= until_s:
                return
            if random.random() < 0.5:
                await self._claim()
            if self._options.cheats:
                await self._cheat(random)
            if random.random() >= self._options.faults:
                continue
            if random.random() < 0.3:
                await self._hang(random)
                continue
            victims: list[SimNode | SimGateway] = [*self._nodes.values(), *self._gateways]
            victim = random.choice(victims)
            self._report.crashes[victim.name] += 1
            for gateway in self._gateways:
                invariants.check_exposure(gateway, self._nodes.values(), self._peaks)
            await victim.crash()
            await asyncio.sleep(random.uniform(0.1, 3.0))
            await victim.start()

    def _cheats(self) -> list[Leech]:
        """One cheating payer at each node."""
        return [
            Leech(node, self._chain, key_of(self._options.seed, f"leech-{i}"), self._child())
            for i, node in enumerate(self._nodes.values())
        ]

    def _thief(self) -> SimNode:
        """The node that claims all that was signed."""
        return next(iter(self._nodes.values()))

    async def _cheat(self, random: Random) -> None:
        """The thief claims; now and then a payer withdraws; nodes look at the chain, as they do
        every fifteen seconds."""
        thief = self._thief()
        for gateway in self._gateways:
            invariants.check_exposure(gateway, self._nodes.values(), self._peaks)
        with self._as_chain_will():  # a refund, or a reorganisation, was faster
            await steal(thief, key_of(self._options.seed, f"{thief.name}/node"), self._chain)
        if random.random() < 0.3:
            self._report.withdrawals += await withdraw(random.choice(self._gateways), random)
        for node in self._nodes.values():
            if node.machine.up:
                with self._as_chain_will():
                    await node.claimer.watch_once()
        await invariants.check_thefts(self._chain, self._gateways, self._nodes, self._peaks)

    def _as_chain_will(self) -> AbstractContextManager[None]:
        """Where transactions may be taken back, or be heard of no more, nobody gets what he wants
        at once; elsewhere whoever fails has found a fault."""
        return suppress(InferpoolError) if self._options.reorgs else nullcontext()

    async def _all_out(self) -> None:
        """At rest: honest nodes have claimed all that they earned, whoever cheated or withdrew,
        before any money leaves; and payers have back what is left."""
        thief = self._thief()
        await asyncio.sleep(WITHDRAW_DELAY_S)
        for gateway in self._gateways:
            for _ in range(TRIES):
                with self._as_chain_will():
                    if not await finalize(gateway):
                        break
        for node in self._nodes.values():
            for channel in node.node.ledger.channels.values():
                state = await self._chain.channel(channel.channel_id)
                facts = {"earned": channel.earned, "claimed": state.total_claimed}
                invariants.require(
                    state.total_claimed == channel.earned or node is thief,
                    "an honest node has what it earned",
                    **facts,
                )
        self._report.leeched = sum(leech.answers for leech in self._leeches)
        self._report.repelled = sum(leech.refused for leech in self._leeches)

    async def _hang(self, random: Random) -> None:
        """An engine stops in the middle of its answers while its front end beats on, until somebody
        starts the node anew."""
        node = random.choice(list(self._nodes.values()))
        engine = node.engine
        engine.hang_after = random.randint(0, 12)
        self._report.crashes[f"{node.name}/engine"] += 1
        await asyncio.sleep(random.uniform(1.0, 6.0))
        await node.crash()
        await node.start()

    async def _claim(self) -> None:
        for node in self._nodes.values():
            try:
                report = await node.claimer.claim()
            except InferpoolError as error:
                if self._options.reorgs and isinstance(error, Unavailable):
                    continue  # no receipt in time: the next round finds out
                raise invariants.Violated(f"an honest claim failed: {error.message}") from error
            self._report.claimed_base_units += report.claimed

    def _check(self) -> None:
        self._report.checks += 1
        nodes = self._nodes.values()
        refunded = {channel_id for node in nodes for channel_id in node.node.ledger.refunds}
        for node in nodes:
            invariants.check_node(node)
            invariants.check_node_disk(node)
        for gateway in self._gateways:
            invariants.check_gateway(gateway, refunded)
            invariants.check_exposure(gateway, nodes, self._peaks)
            invariants.check_both_disks(gateway, nodes)
        minted = FUNDS * len(self._gateways)
        minted += sum(leech.deposit for leech in self._leeches if leech.paid_in)
        invariants.check_chain(self._chain, minted)

    async def _rest(self, clients: list[Client]) -> None:
        for gateway in self._gateways:
            await self._ask(gateway)
        await asyncio.sleep(1.0)  # what was booked last is on disk
        self._check()
        invariants.check_agreed(self._gateways, self._nodes.values())
        for gateway in self._gateways:
            invariants.check_routes(gateway)
            told: dict[str, int] = {}
            for client in clients:
                told |= client.told if client.gateway is gateway else {}
            invariants.check_prices(gateway, told)
        for _ in range(TRIES if self._options.reorgs else 1):
            await self._claim()
        await invariants.check_wallets(self._chain, self._gateways, FUNDS)
        channels = [
            channel
            for node in self._nodes.values()
            for channel in node.node.ledger.channels.values()
        ]
        if self._options.cheats:
            await self._all_out()
        else:
            invariants.require(
                all(channel.claimed == channel.earned for channel in channels), "all is claimed"
            )
        for client in clients:
            self._report.outcomes += client.outcomes
        self._report.charged_pico_usd = sum(channel.total_pico_usd for channel in channels)
        if isinstance(self._chain, ReorgChain):
            self._report.reorganised = self._chain.reorganised
        self._report.digest = self._digest()

    async def _ask(self, gateway: SimGateway) -> None:
        """Fetch late receipts over a pipe without faults."""
        for node in gateway.gateway.directory.nodes.values():
            node.transport = self._nodes[node.offer.endpoints[0].url].transport()
            for channel in gateway.gateway.ledger.channels_of(node.address):
                await gateway.gateway.reconciler.ask(node, channel)

    def _digest(self) -> str:
        facts = [
            sorted(self._report.outcomes.items()),
            sorted(self._report.crashes.items()),
            [
                (channel.channel_id.hex(), channel.seq, channel.total_pico_usd, channel.best)
                for node in self._nodes.values()
                for channel in node.node.ledger.channels.values()
            ],
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def simulate(options: Options) -> Report:
    """Run one world in virtual time."""

    async def main() -> Report:
        return await World(options).run()

    return run_virtual(main())
