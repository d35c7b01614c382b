"""The TLS key of a node: learned with its first offer, believed only where the offer names it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.memory import MemoryChain
from inferpool.clock import LoopClock
from inferpool.gateway.directory import OFFER_PATH, Directory
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import Refused
from inferpool.protocol.offer import Endpoint, Offer, SignedOffer, Terms, binding_digest
from inferpool.transport.base import ConnectFailed, Headers
from inferpool.transport.http import LEARN
from inferpool.transport.memory import MemoryAnswer, MemoryTransport, Message
from inferpool.transport.tls import NO_TLS

EPOCH_MS = 1_800_000_000_000
URL = "https://node.test:8421"
HONEST, MIDDLE = sha256(b"the node's TLS key"), sha256(b"the key of who is in between")
OWNER, NODE, STRANGER = (Key(sha256(name)) for name in (b"owner", b"node", b"stranger"))


@dataclass
class Place:
    """What answers at URL: the key it shows, the offer it gives, and what it saw."""

    shown: bytes
    offer: SignedOffer | None = None
    seen: list[tuple[bytes | None, str]] = field(default_factory=list)
    closed: list[bytes | None] = field(default_factory=list)

    async def app(self, scope: Message, receive: object, send: object) -> None:
        assert callable(send)
        found = self.offer if scope["path"] == OFFER_PATH else None
        status, body = (200, found.encode()) if found else (404, b"")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def open(self, url: str, pin: bytes | None) -> Pipe:
        return Pipe(self, pin)


class Pipe:
    """A pipe as HttpTransport keeps it: a pin that does not match is a failed connection."""

    def __init__(self, place: Place, pin: bytes | None) -> None:
        self._place, self.pin = place, pin
        self._inner = MemoryTransport(place.app)

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> MemoryAnswer:
        assert self.pin is not None, "no pipe to a node asks the system's authorities"
        if self.pin not in (LEARN, self._place.shown):
            raise ConnectFailed("shows another key than its offer names")
        self._place.seen.append((self.pin, path))
        answer = await self._inner.request(method, path, headers, body, timeout_s=timeout_s)
        answer.peer_spki = self._place.shown
        return answer

    async def close(self) -> None:
        self._place.closed.append(self.pin)
        await self._inner.close()


def offer(spki: bytes, *, url: str = URL, key: Key = NODE, epoch: int = 1) -> SignedOffer:
    terms = Terms(
        31337, DEV_DOLLAR_ADDRESS, "Dev Dollar", "1", 6, OWNER.address, key.address, 1, 900
    )
    made = Offer(
        OWNER.address,
        key.address,
        epoch,
        1,
        EPOCH_MS + 300_000,
        (Endpoint(url, spki),),
        (),
        terms,
    )
    until_ms = EPOCH_MS + 10**9
    vouched = OWNER.sign(binding_digest(OWNER.address, key.address, until_ms, 31337))
    return SignedOffer(made, key.sign(made.digest()), vouched, until_ms)


@asynccontextmanager
async def directory(place: Place) -> AsyncIterator[Directory]:
    clock = LoopClock(EPOCH_MS)
    chain = MemoryChain(lambda: clock.now_ms() // 1000)
    made = Directory(chain, clock, place.open, (URL,), allow_private=True)
    try:
        yield made
    finally:
        await made.close()


async def test_the_first_offer_is_fetched_under_any_key_and_the_rest_under_its_pin() -> None:
    place = Place(HONEST, offer(HONEST))
    async with directory(place) as made:
        await made.refresh()
        (node,) = made.nodes.values()
        assert (node.url, node.ways) == (URL, (Endpoint(URL, HONEST),))
        asked = [path for pin, path in place.seen if pin == LEARN]
        assert set(asked) == {OFFER_PATH}, "no other question under a key that nobody named"
        assert (HONEST, "/inferpool/lease") in place.seen


async def test_an_offer_passed_on_by_someone_in_between_is_refused() -> None:
    place = Place(MIDDLE, offer(HONEST))
    async with directory(place) as made:
        await made.refresh()
        assert not made.nodes
        with pytest.raises(Refused, match="another TLS key"):
            await made.accept(place.offer or offer(HONEST), URL, MIDDLE)


async def test_an_offer_with_the_pin_exchanged_is_refused() -> None:
    good = offer(HONEST)
    endpoints = (Endpoint(URL, MIDDLE),)
    place = Place(MIDDLE, replace(good, offer=replace(good.offer, endpoints=endpoints)))
    async with directory(place) as made:
        await made.refresh()
        assert not made.nodes


async def test_who_is_in_between_can_only_be_a_stranger_of_its_own_name() -> None:
    """Its own offer, its own node key: nothing of the honest node's is its."""
    place = Place(HONEST, offer(HONEST))
    async with directory(place) as made:
        await made.refresh()
        node = made.nodes[NODE.address]
        place.shown, place.offer = MIDDLE, offer(MIDDLE, key=STRANGER)
        await made.refresh()
        assert set(made.nodes) == {NODE.address, STRANGER.address}
        assert node.ways == (Endpoint(URL, HONEST),)
        assert node.transport is made.nodes[NODE.address].transport
        with pytest.raises(ConnectFailed):
            await node.transport.request("POST", "/v1/chat/completions", (), timeout_s=1)
        assert HONEST not in place.closed, "another node's offer closes no pipe of this one"


