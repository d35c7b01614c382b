"""The node's process: engines loaded, offers signed, registered, served, claimed for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from inferpool.chain.client import EvmChain
from inferpool.clock import SystemClock
from inferpool.config import Config, NodeConfig
from inferpool.daemon.chains import asset_of, is_embedded, open_chain
from inferpool.daemon.serving import listen, run_role, url_of
from inferpool.home import Home
from inferpool.identity.keys import KeyRing, Role
from inferpool.identity.signing import Key
from inferpool.models import catalogue
from inferpool.models.manifest import Manifest
from inferpool.models.partial import Progress
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store
from inferpool.node.app import NodeApp
from inferpool.node.claims import Claimer
from inferpool.node.node import Node
from inferpool.node.offers import OfferBook
from inferpool.node.payment import PaymentGate
from inferpool.node.services import Hosted, Services
from inferpool.payments.journal import SqlJournal
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.offer import Endpoint, Terms, binding_digest
from inferpool.protocol.units import parse_usd

_LOG = logging.getLogger("inferpool.node")
_VOUCHED_MS: Final = 30 * 86_400_000  # the owner's word for a node key; renewed at each start
_DAY_S: Final = 86_400
_TENSOR_PLACES: Final = 64
_FAUCET_WEI: Final = 10**18

OnProgress = Callable[[Progress], None]


def make_engine(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    """The engine of a manifest; its files must be in the store. Imports only what it needs."""
    if manifest.engine == "fake":
        from inferpool.engines.fake import FakeTensorEngine, FakeTextEngine

        if manifest.task == "tensor":
            return FakeTensorEngine()
        return FakeTextEngine(slots=config.slots, token_delay_s=0.005)
    path = store.path(manifest.files[0])
    if manifest.engine == "llamacpp":
        from inferpool.engines.llamacpp import LlamaCppEngine

        return LlamaCppEngine(
            path,
            manifest.name,
            manifest.quant,
            slots=config.slots,
            context=manifest.limits.context,
            threads=config.threads,
        )
    if manifest.engine == "onnx":
        from inferpool.engines.onnx import OnnxEngine

        return OnnxEngine(path, manifest.name, threads=config.threads)
    raise Refused(
        f"the engine {manifest.engine!r} of {manifest.name} is not built into this version",
        code="bad_manifest",
    )


def _per_unit(usd_per_million: str) -> int:
    """Pico-USD per unit from USD per million units: the same number as micro-USD."""
    try:
        return parse_usd(usd_per_million) // 10**6
    except ValueError as error:
        raise Refused(f"a price: {error}", code="bad_config") from None


def host(manifest: Manifest, engine: Any, config: NodeConfig) -> Hosted:
    """A service with its price."""
    tensor = manifest.task == "tensor"
    return Hosted(
        manifest,
        engine,
        _per_unit(config.price_row_usd_per_million if tensor else config.price_in_usd_per_million),
        0 if tensor else _per_unit(config.price_out_usd_per_million),
        _TENSOR_PLACES if tensor else config.slots,
    )


async def load_services(
    config: NodeConfig, store: Store, on_progress: OnProgress | None = None
) -> Services:
    """Pull what is missing and start every engine. Raises InferpoolError."""
    prices = (
        config.price_in_usd_per_million,
        config.price_out_usd_per_million,
        config.price_row_usd_per_million,
    )
    for price in prices:
        _per_unit(price)  # a mistake is told before anything is fetched, whatever is served
    hosted = []
    for name in config.models:
        manifest = catalogue.load(name)
        await asyncio.to_thread(
            pull_model, store, manifest, prefer=preferred(), on_progress=on_progress
        )
        hosted.append(host(manifest, make_engine(manifest, store, config), config))
    started: list[Any] = []
    try:
        for item in hosted:
            await item.engine.start()
            started.append(item.engine)
    except InferpoolError:
        for engine in started:
            await engine.close()
        raise
    return Services(hosted)


def terms_of(config: Config, chain: EvmChain, payee: bytes, authorizer: bytes) -> Terms:
    """Payment terms from the configuration."""
    return Terms(
        chain_id=chain.chain_id,
        asset=asset_of(config.chain),
        asset_name=config.chain.asset_name,
        asset_version=config.chain.asset_version,
        asset_decimals=config.chain.asset_decimals,
        payee=payee,
        receiver_authorizer=authorizer,
        min_deposit=config.node.min_deposit_base_units,
        withdraw_delay_s=config.node.withdraw_delay_s,
    )


async def ensure_registered(chain: EvmChain, owner: Key, node: Key, url: str) -> None:
    """Register the node, or correct what the registry says of it. Costs gas only then."""
    known = {item.owner: item for item in await chain.registrations()}
    sender = chain.with_sender(owner)
    found = known.get(owner.address)
    if found is None:
        await sender.register(node, url)
    elif found.node != node.address:
        await sender.replace_key(node)
    if found is not None and found.endpoint != url:
        await sender.set_endpoint(url)


async def serve_node(config: Config, home: Home, on_progress: OnProgress | None = None) -> None:
    """Run the node until told to stop."""
    keys = home.keys("node")
    owner, key = keys.key(Role.OWNER, create=True), keys.key(Role.NODE, create=True)
    gas = keys.key(Role.GAS, create=True)
    listening = listen(config.node.host, config.node.port, "--port")
    url = url_of(listening)
    services = await load_services(config.node, Store(), on_progress)
    journal = SqlJournal(home.ledger("node"))
    try:
        chain = await open_chain(config.chain, home, sender=gas, authorizer=key)
        if is_embedded(config.chain):
            await _fund(chain, keys)
        terms = terms_of(config, chain, owner.address, key.address)
        clock = SystemClock()
        now_ms = clock.now_ms()
        vouched = binding_digest(owner.address, key.address, now_ms + _VOUCHED_MS, chain.chain_id)
        offers = OfferBook(
            key,
            owner.address,
            owner.sign(vouched),
            now_ms + _VOUCHED_MS,
            [Endpoint(url)],
            terms,
            services.offered,
            clock,
            epoch=now_ms,
        )
        ledger = PayeeLedger(journal, chain.chain_id, terms.asset_decimals)
        gate = PaymentGate(terms, chain, ledger)
        node = Node(key, services, offers, gate, ledger, clock)
        claimer = Claimer(terms, chain, ledger, gate)
        await ensure_registered(chain, owner, key, url)
        await _run(config, home, node, claimer, listening, url)
    finally:
        for engine in services.engines:
            await engine.close()
        journal.close()


async def _run(
    config: Config, home: Home, node: Node, claimer: Claimer, listening: Any, url: str
) -> None:
    token = home.secret("control-token")

    async def claim() -> dict[str, object]:
        return (await claimer.claim()).to_wire()

    jobs = [
        asyncio.create_task(claimer.watch(), name="watch"),
        asyncio.create_task(_claim_often(claimer, config.node.claim_every_s), name="claim"),
    ]

    async def close() -> None:
        node.draining = True
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)

    facts: dict[str, object] = {
        "url": url,
        "node": to_hex(node.key.address),
        "owner": to_hex(node.gate.terms.payee),
        "models": [item.manifest.name for item in node.services.hosted],
    }
    await run_role(home, "node", NodeApp(node, claim, token), listening, facts, close)


async def _claim_often(claimer: Claimer, every_s: int) -> None:
    while True:
        await asyncio.sleep(max(60, every_s))
        try:
            await claimer.claim()
        except InferpoolError as error:
            _LOG.warning("claiming failed, it will be tried again: %s", error.message)


async def _fund(chain: EvmChain, keys: KeyRing) -> None:
    """Gas money from the development chain's faucet, where a key has too little."""
    for role in (Role.OWNER, Role.GAS):
        address = keys.key(role).address
        if await chain.gas_balance(address) < _FAUCET_WEI // 10:
            await chain.faucet(address, _FAUCET_WEI, 0)
