"""`POST /inferpool/offers`: nodes that this gateway was not told of bring their offer themselves.

Anyone may push; an offer is checked as one that was fetched, and its endpoint must answer before
it gets work. An address may push ten at once and then one every two seconds.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field

from inferpool.clock import Clock
from inferpool.gateway.directory import Directory
from inferpool.gateway.feedback import word
from inferpool.gateway.neighbours import Neighbours
from inferpool.protocol.errors import RateLimited
from inferpool.protocol.limits import OFFER_MAX, PUSH_EVERY_MS, PUSHERS_MAX, PUSHES_AT_ONCE
from inferpool.protocol.offer import SignedOffer
from inferpool.transport.asgi import HttpRequest


@dataclass(slots=True)
class PushLimit:
    """A bucket an address, or a /64 of IPv6, which is one line's; the one that was quiet the
    longest is forgotten first."""

    every_ms: int = PUSH_EVERY_MS
    at_once: int = PUSHES_AT_ONCE
    _until_ms: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def take(self, address: str, now_ms: int) -> None:
        """Count one push. Raises RateLimited with the time to wait."""
        address = _line(address)
        until_ms = max(now_ms, self._until_ms.get(address, 0))
        if until_ms + self.every_ms - now_ms > self.at_once * self.every_ms:
            raise RateLimited(
                "Too many of these from this address.",
                code="rate_limited",
                retry_after_s=max(1, self.every_ms // 1000),
            )
        self._until_ms[address] = until_ms + self.every_ms
        self._until_ms.move_to_end(address)
        if len(self._until_ms) > PUSHERS_MAX:
            self._until_ms.popitem(last=False)


def _line(address: str) -> str:
    """What one customer of a provider has: an IPv4 address, or the first half of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # behind a relay, or in this process
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))


@dataclass(slots=True)
class PushedOffers:
    """Serves the route."""

    directory: Directory
    clock: Clock
    neighbours: Neighbours | None = None  # other processes of this gateway: told of each offer
    _telling: set[asyncio.Task[None]] = field(default_factory=set)
    limit: PushLimit = field(default_factory=PushLimit)

    async def serve(self, request: HttpRequest) -> None:
        """Take an offer. Raises RateLimited, BadRequest(body_too_large), Refused."""
        told = self.neighbours is not None and self.neighbours.asks(request) is not None
        if not told:
            self.limit.take(request.client_host, self.clock.now_ms())
        body = await request.body(OFFER_MAX)
        node = await self.directory.push(SignedOffer.decode(body))
        if self.neighbours is not None and not told:
            telling = asyncio.create_task(self.neighbours.tell(request.path, body), name="tell")
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        now = self.clock.now_ms()
        await request.answer_json(
            {
                "valid_until_ms": node.offer.valid_until_ms,
                **word(node, now),
                "unmet": self.directory.unmet.names(now),
            }
        )