async def test_tls_named_and_plain_shown_is_refused_and_so_is_the_reverse() -> None:
    for shown, named in ((NO_TLS, HONEST), (HONEST, NO_TLS)):
        place = Place(shown, offer(named))
        async with directory(place) as made:
            await made.refresh()
            assert not made.nodes


async def test_a_new_key_that_the_node_signed_replaces_the_pin() -> None:
    place = Place(HONEST, offer(HONEST))
    async with directory(place) as made:
        await made.refresh()
        (node,) = made.nodes.values()
        fresh = sha256(b"after a reinstallation")
        place.shown, place.offer = fresh, offer(fresh, epoch=2)
        await made.refresh()
        assert made.nodes[NODE.address] is node
        assert node.ways == (Endpoint(URL, fresh),)
        assert HONEST in place.closed
        place.shown, place.offer = HONEST, offer(HONEST, epoch=1)  # the old one, again
        await made.refresh()
        assert node.ways == (Endpoint(URL, fresh),)


async def test_a_pushed_offer_is_dialled_under_its_pin() -> None:
    place = Place(MIDDLE, None)
    async with directory(place) as made:
        node = await made.accept(offer(HONEST), URL)
        assert node.ways == (Endpoint(URL, HONEST),)
        assert not node.alive(EPOCH_MS)  # who answers there has another key: no lease
        assert {path for _, path in place.seen} <= {OFFER_PATH}
    await asyncio.sleep(0)


async def test_of_several_endpoints_those_with_a_pin_are_ways_and_a_renewed_offer_keeps_them() -> (
    None
):
    """One without a pin proved nothing: an offer could name what listens on our own machine."""
    second, unproven = Endpoint("https://second.test:8421", HONEST), Endpoint("http://127.0.0.1:9")
    good = offer(HONEST)
    endpoints = (Endpoint(URL, HONEST), unproven, second)

    def named(sequence: int) -> SignedOffer:
        made = replace(good.offer, endpoints=endpoints, sequence=sequence)
        return replace(good, offer=made, signature=NODE.sign(made.digest()))

    place = Place(HONEST, named(1))
    async with directory(place) as made:
        await made.refresh()
        (node,) = made.nodes.values()
        assert node.ways == (Endpoint(URL, HONEST), second)
        pipe = node.transport
        place.offer = named(2)
        await made._look(second.url)  # the same node, found by its other way
        assert (node.offer.sequence, node.url) == (2, second.url)
        assert node.transport is pipe, "what runs on it goes on"
        assert place.closed == []
