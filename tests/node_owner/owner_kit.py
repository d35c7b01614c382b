"""A node and a gateway in one process on in-memory seams, with the owner's side of the node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from inferpool.chain.memory import MemoryChain
from inferpool.clock import Clock, LoopClock
from inferpool.config import NodeConfig
from inferpool.daemon.wishes import Wishes
from inferpool.gateway.nodes import KnownNode
from inferpool.node.app import NodeApp
from inferpool.node.control import Controls
from inferpool.node.duty import Duty
from inferpool.node.load import LoadMeter
from inferpool.node.policy import Policy
from inferpool.node.push import Pusher
from inferpool.protocol.offer import binding_digest
from inferpool.sim.parts import API_KEY, SimGateway, SimNode, key_of
from inferpool.transport.memory import MemoryTransport

EPOCH_MS = 1_800_000_000_000
SEED = 11
NODE_URL = "http://node.test"
GATEWAY_URL = "http://gateway"
TOKEN = "control"
OWNER = (b"authorization", b"Bearer " + TOKEN.encode())
KEY = (b"authorization", b"Bearer " + API_KEY.encode())


def still(folder: Path) -> LoadMeter:
    """A meter on a machine where nothing runs: its /proc is an empty folder."""
    return LoadMeter(proc=folder)


@dataclass
class Net:
    """One chain, one node under its owner, one gateway."""

    chain: MemoryChain
    clock: Clock
    node: SimNode
    gateway: SimGateway
    duty: Duty
    pusher: Pusher
    pipe: MemoryTransport

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Any = (OWNER,)
    ) -> tuple[int, Any]:
        """A call to the node."""
        response = await self.pipe.request(method, path, headers, body, timeout_s=30)
        try:
            data = await response.read(1 << 24)
        finally:
            await response.close()
        return response.status, json.loads(data) if data else None

    async def control(self, action: str, **body: Any) -> dict[str, Any]:
        """A call of the owner."""
        method = "GET" if action == "status" else "POST"
        data = json.dumps(body).encode() if body else b""
        status, value = await self.send(method, f"/inferpool/control/{action}", data)
        assert status == 200, value
        assert isinstance(value, dict)
        return value

    async def chat(self, **changes: Any) -> tuple[int, Any]:
        """A client of the gateway asks."""
        body = {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
            **changes,
        }
        pipe = MemoryTransport(self.gateway.app)
        response = await pipe.request(
            "POST", "/v1/chat/completions", [KEY], json.dumps(body).encode(), timeout_s=60
        )
        try:
            data = await response.read(1 << 24)
        finally:
            await response.close()
            await pipe.close()
        return response.status, json.loads(data)

    @property
    def known(self) -> KnownNode | None:
        """The node as the gateway knows it."""
        return self.gateway.gateway.directory.nodes.get(self.node.node.key.address)


@asynccontextmanager
async def net(
    folder: Path,
    *,
    policy: Policy = Policy(),  # noqa: B008 - immutable
    minute: Callable[[], int] = lambda: 720,
    meter: LoadMeter | None = None,
    registered: bool = True,
) -> AsyncIterator[Net]:
    """Start it all; unregistered, the owner's own word binds the node key."""
    clock = LoopClock(EPOCH_MS)
    chain = MemoryChain(lambda: clock.now_ms() // 1000)
    node = SimNode("node", SEED, NODE_URL, clock, chain, Random(1))
    await node.start()
    owner, key = key_of(SEED, "node/owner"), key_of(SEED, "node/node")
    if registered:
        await chain.with_sender(owner).register(key, NODE_URL)
    else:
        until_ms = clock.now_ms() + 86_400_000
        word = owner.sign(binding_digest(owner.address, key.address, until_ms, chain.chain_id))
        node.node.offers._vouched = (word, until_ms)
    duty = Duty(node.node, policy, clock, meter or still(folder), minute)
    pusher = Pusher(node.node, [GATEWAY_URL], lambda url: gateway.transport())
    wishes = Wishes(duty, NodeConfig(min_deposit_base_units=1000, window=1))  # as its terms are
    node.app = NodeApp(node.node, node._claim, TOKEN, Controls(duty, pusher, wishes=wishes))
    await duty.tick()
    gateway = SimGateway(
        "gateway", SEED, clock, chain, Random(2), lambda url, spki: node.transport()
    )
    chain.fund(key_of(SEED, "gateway/payer").address, 10**9)
    await gateway.start()
    pipe = MemoryTransport(node.app)
    try:
        yield Net(chain, clock, node, gateway, duty, pusher, pipe)
    finally:
        node.node.draining = True
        node.node.announce()
        await gateway.gateway.close()
        await pipe.close()


async def until(what: str, look: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for the loop's next events until something is so."""
    async with asyncio.timeout(within_s):
        while not look():  # noqa: ASYNC110 - another process is watched
            await asyncio.sleep(0.02)
    assert look(), what
