"""The node's process: engines loaded, offers signed, registered, served, claimed for."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from inferpool.clock import SystemClock
from inferpool.config import Config, NodeConfig
from inferpool.daemon.chains import open_chain
from inferpool.daemon.door import Door, open_door, require_endpoint
from inferpool.daemon.engines import general_prices, load_manifest, make_engine, places
from inferpool.daemon.grpc_door import grpc_door
from inferpool.daemon.payee import Payee, payee_of, payee_side, payers_of, terms_of
from inferpool.daemon.provider import (
    Provider,
    enter,
    per_unit,
    policy_of,
    prices_of,
)
from inferpool.daemon.serving import run_role
from inferpool.home import Home
from inferpool.identity.certificate import TlsIdentity, tls_identity
from inferpool.identity.keys import Role
from inferpool.identity.signing import Key
from inferpool.models.manifest import Manifest
from inferpool.models.partial import Progress
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store
from inferpool.node.app import NodeApp
from inferpool.node.node import Node
from inferpool.node.offers import OfferBook
from inferpool.node.services import Hosted, Services
from inferpool.payments.journal import SqlJournal
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.job import Task
from inferpool.protocol.limits import OFFER_ENDPOINTS_MAX, RELAY_OPEN_TIMEOUT_S
from inferpool.protocol.offer import Endpoint, binding_digest
from inferpool.transport.relayed import Reach, RelayAddress, connect
from inferpool.transport.tls import HTTP1, HTTP2, server_context

_LOG = logging.getLogger("inferpool.node")
_VOUCHED_MS: Final = 30 * 86_400_000  # the owner's word for a node key; renewed at each start
_DAY_S: Final = 86_400

OnProgress = Callable[[Progress], None]


def host(manifest: Manifest, engine: Any, config: NodeConfig) -> Hosted:
    """A service with its price: the model's own, else its task's."""
    price_in, price_out = general_prices(Task(manifest.task), config)
    general = (per_unit(price_in), per_unit(price_out))
    prices = prices_of(config).get(manifest.name, general)
    return Hosted(manifest, engine, *prices, places(manifest, config))


async def load_services(
    config: NodeConfig, store: Store, on_progress: OnProgress | None = None
) -> Services:
    """Pull what is missing and start every engine, side by side. Raises InferpoolError.

    Under a memory cap none is started here: `Residents` loads what fits, one after the other.
    """
    for price in (price for task in Task for price in general_prices(task, config)):
        per_unit(price)  # a mistake is told before anything is fetched, whatever is served
    prices_of(config)
    hosted = []
    for manifest in served(config):
        await asyncio.to_thread(
            pull_model, store, manifest, prefer=preferred(), on_progress=on_progress
        )
        hosted.append(host(manifest, make_engine(manifest, store, config), config))
    for item in hosted:
        item.closed = config.memory_max_mb > 0
    starting = [item.engine for item in hosted if not item.closed]
    at_once = asyncio.Semaphore(os.cpu_count() or 1)  # each tries its file in a child of its own

    async def start(engine: Any) -> None:
        async with at_once:
            await engine.start()

    ended = await asyncio.gather(*map(start, starting), return_exceptions=True)
    failed = [error for error in ended if error is not None]
    if failed:
        for engine, error in zip(starting, ended, strict=True):
            if error is None:
                await engine.close()
        raise failed[0]
    return Services(hosted)


def served(config: NodeConfig) -> list[Manifest]:
    """The manifests of `node.models`. Raises Refused for one that is named twice, by name or id:
    an offer with it would be taken by nobody."""
    found = [load_manifest(name, config) for name in config.models]
    for at, manifest in enumerate(found):
        if manifest in found[:at]:
            message = f"node.models names {manifest.name} twice; take one out"
            raise Refused(message, code="bad_config", param="node.models")
    return found


async def serve_node(config: Config, home: Home, on_progress: OnProgress | None = None) -> None:
    """Run the node until told to stop."""
    keys = home.keys("node")
    owner, key = keys.key(Role.OWNER, create=True), keys.key(Role.NODE, create=True)
    gas = keys.key(Role.GAS, create=True)
    settings = config.node
    require_endpoint("node", settings.host, settings.endpoint)
    door = open_door(home, "node", settings.host, settings.port, settings.endpoint)
    policy_of(settings)  # a mistake is told before anything is loaded
    # The door's own key where it has one: the certificate names what the door is called.
    tls = door.tls or tls_identity(home.root / "tls" / "node")
    reach = _reach(settings, tls, key)
    endpoints = [Endpoint(item.url, tls.spki) for item in reach]
    if not reach or door.url.startswith("https:"):
        endpoints.insert(0, Endpoint(door.url, door.spki))
    receiver = payee_of(settings, owner)
    payers_of(settings)  # a mistake is told before anything is loaded
    services = await load_services(config.node, Store(), on_progress)
    journal = SqlJournal(home.ledger("node"))
    try:
        chain = await open_chain(config.chain, home, sender=gas, authorizer=key)
        terms = terms_of(config, chain, receiver, key.address)
        clock = SystemClock()
        now_ms = clock.now_ms()
        vouched = binding_digest(owner.address, key.address, now_ms + _VOUCHED_MS, chain.chain_id)
        offers = OfferBook(
            key,
            owner.address,
            owner.sign(vouched),
            now_ms + _VOUCHED_MS,
            endpoints,
            terms,
            lambda: node.offered(),
            clock,
            epoch=now_ms,
        )
        payee = await payee_side(config, chain, journal, terms, clock)
        node = Node(key, services, offers, payee.gate, payee.ledger, clock)
        await enter(chain, config, keys, await _front(endpoints, reach))
        await _run(config, home, node, payee, door, reach)
    finally:
        for engine in services.engines:
            await engine.close()
        journal.close()


def _reach(settings: NodeConfig, tls: TlsIdentity, key: Key) -> list[Reach]:
    """A standing connection to each named relay. Raises Refused(bad_config)."""
    context = server_context(tls.certificate, tls.key)
    if settings.grpc_port:
        context.set_alpn_protocols([HTTP2, HTTP1])
    relays = [RelayAddress.parse(text) for text in settings.relays[: OFFER_ENDPOINTS_MAX - 1]]
    return [Reach(relay, key.address, key.sign, context) for relay in relays]


async def _front(endpoints: Sequence[Endpoint], reach: Sequence[Reach]) -> str:
    """The endpoint for the registry, which has room for one: where several relays are named, the
    first that takes a connection now. Its offer names the rest."""
    if endpoints[0].url == (reach[0].url if reach else ""):
        for item in reach:
            with suppress(OSError):  # of time, too
                async with asyncio.timeout(RELAY_OPEN_TIMEOUT_S):
                    (await connect(item.relay.host, item.relay.port)).close()
                return item.url
    return endpoints[0].url


async def _run(
    config: Config,
    home: Home,
    node: Node,
    payee: Payee,
    door: Door,
    reach: Sequence[Reach],
) -> None:
    token = home.secret("control-token")

    async def claim() -> dict[str, object]:
        return (await payee.claimer.claim()).to_wire()

    provider = Provider(node, config, home, payee.channels)
    jobs = payee.jobs(config.node.claim_every_s)

    def leaving() -> None:
        """Every lease ends now: no gateway waits for its silence to be noticed."""
        node.draining = True
        node.announce()

    async def close() -> None:
        await provider.close()
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)

    facts: dict[str, object] = {
        **door.facts(),
        "node": to_hex(node.key.address),
        "owner": to_hex(node.offers.current().offer.owner),
        "models": [item.manifest.name for item in node.services.hosted],
    }
    app = NodeApp(node, claim, token, provider.controls, payee.channels)
    await provider.start()
    async with grpc_door(app, config.node.host, config.node.grpc_port, door.tls) as grpc:
        if grpc is not None:
            facts["grpc_port"] = grpc.port
        await run_role(
            home,
            "node",
            app,
            door.listening,
            facts,
            close,
            tls=door.tls,
            leaving=leaving,
            reach=reach,
            relayed_http2=grpc.relayed if grpc is not None else None,
        )
