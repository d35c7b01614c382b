"""The node's offer on its way to gateways that it was told of, again whenever it renews.

A gateway's answer is its own word on this node: how often it was asked for, how often chosen, and
what it lost to. That is kept for the owner, as `node status` shows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from inferpool.node.node import Node
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.transport.base import Transport

_LOG = logging.getLogger("inferpool.push")
OFFERS_PATH: Final = "/inferpool/offers"
AGAIN_S: Final = 30.0  # a gateway that restarted knows us no more; a new offer goes at once
RETRY_S: Final = 2.0
COLD_S: Final = 5.0  # while a model is out of memory: somebody may be asking for it
_TIMEOUT_S: Final = 10.0
_ANSWER_MAX: Final = 64 * 1024
# What is read of a gateway's word, as `gateway.feedback` tells it; the owner's programs rely on it.
_WORD: Final[dict[str, type | tuple[type, ...]]] = {
    "alive": bool, "asked": int, "chosen": int, "lost": dict, "failed": dict, "blocked_ms": int,
    "held_back": str, "failing": (int, float), "unmet": list,
}  # fmt: skip


@dataclass(slots=True)
class Told:
    """What one gateway last said."""

    accepted: bool = False
    error: str = "not reached yet"
    at_ms: int = 0
    word: dict[str, object] = field(default_factory=dict)

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {**self.word, "accepted": self.accepted, "error": self.error, "at_ms": self.at_ms}


class Pusher:
    """Pushes to every gateway, each in its own rhythm."""

    def __init__(
        self, node: Node, gateways: Sequence[str], open_transport: Callable[[str], Transport]
    ) -> None:
        self._node, self._open = node, open_transport
        self.told: dict[str, Told] = {url.rstrip("/"): Told() for url in gateways}

    async def run(self) -> None:
        """Push for ever."""
        async with asyncio.TaskGroup() as group:
            for url in self.told:
                group.create_task(self._keep(url), name="push")

    async def _keep(self, url: str) -> None:
        pipe = self._open(url)
        try:
            while True:
                changed = asyncio.ensure_future(self._node.changed.wait())
                try:
                    await self.push(url, pipe)
                    pause_s = self._pause_s(self.told[url].accepted)
                    await asyncio.wait([changed], timeout=pause_s)
                finally:
                    changed.cancel()
        finally:
            await pipe.close()

    def _pause_s(self, accepted: bool) -> float:
        if not accepted:
            return RETRY_S
        return COLD_S if any(item.cold for item in self._node.services.hosted) else AGAIN_S

    async def push(self, url: str, pipe: Transport) -> None:
        """Push once; what came of it is in `told`."""
        told = self.told[url]
        told.at_ms = self._node.clock.now_ms()
        try:
            told.word = await self._send(pipe)
            told.accepted, told.error = True, ""
            self._node.services.wish(told.word.get("unmet"), told.at_ms)
        except InferpoolError as error:
            told.accepted, told.error = False, error.message
            _LOG.info("%s did not take the offer: %s", url, error.message)

    async def _send(self, pipe: Transport) -> dict[str, object]:
        body = self._node.offers.current().encode()
        kind = [(b"content-type", b"application/json")]
        response = await pipe.request("POST", OFFERS_PATH, kind, body, timeout_s=_TIMEOUT_S)
        try:
            answer = await response.read(_ANSWER_MAX)
        finally:
            await response.close()
        try:
            value = orjson.loads(answer)
            if response.status == 200:
                return _read_word(value)
            reason = str(value["error"]["message"])
        except (ValueError, KeyError, TypeError):
            reason = "its answer cannot be read"
        raise Refused(f"status {response.status}: {reason}", code="bad_encoding")


def _read_word(value: dict[str, object]) -> dict[str, object]:
    """Its known members, each of its kind. Raises TypeError."""
    if not isinstance(value, dict):
        raise TypeError
    for name, kind in _WORD.items():
        if name in value and not isinstance(value[name], kind):
            raise TypeError(name)
    return {name: value[name] for name in _WORD if name in value}
