"""A real gateway before real nodes with real engines, in one process: only the pipes are memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import openai
import orjson
import pytest

from inferpool.chain.memory import MemoryChain
from inferpool.clock import SystemClock
from inferpool.config import NodeConfig
from inferpool.daemon.engines import make_engine
from inferpool.daemon.node import host
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.node.services import Hosted, Services
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.receipt import SignedReceipt
from inferpool.sim.parts import API_KEY, SimGateway, SimNode, key_of
from inferpool.transport.base import Transport

SEED = 11
CONFIG = NodeConfig(slots=2, threads=1)


async def hosted(name: str, config: NodeConfig = CONFIG) -> Hosted:
    """A catalogue model with its engine started; skips where its files or packages are missing."""
    manifest = catalogue.load(name)
    try:
        await asyncio.to_thread(pull_model, Store(), manifest)
        engine = make_engine(manifest, Store(), config)
        await engine.start()
    except Unavailable as error:
        pytest.skip(f"{name} cannot run here: {error.message}")
    return host(manifest, engine, config)


@dataclass
class Rig:
    """`nodes[i]` serves `services[i]` alone."""

    services: Sequence[Sequence[Hosted]]
    chain: MemoryChain = field(init=False)
    nodes: list[SimNode] = field(default_factory=list)
    gateway: SimGateway = field(init=False)
    client: httpx.AsyncClient = field(init=False)

    async def start(self) -> Rig:
        clock, draw = SystemClock(), Random(SEED)
        self.chain = MemoryChain(lambda: clock.now_ms() // 1000)
        self.chain.fund(key_of(SEED, "gateway/payer").address, 10**9)
        for number, services in enumerate(self.services):
            url = f"http://node-{number}.test"
            node = SimNode(f"node-{number}", SEED, url, clock, self.chain, draw)
            await node.start()
            Services.__init__(node.node.services, services)
            self.nodes.append(node)
            owner = key_of(SEED, f"node-{number}/owner")
            key = key_of(SEED, f"node-{number}/node")
            await self.chain.with_sender(owner).register(key, url)
        self.gateway = SimGateway("gateway", SEED, clock, self.chain, draw, self._pipe)
        await self.gateway.start()
        door = httpx.ASGITransport(app=self.gateway.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(
            transport=door,
            base_url="http://gateway",
            headers={"authorization": f"Bearer {API_KEY}"},
            timeout=60,
        )
        return self

    def _pipe(self, url: str, spki: bytes | None) -> Transport:
        return self.nodes[int(url.split("-")[1].split(".")[0])].transport()

    async def close(self) -> None:
        await self.client.aclose()
        await self.gateway.machine.cut()
        await self.gateway.gateway.close()
        for node in self.nodes:
            await node.machine.cut()
            for engine in node.node.services.engines:
                await engine.close()

    def openai(self) -> openai.AsyncOpenAI:
        """openai-python with this gateway behind it."""
        return openai.AsyncOpenAI(
            base_url="http://gateway/v1",
            api_key=API_KEY,
            http_client=self.client,
            max_retries=0,
        )

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        if isinstance(body, dict):
            more["headers"] = {"content-type": "application/json"}
            body = orjson.dumps(body)
        return await self.client.post(path, content=body, **more)

    async def refused(self, path: str, body: Any, **more: Any) -> dict[str, Any]:
        """The error of an answer that must be one; nobody pays for it."""
        before = self.charged()
        answer = await self.post(path, body, **more)
        assert answer.status_code >= 400, answer.text
        assert self.charged() == before
        error: dict[str, Any] = {**answer.json()["error"], "status": answer.status_code}
        return error

    def charged(self) -> int:
        """What all nodes together have charged, in pico-USD."""
        return sum(
            channel.total_pico_usd
            for node in self.nodes
            for channel in node.node.ledger.channels.values()
        )

    def spent(self) -> int:
        """What the client was billed, in pico-USD."""
        found = self.gateway.gateway.ledger.account(API_KEY, 0)
        assert found is not None
        return found[1].spent_pico_usd


def receipt_of(answer: httpx.Response) -> SignedReceipt:
    return SignedReceipt.from_header(answer.headers["inferpool-receipt"].encode())


def check_money(rig: Rig, service: Hosted, signed: SignedReceipt, before: tuple[int, int]) -> int:
    """Units times price, to the pico-USD, on the receipt, at the node and for the client.

    `before`: `charged()` and `spent()` before the request. Returns the charge in pico-USD.
    """
    receipt = signed.receipt
    exact = (
        receipt.prompt_units * service.price_in_pico_usd_per_unit
        + receipt.output_units * service.price_out_pico_usd_per_unit
    )
    assert receipt.charge_pico_usd == exact > 0
    assert (rig.charged() - before[0], rig.spent() - before[1]) == (exact, exact)
    return exact
