"""Canaries: one small paid job for each node that has no receipt of ours yet.

A newcomer sees its first earnings within seconds, and this gateway sees that the node works and is
paid, before a client depends on it. The job takes the path of every other one. At most one an hour
for a node, and a bounded number in all, since each may open a channel.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from inferpool.gateway import relay
from inferpool.gateway.admission import Caller
from inferpool.gateway.answers import Delivered
from inferpool.gateway.chat import TextRun
from inferpool.gateway.directory import NODES_MAX
from inferpool.gateway.gateway import Gateway
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.router import Candidate, Route
from inferpool.protocol.calls import CallDelta
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.errors import InferpoolError, Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import CANARIES_PER_HOUR_MAX, CANARY_EVERY_MS
from inferpool.protocol.logprobs import Tokens
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.preferences import NO_PREFERENCES

_LOG = logging.getLogger("inferpool.canary")
ACCOUNT: Final = "canary"
LOOK_EVERY_S: Final = 0.5
FAILED_PAUSE_MS: Final = 60_000  # a job that was not done and not paid may be tried again sooner
_MESSAGES: Final = [{"role": "user", "content": "Say hello."}]
_TOKENS: Final = 4
_METADATA_MAX: Final = 256 * 1024
_VALUES_MAX: Final = 1 << 20
_TIMEOUT_S: Final = 5.0


class _Silent:
    """An answer that nobody reads."""

    started = False

    async def begin(self, node: bytes, engine_class: str) -> None:
        """See Answer."""

    async def calls(self, calls: Sequence[CallDelta], tokens: Tokens) -> None:
        """See Answer."""

    async def texts(self, texts: Sequence[tuple[str, Tokens]]) -> None:
        """See Answer."""

    def forget(self) -> None:
        """Nothing is kept."""

    async def end(self, delivered: Delivered) -> None:
        """See Answer."""

    async def fail(self, error: InferpoolError) -> None:
        """See Answer."""
        raise error


class _OneNode(TextRun):
    """A chat that goes to no other node: the canary is for this one."""

    def _choose_again(self) -> list[Candidate]:
        return []


@dataclass(slots=True)
class Canaries:
    """Sends them from one gateway. `caller`: whose account is billed."""

    gateway: Gateway
    caller: Caller
    maximum_pico_usd: int
    _again_ms: dict[bytes, int] = field(default_factory=dict)
    _sent_ms: deque[int] = field(default_factory=deque)

    async def run(self) -> None:
        """Look for newcomers for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for node in self.due():
                await self.send(node)

    def due(self) -> list[KnownNode]:
        """Living nodes without a receipt that have had no canary for an hour."""
        now = self.gateway.clock.now_ms()
        while self._sent_ms and self._sent_ms[0] <= now - CANARY_EVERY_MS:
            self._sent_ms.popleft()
        room = CANARIES_PER_HOUR_MAX - len(self._sent_ms)
        if len(self._again_ms) > NODES_MAX:
            self._again_ms = {key: at for key, at in self._again_ms.items() if at > now}
        found = [
            node
            for node in self.gateway.directory.nodes.values()
            if node.alive(now)
            and not node.blocked(now)
            and self._again_ms.get(node.address, 0) <= now
            and self._without_receipt(node)
        ]
        return found[: max(0, room)]

    def _without_receipt(self, node: KnownNode) -> bool:
        channel = self.gateway.treasury.known(node.address)
        return channel is None or (channel.next_seq == 1 and not channel.booked_ahead)

    async def send(self, node: KnownNode) -> None:
        """One job for a node; a failure is the node's affair and is tried again in a minute."""
        now = self.gateway.clock.now_ms()
        self._again_ms[node.address] = now + FAILED_PAUSE_MS
        self._sent_ms.append(now)
        try:
            await self._job(node)
        except InferpoolError as error:
            _LOG.info("canary to 0x%s failed: %s", node.address.hex(), error.message)
            return
        self._again_ms[node.address] = now + CANARY_EVERY_MS
        _LOG.info("canary to 0x%s was paid", node.address.hex())

    async def _job(self, node: KnownNode) -> None:
        for service in node.offer.services:
            if service.task is Task.CHAT:
                body = {"model": service.model, "messages": _MESSAGES, "max_tokens": _TOKENS}
                await self._chat(node, ChatRequest.parse(orjson.dumps(body)))
                return
        for service in node.offer.services:
            if service.task is Task.TENSOR:
                await self._tensors(node, service.model)
                return
        raise Unavailable("It offers nothing that a canary can ask for.", code="no_node")

    def _candidate(self, node: KnownNode, job: Job) -> Candidate:
        for candidate in self.gateway.choose(job).candidates:
            if candidate.node is node and candidate.maximum_pico_usd <= self.maximum_pico_usd:
                return candidate
        raise Unavailable("It is dearer than a canary may be.", code="no_node")

    async def _chat(self, node: KnownNode, parsed: ChatRequest) -> None:
        route = Route([self._candidate(node, parsed.job)])
        async with self.gateway.hold(self._caller(), route) as hold:
            run = _OneNode(self.gateway, _Silent(), parsed, hold, self.gateway.seed(None))
            await run.run(hold.candidates)
            hold.complete = run.delivered.signed is not None

    async def _tensors(self, node: KnownNode, model: str) -> None:
        route = Route([self._candidate(node, Job(Task.TENSOR, model, rows=1))])
        metadata = await self._metadata(node, model)
        try:
            body = one_row(metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"Its metadata cannot be used: {error}", code="node_failed") from None
        errand = relay.tensors(
            InferRequest.parse(model, body, None), body, None, {}, NO_PREFERENCES
        )
        await relay.run(self.gateway, errand, self._caller(), route)

    def _caller(self) -> Caller:
        """Of one request."""
        return Caller(self.caller.account_id, self.caller.account)

    @staticmethod
    async def _metadata(node: KnownNode, model: str) -> Any:
        path = f"/v2/models/{model}"
        response = await node.transport.request("GET", path, (), timeout_s=_TIMEOUT_S)
        try:
            return orjson.loads(await response.read(_METADATA_MAX))
        except orjson.JSONDecodeError as error:
            raise Unavailable(f"Its metadata is not JSON: {error}", code="node_failed") from None
        finally:
            await response.close()


def one_row(metadata: Any) -> bytes:
    """A request body of one row of zeros, or of short texts, by a model's own metadata.

    Raises KeyError, TypeError or ValueError for metadata that is none.
    """
    inputs = []
    for item in metadata["inputs"]:
        shape = [1 if int(size) < 0 else int(size) for size in item["shape"]]
        count = 1
        for size in shape:
            count *= size
        if not 0 < count <= _VALUES_MAX:
            raise ValueError("a row of its input is too large")
        value: object = "hello" if item["datatype"] == "BYTES" else 0
        value = False if item["datatype"] == "BOOL" else value
        entry = {"name": item["name"], "datatype": item["datatype"], "shape": shape}
        inputs.append({**entry, "data": [value] * count})
    return orjson.dumps({"inputs": inputs})
