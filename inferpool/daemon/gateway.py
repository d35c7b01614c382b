"""The gateway's process: wallet, nodes, keys, served."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from inferpool.chain.base import Chain
from inferpool.chain.client import EvmChain
from inferpool.clock import Clock, SystemClock
from inferpool.config import Config, GatewayConfig
from inferpool.daemon.books import capital_of, caps_of, sales_to
from inferpool.daemon.chains import asset_of, is_embedded, open_chain
from inferpool.daemon.door import Door, open_door, refuse_open
from inferpool.daemon.grpc_door import grpc_door
from inferpool.daemon.memory_file import MemoryFile
from inferpool.daemon.payee import Payee, payee_side, terms_of
from inferpool.daemon.relay import make_relay, relaying
from inferpool.daemon.serving import listen, run_role
from inferpool.daemon.shared import open_book
from inferpool.daemon.workers import Worker
from inferpool.gateway.admission import Caller
from inferpool.gateway.app import GatewayApp
from inferpool.gateway.canary import ACCOUNT, Canaries
from inferpool.gateway.capital import Capital
from inferpool.gateway.control import CapitalControls
from inferpool.gateway.directory import Directory
from inferpool.gateway.gateway import Gateway
from inferpool.gateway.neighbours import KNOWN_S, Neighbours
from inferpool.gateway.remembered import Remembered
from inferpool.gateway.route_book import RouteBook
from inferpool.gateway.treasury import Treasury
from inferpool.gateway.walk_ins import ACCOUNT as WALK_INS
from inferpool.gateway.walk_ins import WalkIns
from inferpool.home import Home
from inferpool.identity.keys import KeyRing, Role
from inferpool.identity.signing import Key
from inferpool.models import catalogue
from inferpool.payments.budget import Account
from inferpool.payments.fees import BPS
from inferpool.payments.journal import SqlJournal
from inferpool.payments.lanes import Lane
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.payments.shared_book import SharedBook
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.units import parse_usd, pico_usd_per_base_unit
from inferpool.transport.asgi import stop_task
from inferpool.transport.base import Transport
from inferpool.transport.http import LOOPBACK, open_transport

_LOG = logging.getLogger("inferpool.gateway")
_FAUCET_WEI: Final = 10**18
_FAUCET_UNITS: Final = 1_000_000_000  # 1,000 test dollars
KEY_NAME: Final = "default"
ANYONE: Final = "anyone"


async def serve_gateway(config: Config, home: Home, worker: Worker) -> None:
    """Run the gateway, or one worker of it, until told to stop."""
    settings = config.gateway
    keys = home.keys("gateway")
    payer = keys.key(Role.PAYER, create=True)
    authorizer = worker.keys(home).key(Role.PAYER_AUTHORIZER, create=True)
    gas = keys.key(Role.GAS, create=True)
    _check(settings)
    door = open_door(
        home, "gateway", settings.host, settings.port, settings.endpoint, worker.listening()
    )
    seller = _seller(config, keys) if worker.first else None
    chain = await open_chain(config.chain, home, sender=gas, authorizer=seller)
    if is_embedded(config.chain) and worker.first:
        await _fund(chain, config, gas.address, payer.address)
    async with open_book(settings, home, worker) as (journal, lane):
        ledger = PayerLedger(journal, chain.chain_id, lane.name if lane is not None else "")
        clock = SystemClock()
        await _first_account(ledger, home.secret("api-key"), clock)
        book = _shared(lane, ledger)
        check = _may_sign(journal, lane)
        treasury = Treasury(chain, ledger, payer, authorizer, caps_of(settings), check=check)
        receiver = sales_to(settings, payer)
        payee = await _payee(config, chain, journal, seller, receiver) if seller else None
        gateway = Gateway(
            directory=directory_of(config, chain, clock),
            treasury=treasury,
            ledger=ledger,
            routes=RouteBook(journal),
            clock=clock,
            sampling=catalogue.sampling_of,
            value_of_time_pico_usd_per_s=_per_second(settings.value_of_time_usd_per_hour),
            fee_bps=settings.fee_bps,
            shared=book,
            remembered=Remembered(MemoryFile.of(home, worker), clock),
            walk_ins=await _walk_ins(ledger, home, seller, payee, clock) if settings.x402 else None,
        )
        await gateway.start()
        anyone = await _account(ledger, "", ANYONE, clock) if settings.open else None
        capital = capital_of(config, chain, treasury, gas, clock)
        capital.nodes = gateway.directory.nodes.get
        jobs = await _jobs(config, home, worker, gateway, capital, payee)

        controls = CapitalControls(capital)
        if payee is not None:
            controls.sales, controls.claimer = payee.channels, payee.claimer
        beside, neighbours = await _beside(lane, worker, door)
        app = GatewayApp(gateway, home.secret("control-token"), anyone, controls, neighbours)
        facts: dict[str, object] = {
            **door.facts(),
            "payer": to_hex(payer.address),
            "models": [service.model for service, _ in gateway.models()],
        }
        async with _other_doors(config, home, worker, app, door, facts):
            await run_role(
                home,
                worker.role,
                app,
                door.listening,
                facts,
                _closing(jobs, gateway, neighbours, book),
                tls=door.tls,
                beside=beside,
            )


def _seller(config: Config, keys: KeyRing) -> Key | None:
    """The key that signs for what walk-ins pay; one that sold once is still claimed for."""
    sold = keys.path(Role.NODE).exists()
    return keys.key(Role.NODE, create=True) if config.gateway.x402 or sold else None


async def _jobs(
    config: Config,
    home: Home,
    worker: Worker,
    gateway: Gateway,
    capital: Capital,
    payee: Payee | None,
) -> list[asyncio.Task[None]]:
    """What runs beside the requests."""
    jobs = [asyncio.create_task(capital.run(), name="capital")]
    if payee is not None:
        jobs += payee.jobs(config.node.claim_every_s)
    if config.gateway.canary and worker.first:
        jobs.append(await _canaries(config, home, gateway))
    return jobs


async def _payee(
    config: Config, chain: EvmChain, journal: SqlJournal, seller: Key, receiver: bytes
) -> Payee:
    terms = terms_of(config, chain, receiver, seller.address)
    return await payee_side(config, chain, journal, terms, SystemClock())


@asynccontextmanager
async def _other_doors(
    config: Config,
    home: Home,
    worker: Worker,
    app: GatewayApp,
    door: Door,
    facts: dict[str, object],
) -> AsyncIterator[None]:
    """gRPC, and the relay for nodes that dial out to this gateway, each where it has a port."""
    host, relay_port = config.gateway.host, config.gateway.relay_port
    if not worker.first:
        yield
        return
    async with AsyncExitStack() as stack:
        grpc = grpc_door(app, host, config.gateway.grpc_port, door.tls)
        opened = await stack.enter_async_context(grpc)
        if opened is not None:
            facts["grpc_port"] = opened.port
        if relay_port:
            listening = listen(host, relay_port, "--relay-port")
            await stack.enter_async_context(relaying(make_relay(config.relay, home), listening))
            facts["relay_port"] = relay_port
        yield


def directory_of(config: Config, chain: Chain, clock: Clock) -> Directory:
    """The nodes that are called: private ones too where the configuration says so, or says
    nothing and this gateway can be reached from its own machine only."""
    settings = config.gateway
    private = settings.allow_private
    if config.origins.get("gateway.allow_private") == "default":
        private = settings.host in LOOPBACK and not settings.endpoint

    def dial(url: str, tls_spki: bytes | None) -> Transport:
        return open_transport(url, tls_spki, public_only=not private and url not in settings.nodes)

    return Directory(chain, clock, dial, settings.nodes, private)


def _shared(lane: Lane | None, ledger: PayerLedger) -> SharedBook | None:
    """What this process shares, from now on: starting may take longer than a lane is valid."""
    if lane is None:
        return None
    book = SharedBook(lane, ledger.keys)
    book.start()
    return book


def _closing(
    jobs: Sequence[asyncio.Task[None]],
    gateway: Gateway,
    neighbours: Neighbours | None,
    book: SharedBook | None,
) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        for job in jobs:
            await stop_task(job)
        await gateway.close()
        if neighbours is not None:
            await neighbours.close()
        if book is not None:
            await book.close()

    return close


async def _beside(
    lane: Lane | None, worker: Worker, door: Door
) -> tuple[list[socket.socket], Neighbours | None]:
    """Where the other workers of this machine reach this one; all of them know it from here on.

    Else a request that came here could come again to one that does not ask here, and be billed
    twice.
    """
    if lane is None or worker.of == 1:
        return [], None
    found = listen("127.0.0.1", 0, "--port")
    scheme = "http" if door.tls is None else "https"
    lane.tls_spki = b"" if door.tls is None else door.spki
    lane.url = f"{scheme}://127.0.0.1:{found.getsockname()[1]}"
    await asyncio.to_thread(lane.announce)
    await asyncio.sleep(KNOWN_S)
    return [found], Neighbours(lane, _dial_neighbour)


def _dial_neighbour(url: str, tls_spki: bytes | None) -> Transport:
    return open_transport(url, tls_spki or None)


def _may_sign(journal: SqlJournal, lane: Lane | None) -> Callable[[], None]:
    """Nothing is promised to a node while it cannot be written down, or by whom another process
    has followed."""

    def check() -> None:
        journal.check()
        if lane is not None:
            lane.check()

    return check


def _check(settings: GatewayConfig) -> None:
    """Raise Refused(bad_config) for what must not start."""
    if settings.open:
        refuse_open("gateway", settings.host, settings.endpoint)
    if settings.window < 1 or settings.window_base_units < 0:
        message = "gateway.window must be 1 or more, gateway.window_base_units 0 or more"
        raise Refused(message, code="bad_config", param="gateway.window")
    if settings.x402 and (settings.db or settings.workers > 1):
        # Two processes that do not know of each other's answers would take one voucher twice.
        message = "gateway.x402 needs a book and a process of its own: no gateway.db, one worker"
        raise Refused(message, code="bad_config", param="gateway.x402")
    if not 0 <= settings.fee_bps <= BPS:
        message = f"gateway.fee_bps must be 0 to {BPS}"
        raise Refused(message, code="bad_config", param="gateway.fee_bps")


def _per_second(usd_per_hour: str) -> int:
    try:
        return parse_usd(usd_per_hour) // 3600
    except ValueError as error:
        raise Refused(f"gateway.value_of_time_usd_per_hour: {error}", code="bad_config") from None


async def _first_account(ledger: PayerLedger, key: str, clock: Clock) -> None:
    """The key of this home opens the door from the first start on, unless it was revoked."""
    if not ledger.keys.knows(key):
        await _account(ledger, key, KEY_NAME, clock)


async def _account(ledger: PayerLedger, key: str, name: str, clock: Clock) -> Caller:
    """The account of a key, opened the first time: of callers without one, or of canaries."""
    found = ledger.account(key, clock.now_ms())
    if found is None:
        named = ledger.keys.by_name.get(name)  # of another home that shares the book
        if named is not None:
            await ledger.keys.add_key(key, named, clock.now_ms())
        else:
            await ledger.add_account(key, Account(name, None), clock.now_ms())
        found = ledger.account(key, clock.now_ms())
    assert found is not None, "it was just added"
    return Caller(*found)


async def _walk_ins(
    ledger: PayerLedger, home: Home, key: Key | None, payee: Payee | None, clock: Clock
) -> WalkIns | None:
    """Callers who pay by x402, billed together to an account whose key nobody is given."""
    if key is None or payee is None:
        return None
    caller = await _account(ledger, home.secret("x402-key"), WALK_INS, clock)
    return WalkIns(
        key,
        payee.gate,
        payee.ledger,
        clock,
        secrets.token_bytes,
        caller.account_id,
        caller.account,
        payee.channels,
    )


async def _canaries(config: Config, home: Home, gateway: Gateway) -> asyncio.Task[None]:
    """Small paid jobs for newcomers, billed to an account whose key nobody is given."""
    key = home.secret("canary-key")
    caller = await _account(gateway.ledger, key, ACCOUNT, gateway.clock)
    worth = pico_usd_per_base_unit(config.chain.asset_decimals)
    canaries = Canaries(gateway, caller, config.gateway.canary_max_base_units * worth)
    return asyncio.create_task(canaries.run(), name="canaries")


async def _fund(chain: EvmChain, config: Config, gas: bytes, payer: bytes) -> None:
    """Test money from the development chain's faucet, where there is too little."""
    if await chain.gas_balance(gas) < _FAUCET_WEI // 10:
        await chain.faucet(gas, _FAUCET_WEI, 0)
    if await chain.token_balance(asset_of(config.chain), payer) < _FAUCET_UNITS // 10:
        await chain.faucet(payer, 0, _FAUCET_UNITS)
