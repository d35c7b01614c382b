"""Which nodes there are: the registry's events, URLs given by hand, and what nodes push.

Every offer is checked the same way: signed by its node key, and the key bound to its owner by the
registry or by the owner's own signature. Leases keep a node in; silence takes it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from inferpool.chain.base import Chain
from inferpool.clock import Clock
from inferpool.gateway.feedback import Unmet
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.offer_index import OfferIndex
from inferpool.identity.signing import verify
from inferpool.protocol.errors import InferpoolError, Refused, Unavailable
from inferpool.protocol.lease import LEASE_MAX, Lease
from inferpool.protocol.limits import (
    CLOCK_SKEW_MS,
    DISCOVERY_AT_ONCE,
    LEASE_EVERY_MS,
    LEASE_RETRY_S,
    LEASE_VALID_MS,
    OFFER_FETCH_TIMEOUT_S,
    OFFER_MAX,
    OFFER_VALID_MS,
)
from inferpool.protocol.offer import Endpoint, Offer, SignedOffer, binding_digest
from inferpool.transport.base import Transport, TransportError
from inferpool.transport.http import LEARN
from inferpool.transport.reach import public_addresses
from inferpool.transport.tls import NO_TLS
from inferpool.transport.ways import Ways

_LOG = logging.getLogger("inferpool.directory")
OFFER_PATH: Final = "/.well-known/inferpool/offer"
REFRESH_EVERY_S: Final = 30.0
REGISTRY_EVERY_S: Final = 2.0
NODES_MAX: Final = 100_000

OpenTransport = Callable[[str, bytes | None], Transport]


@dataclass(slots=True)
class Directory:
    """The nodes that this gateway may use. `urls` are asked beside the registry, and may be
    private: the operator names them."""

    chain: Chain
    clock: Clock
    open_transport: OpenTransport
    urls: tuple[str, ...] = ()
    allow_private: bool = False
    refresh_every_s: float = REFRESH_EVERY_S
    on_found: Callable[[KnownNode], None] = lambda node: None
    nodes: dict[bytes, KnownNode] = field(default_factory=dict)
    index: OfferIndex = field(default_factory=OfferIndex)
    unmet: Unmet = field(default_factory=Unmet)
    _bound: dict[bytes, bytes] = field(default_factory=dict)  # node key -> owner, by the registry
    _leases: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)
    _pipes: dict[str, Transport] = field(default_factory=dict)
    _looks: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)  # one a node at most
    _task: asyncio.Task[None] | None = None
    _endpoints: set[str] = field(default_factory=set)  # as the registry had them last
    _lost: bool = False  # a node did not answer at the last look

    async def start(self) -> None:
        """Look once, then keep looking."""
        self._lost = not await self.refresh()
        self._task = asyncio.create_task(self._run(), name="directory")

    async def close(self) -> None:
        """Stop looking and close every pipe."""
        tasks = [*self._looks.values(), *self._leases.values()]
        tasks += [self._task] if self._task else []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for pipe in (*self._pipes.values(), *(node.transport for node in self.nodes.values())):
            await pipe.close()

    async def _run(self) -> None:
        """Follow the registry's events every two seconds, which is cheap; look at every node each
        half minute, and after one was lost sooner, with growing pauses."""
        loop = asyncio.get_running_loop()
        looked_s, pause_s = loop.time(), REGISTRY_EVERY_S
        while True:
            await asyncio.sleep(REGISTRY_EVERY_S)
            since_s = loop.time() - looked_s
            if since_s < (pause_s if self._lost else self.refresh_every_s):
                known = self._endpoints
                await self._look_at(await self._registered() - known)
                continue
            self._lost = not await self.refresh()
            looked_s = loop.time()
            pause_s = min(self.refresh_every_s, 2 * pause_s) if self._lost else REGISTRY_EVERY_S

    async def _registered(self) -> set[str]:
        """Every endpoint of the registry and of the configuration; the last known where the chain
        is away."""
        try:
            registrations = await self.chain.registrations()
        except Unavailable as error:
            _LOG.warning("the registry cannot be read now: %s", error.message)
            return self._endpoints
        self._bound = {item.node: item.owner for item in registrations}
        self._endpoints = set(self.urls) | {item.endpoint for item in registrations}
        return self._endpoints

    async def refresh(self) -> bool:
        """Read the registry and every node's offer, 64 at a time; False where one was missing."""
        found = await self._look_at(await self._registered())
        await self._sweep()
        return found

    async def _look_at(self, endpoints: set[str]) -> bool:
        gate = asyncio.Semaphore(DISCOVERY_AT_ONCE)

        async def look(url: str) -> bytes:
            async with gate:
                return await self._look(url)

        seen = await asyncio.gather(*(look(url) for url in sorted(endpoints)))
        await self._sweep()
        return all(seen)

    async def _look(self, url: str) -> bytes:
        """The address of the node whose offer was found there, b"" where there was none."""
        try:
            await self._check_reachable(url)
            signed, presented_spki = await self._fetch(url)
            return (await self.accept(signed, url, presented_spki)).address
        except InferpoolError as error:
            _LOG.info("%s: no offer: %s", url, error.message)
        except ValueError as error:  # anyone may register what is no URL
            _LOG.info("%r is no endpoint: %s", url, error)
        return b""

    async def _fetch(self, url: str) -> tuple[SignedOffer, bytes]:
        """The offer at a URL, and the TLS key that showed it (see `LEARN`).

        The key cannot be known before the first offer, so this one question takes any. Whoever
        sits between us and the node may then pass the node's offer on, which names the node's
        key and not the one that we saw: refused. Or give an offer of its own making: that is
        signed by its own node key, so it is one more stranger, as anybody may become by
        registering; the honest node's name, trust and channel stay with the honest key. Nothing
        of ours is sent with the question, and everything later goes to the pinned key alone.
        A node that changed its TLS key is found again the same way.
        """
        pipe = self._pipe(url)
        response = await pipe.request("GET", OFFER_PATH, (), timeout_s=OFFER_FETCH_TIMEOUT_S)
        try:
            if response.status != 200:
                raise Refused(f"status {response.status}", code="bad_encoding")
            async with asyncio.timeout(OFFER_FETCH_TIMEOUT_S):
                signed = SignedOffer.decode(await response.read(OFFER_MAX))
                return signed, response.peer_spki
        except TimeoutError:
            raise Unavailable("the offer came too slowly", code="timeout") from None
        finally:
            await response.close()

    def _pipe(self, url: str) -> Transport:
        """The pipe for asking who is there."""
        if url not in self._pipes:
            self._pipes[url] = self.open_transport(url, LEARN)
        return self._pipes[url]

    def _transport(self, offer: Offer, proven: Endpoint) -> tuple[Transport, tuple[Endpoint, ...]]:
        """The pipe for a node's work, and the endpoints that it leads by.

        These are the one under which the offer was found, which is taken first, and every other
        one with a pin: that proves itself before anything is sent. A pinned pipe is that node's
        own: no offer of another node that names the same URL can have it closed or repinned.
        """
        ways: dict[Endpoint, Transport] = {}
        pinned = (endpoint for endpoint in offer.endpoints if endpoint.tls_spki != NO_TLS)
        for endpoint in dict.fromkeys((proven, *pinned)):
            try:
                if endpoint.tls_spki == NO_TLS:
                    ways[endpoint] = self._pipe(endpoint.url)
                else:
                    ways[endpoint] = self.open_transport(endpoint.url, endpoint.tls_spki)
            except Refused:
                if endpoint == proven:
                    raise
        if len(ways) == 1:
            return ways[proven], (proven,)
        owned = [pipe for endpoint, pipe in ways.items() if endpoint.tls_spki != NO_TLS]
        return Ways(list(ways.values()), owned=owned), tuple(ways)

    async def _check_reachable(self, url: str) -> None:
        """Refuse addresses inside our own network, which a stranger could make us call.

        The reason in time, for whoever pushes; that none is dialled is the pipe's own rule.
        """
        if self.allow_private or url in self.urls:
            return
        await public_addresses(urlsplit(url).hostname or "")

    async def accept(
        self, signed: SignedOffer, url: str, presented_spki: bytes | None = None
    ) -> KnownNode:
        """Check an offer and use it from now on. Raises Refused.

        `presented_spki`: the TLS key under which it was fetched from `url` (zeros: plain HTTP);
        None where it came another way, and the pin is tried first when the node is dialled.
        """
        offer = signed.offer
        endpoint = self._check(signed, url, presented_spki)
        offer_hash = offer.digest()
        known = self.nodes.get(offer.node)
        if known is None:
            if len(self.nodes) >= NODES_MAX:
                raise Refused("the directory is full", code="bad_encoding")
            pipe, ways = self._transport(offer, endpoint)
            known = KnownNode(offer, offer_hash, url, pipe, ways=ways)
            self.nodes[offer.node] = known
            self.index.put(known)
            self.on_found(known)
        elif (offer.epoch, offer.sequence) >= (known.offer.epoch, known.offer.sequence):
            moved = offer.endpoints != known.offer.endpoints or endpoint not in known.ways
            known.offer, known.offer_hash, known.url = offer, offer_hash, url
            self.index.put(known)
            if moved:
                await self._move(known, endpoint)
        lease = self._leases.get(offer.node)
        if lease is None or lease.done():
            await self._start_lease(known)
        return known

    async def _move(self, node: KnownNode, endpoint: Endpoint) -> None:
        """The node has other addresses or another TLS key. Its process was started anew for that,
        so nothing that still runs on the old pipe can end well."""
        old, owned = node.transport, node.pipe_is_own
        node.transport, node.ways = self._transport(node.offer, endpoint)
        if owned:
            await old.close()

    async def push(self, signed: SignedOffer) -> KnownNode:
        """Take an offer that its node brought, under its first endpoint that may be dialled.

        Raises Refused.
        """
        last = Refused("the offer names no endpoint", code="bad_encoding")
        for endpoint in signed.offer.endpoints:
            try:
                await self._check_reachable(endpoint.url)
            except Refused as error:
                last = error
            else:
                return await self.accept(signed, endpoint.url)
        raise last

    async def look(self, node: KnownNode) -> bool:
        """Fetch one node's offer again now, where it was last found or else by its other ways."""
        urls = [node.url, *(endpoint.url for endpoint in node.offer.endpoints)]
        for url in dict.fromkeys(urls):
            if await self._look(url) == node.address:
                return True
        return False

    def _check(self, signed: SignedOffer, url: str, presented_spki: bytes | None) -> Endpoint:
        """The endpoint of that URL in an offer that holds. Raises Refused."""
        offer, now = signed.offer, self.clock.now_ms()
        if offer.valid_until_ms <= now:
            raise Refused("the offer has ended", code="expired")
        if offer.valid_until_ms > now + OFFER_VALID_MS + CLOCK_SKEW_MS:
            raise Refused("the offer is valid for longer than ten minutes", code="expired")
        named = [endpoint for endpoint in offer.endpoints if endpoint.url == url]
        if not named:
            raise Refused(f"the offer does not name {url} as its endpoint")
        if presented_spki is not None:
            named = [endpoint for endpoint in named if endpoint.tls_spki == presented_spki]
        if not named:
            raise Refused(f"{url} showed another TLS key than its offer names")
        verify(offer.digest(), signed.signature, offer.node)
        more = signed.parameters_digest()
        if more is not None:
            verify(more, signed.parameters_signature, offer.node)
        self._check_binding(signed)
        return named[0]

    def _check_binding(self, signed: SignedOffer) -> None:
        offer, until_ms = signed.offer, signed.owner_valid_until_ms
        bound = self._bound.get(offer.node)
        if bound is not None:
            if bound != offer.owner:
                raise Refused("the registry binds this node key to another owner")
            return
        if until_ms <= self.clock.now_ms():
            raise Refused("the owner's word for this node key has ended", code="expired")
        digest = binding_digest(offer.owner, offer.node, until_ms, offer.terms.chain_id)
        verify(digest, signed.owner_signature, offer.owner)

    async def _start_lease(self, node: KnownNode) -> None:
        """Keep a node's lease; returns when the first one came, or none did in time."""
        first = asyncio.Event()
        task = asyncio.create_task(self._keep(node, first), name="lease")
        self._leases[node.address] = task
        waiter = asyncio.create_task(first.wait())
        await asyncio.wait(
            [task, waiter], timeout=OFFER_FETCH_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        waiter.cancel()

    async def _keep(self, node: KnownNode, first: asyncio.Event) -> None:
        """Follow leases; after a cut the node is out, and looked for with growing pauses."""
        pause_s = LEASE_RETRY_S
        while True:
            begun_ms = self.clock.now_ms()
            await self._follow_ways(node, first)
            node.lease_ms = 0
            if self.clock.now_ms() - begun_ms > LEASE_EVERY_MS:
                pause_s = LEASE_RETRY_S
            await asyncio.sleep(pause_s)
            pause_s = min(self.refresh_every_s, 2 * pause_s)
            await self.look(node)

    async def _follow_ways(self, node: KnownNode, first: asyncio.Event) -> None:
        """Follow leases until the node ends them, or none of its ways brings one any more.

        Where a relay is lost the node stays in meanwhile: it goes on serving by the others.
        """
        without, ways = 0, max(1, len(node.ways))
        while without < ways:
            begun_ms = self.clock.now_ms()
            came = await self._follow(node, first)
            if came is None:
                return
            without = 1 if came else without + 1
            brief = self.clock.now_ms() - begun_ms < LEASE_EVERY_MS
            if came and brief and without < ways:  # else each cut after a line is asked at once
                await asyncio.sleep(LEASE_RETRY_S)

    async def _follow(self, node: KnownNode, first: asyncio.Event) -> bool | None:
        """One stream of leases: whether any came before it broke; None: the node ended it."""
        several, came = len(node.ways) > 1, False
        # By another way a lease can still come in time: two that are missing are enough to look.
        limit_s = (2 * LEASE_EVERY_MS if several else LEASE_EVERY_MS + LEASE_VALID_MS) / 1000
        try:
            response = await node.transport.request(
                "GET", "/inferpool/lease", (), timeout_s=OFFER_FETCH_TIMEOUT_S
            )
            try:
                line, chunks = b"", aiter(response.chunks())
                while True:
                    async with asyncio.timeout(limit_s):
                        line += await anext(chunks)
                    *whole, line = line.split(b"\n")
                    if len(line) > LEASE_MAX:
                        raise Refused("a lease is too long", code="bad_encoding")
                    for data in whole:
                        self._renew(node, Lease.decode(data))
                        first.set()
                        came = True
            finally:
                await response.close()
        except StopAsyncIteration:
            return None
        except (TransportError, Refused, TimeoutError) as error:
            _LOG.info("lease of 0x%s ended: %r", node.address.hex(), error)
        return came

    def _renew(self, node: KnownNode, lease: Lease) -> None:
        old = node.lease
        node.renew(lease, self.clock.now_ms())
        if old is None or (old.first_unit_ms, old.unit_us) != (lease.first_unit_ms, lease.unit_us):
            self.index.touch(node.address)
        now = (lease.epoch, lease.sequence)
        if now > (node.offer.epoch, node.offer.sequence) and node.address not in self._looks:
            # It sells something else since: other models, another price, nothing at all.
            task = asyncio.create_task(self._look_anew(node), name="look")
            self._looks[node.address] = task
            task.add_done_callback(lambda _: self._looks.pop(node.address, None))

    async def _look_anew(self, node: KnownNode) -> None:
        """Look once; where its leases still tell of a later offer, no look follows at once: a node
        that says so in every line would have us ask all endpoints that it names without end."""
        await self.look(node)
        lease, offer = node.lease, node.offer
        if lease and (lease.epoch, lease.sequence) > (offer.epoch, offer.sequence):
            await asyncio.sleep(LEASE_RETRY_S)

    async def _sweep(self) -> None:
        now = self.clock.now_ms()
        for address, node in list(self.nodes.items()):
            if node.offer.valid_until_ms + OFFER_VALID_MS < now and not node.in_flight:
                del self.nodes[address]
                self.index.drop(address)
                task = self._leases.pop(address, None)
                if task is not None:
                    task.cancel()
                if node.pipe_is_own:
                    await node.transport.close()
