"""Nodes and gateways for the simulator: the real ones, on in-memory seams, that can be killed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, DOLLAR_NAME, DOLLAR_VERSION
from inferpool.chain.base import Chain
from inferpool.chain.memory import MemoryChain
from inferpool.clock import Clock
from inferpool.engines.fake import FakeTensorEngine, FakeTextEngine
from inferpool.gateway.app import GatewayApp
from inferpool.gateway.deposits import WITHOUT_END
from inferpool.gateway.directory import Directory, OpenTransport
from inferpool.gateway.gateway import Gateway
from inferpool.gateway.remembered import Remembered
from inferpool.gateway.route_book import RouteBook
from inferpool.gateway.treasury import Caps, Treasury
from inferpool.gateway.walk_ins import ACCOUNT as WALK_INS
from inferpool.gateway.walk_ins import WalkIns
from inferpool.identity.signing import Key
from inferpool.models import catalogue
from inferpool.node.app import NodeApp
from inferpool.node.node import Node
from inferpool.node.offers import OfferBook
from inferpool.node.services import Hosted, Services
from inferpool.payments.budget import Account
from inferpool.payments.claims import Claimer
from inferpool.payments.gate import PaymentGate, deposit_method
from inferpool.payments.journal import MemoryJournal
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.payments.standing import Channels
from inferpool.protocol.offer import Endpoint, Terms
from inferpool.protocol.voucher import PERMIT2_ADDRESS
from inferpool.transport.base import ConnectFailed, Headers, Response, Transport
from inferpool.transport.memory import MemoryTransport

API_KEY = "sim-key"
DISK_S = 0.02  # a slow disk: crashes between a write and its commit must be common


def key_of(seed: int, role: str) -> Key:
    """A key that depends on the seed only."""
    return Key(hashlib.sha256(f"{seed}/{role}".encode()).digest())


def terms_of(chain: MemoryChain, payee: Key, authorizer: Key, window: int) -> Terms:
    """How every payee here is paid."""
    return Terms(
        chain_id=chain.chain_id,
        asset=DEV_DOLLAR_ADDRESS,
        asset_name=DOLLAR_NAME,
        asset_version=DOLLAR_VERSION,
        asset_decimals=6,
        payee=payee.address,
        receiver_authorizer=authorizer.address,
        min_deposit=1000,
        withdraw_delay_s=900,
        window=window,
    )


@dataclass(slots=True)
class Machine:
    """Something that can be killed: the pipes to it, and what runs on it now."""

    pipes: list[Pipe] = field(default_factory=list)
    up: bool = False

    async def cut(self) -> None:
        """Cut every connection, as a dead process does."""
        self.up = False
        for pipe in self.pipes:
            await pipe.cut()


class Pipe:
    """A transport to a machine that may be down; each call goes to the app that runs now."""

    def __init__(self, machine: Machine, app: Callable[[], MemoryTransport]) -> None:
        self._machine, self._app = machine, app
        self._inner: MemoryTransport | None = None
        machine.pipes.append(self)

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Response:
        """See Transport."""
        if not self._machine.up:
            raise ConnectFailed("the machine is down")
        if self._inner is None:
            self._inner = self._app()
        return await self._inner.request(method, path, headers, body, timeout_s=timeout_s)

    async def cut(self) -> None:
        """Drop the connections; the next call makes new ones."""
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.close()

    async def close(self) -> None:
        """See Transport."""
        await self.cut()


@dataclass(slots=True)
class SimNode:
    """A node on a machine: its disk outlives it."""

    name: str
    seed: int
    url: str
    clock: Clock
    chain: MemoryChain
    random: Random
    window: int = 1
    machine: Machine = field(default_factory=Machine)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    node: Node = field(init=False)
    app: NodeApp = field(init=False)
    claimer: Claimer = field(init=False)
    engine: FakeTextEngine = field(init=False)
    starts: int = 0

    async def start(self) -> None:
        """Start, or start again with what is on disk."""
        owner, key = key_of(self.seed, f"{self.name}/owner"), key_of(self.seed, f"{self.name}/node")
        self.starts += 1
        self.journal = MemoryJournal(self.journal.engine, DISK_S)
        terms = terms_of(self.chain, owner, key, self.window)
        self.engine = FakeTextEngine(slots=4, token_delay_s=0.02, prefill_delay_s=0.05)
        tensors = FakeTensorEngine(delay_s=0.001)
        await self.engine.start()
        await tensors.start()
        services = Services(
            [
                Hosted(catalogue.load("fake-chat"), self.engine, 150_000, 600_000, 4),
                Hosted(catalogue.load("fake-tensor"), tensors, 100_000, 0, 8),
            ]
        )
        offers = OfferBook(
            key,
            owner.address,
            b"",
            0,
            [Endpoint(self.url)],
            terms,
            lambda: self.node.offered(),
            self.clock,
            epoch=self.starts,
        )
        chain: Chain = self.chain.with_sender(key, key)
        ledger = PayeeLedger(self.journal, self.chain.chain_id, 6)
        method = await deposit_method(chain, terms.asset)
        gate = PaymentGate(terms, chain, ledger, one_off_least=200, method=method)
        self.node = Node(key, services, offers, gate, ledger, self.clock, self.random.randbytes)
        self.claimer = Claimer(terms, chain, ledger, gate, self.clock)
        channels = Channels(chain, ledger, gate, self.claimer)
        self.app = NodeApp(self.node, self._claim, "control", channels=channels)
        self.machine.up = True

    async def _claim(self) -> dict[str, object]:
        return (await self.claimer.claim()).to_wire()

    async def crash(self) -> None:
        """kill -9: what was not on disk is gone."""
        self.journal.crash()
        await self.machine.cut()

    def transport(self) -> Transport:
        """A pipe to this node."""
        return Pipe(self.machine, lambda: MemoryTransport(self.app))


@dataclass(slots=True)
class Page:
    """What a gateway remembers of nodes, on a disk that outlives it."""

    data: bytes = b""

    def load(self, most: int) -> bytes:
        """See MemoryStore."""
        if len(self.data) > most:
            raise ValueError("the page is too long")
        return self.data

    def save(self, page: bytes) -> None:
        """See MemoryStore."""
        self.data = page


@dataclass(slots=True)
class SimGateway:
    """A gateway on a machine: its disk outlives it."""

    name: str
    seed: int
    clock: Clock
    chain: MemoryChain
    random: Random
    open_transport: OpenTransport
    limit_pico_usd: int | None = None
    window: int = 1
    sells: bool = False  # to callers without a key, by x402
    machine: Machine = field(default_factory=Machine)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    page: Page = field(default_factory=Page)
    gateway: Gateway = field(init=False)
    app: GatewayApp = field(init=False)
    claimer: Claimer | None = None

    async def start(self) -> None:
        """Start, or start again with what is on disk."""
        self.journal = MemoryJournal(self.journal.engine, DISK_S)
        ledger = PayerLedger(self.journal, self.chain.chain_id)
        if ledger.account(API_KEY, 0) is None:
            await ledger.add_account(API_KEY, Account("client", self.limit_pico_usd), 0)
        payer = key_of(self.seed, f"{self.name}/payer")
        chain = self.chain.with_sender(payer)
        treasury = Treasury(
            chain,
            ledger,
            payer,
            key_of(self.seed, f"{self.name}/authorizer"),
            Caps(3000, per_node=1_000_000, total=10_000_000, window=self.window, window_units=100),
            self.random.randbytes,
        )

        async def allow(token: bytes) -> None:
            await chain.approve(token, PERMIT2_ADDRESS, WITHOUT_END)

        treasury.deposits.allow = allow
        directory = Directory(chain, self.clock, self.open_transport, allow_private=True)
        self.gateway = Gateway(
            directory,
            treasury,
            ledger,
            RouteBook(self.journal),
            self.clock,
            catalogue.sampling_of,
            self.random.randbytes,
            remembered=Remembered(self.page, self.clock, threads=False),
            walk_ins=await self._walk_ins(ledger, payer) if self.sells else None,
        )
        self.app = GatewayApp(self.gateway, "control")
        await self.gateway.start()
        self.machine.up = True

    async def _walk_ins(self, ledger: PayerLedger, payer: Key) -> WalkIns:
        key = key_of(self.seed, f"{self.name}/payee")
        nobodys = key.secret.hex()
        if ledger.account(nobodys, 0) is None:
            await ledger.add_account(nobodys, Account(WALK_INS, None), 0)
        found = ledger.account(nobodys, 0)
        assert found is not None, "it was just added"
        terms, book = (
            terms_of(self.chain, payer, key, self.window),
            PayeeLedger(self.journal, self.chain.chain_id, 6),
        )
        chain = self.chain.with_sender(key, key)
        method = await deposit_method(chain, terms.asset)
        gate = PaymentGate(terms, chain, book, one_off_least=200, method=method)
        self.claimer = Claimer(terms, chain, book, gate, self.clock)
        channels = Channels(chain, book, gate, self.claimer)
        return WalkIns(key, gate, book, self.clock, self.random.randbytes, *found, channels)

    async def crash(self) -> None:
        """kill -9: what was not on disk is gone."""
        self.journal.crash()
        await self.machine.cut()
        if self.gateway.remembered is not None:
            await self.gateway.remembered.stop()
            self.gateway.remembered = None
        await self.gateway.close()

    def transport(self) -> Transport:
        """A client's pipe to this gateway."""
        return Pipe(self.machine, lambda: MemoryTransport(self.app))
