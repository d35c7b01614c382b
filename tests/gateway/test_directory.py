"""Who is in: offers that hold, from endpoints that may be anything; leases that go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from inferpool.gateway.directory import Directory
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import sha256, to_hex
from inferpool.protocol.limits import OFFER_SERVICES_MAX, OFFER_VALID_MS
from inferpool.protocol.offer import Endpoint, Offer, SignedOffer, binding_digest
from inferpool.transport.base import ConnectFailed
from tests.gateway.parts import (
    EPOCH_MS,
    OFFER,
    Fake,
    Pool,
    node_key,
    offer_of,
    owner_key,
    pool,
    signed_offer,
    url_of,
)

STRANGER = Key(sha256(b"stranger"))


def signed(offer: Offer, key: Key | None = None, **more: Any) -> SignedOffer:
    return signed_offer(offer, key or node_key(0), **more)


async def shown(made: Pool, data: bytes) -> int:
    """Show these bytes as the first node's offer; how many nodes the gateway then knows."""
    made.pipe(url_of(0))
    made.liar.on_offer = lambda _: data
    await made.gateway.start()
    found = len(made.known)
    await made.gateway.gateway.close()
    return found


async def shown_offer(made: Pool, key: Key | None = None, **changes: Any) -> int:
    offer = replace(offer_of(made.nodes[0]).offer, **changes)
    return await shown(made, signed(offer, key).encode())


async def test_an_honest_offer_is_taken() -> None:
    async with pool(start=False) as made:
        assert await shown_offer(made) == 1


async def test_an_offer_of_another_key_is_refused() -> None:
    async with pool(start=False) as made:
        assert await shown_offer(made, STRANGER) == 0
        assert await shown_offer(made, node=STRANGER.address) == 0


@pytest.mark.parametrize(
    ("valid_ms", "known"),
    [(-1, 0), (0, 0), (1000, 1), (OFFER_VALID_MS + 30_000, 1), (OFFER_VALID_MS + 40_000, 0),
     (2**62, 0)],
)  # fmt: skip
async def test_an_offer_that_ended_or_holds_too_long(valid_ms: int, known: int) -> None:
    async with pool(start=False) as made:
        assert await shown_offer(made, valid_until_ms=EPOCH_MS + valid_ms) == known


@pytest.mark.parametrize(
    "endpoints",
    [(), (Endpoint("http://other.test"),), (Endpoint(url_of(0) + "/"),)],
    ids=["none", "another", "with a slash"],
)
async def test_an_offer_that_does_not_name_where_it_was_found(endpoints: Any) -> None:
    """Else a stranger could show another node's offer and take its traffic."""
    async with pool(start=False) as made:
        assert await shown_offer(made, endpoints=endpoints) == 0


async def test_one_of_several_endpoints_is_enough() -> None:
    async with pool(start=False) as made:
        endpoints = (Endpoint("http://other.test"), Endpoint(url_of(0)))
        assert await shown_offer(made, endpoints=endpoints) == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"version":1}', b"\xff", b"x" * 70_000, b"[" * 5000],
    ids=len,
)
async def test_an_offer_that_is_none(data: bytes) -> None:
    async with pool(start=False) as made:
        assert await shown(made, data) == 0


async def test_a_huge_offer_is_not_read_to_its_end() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            count[0] += 1
            yield b"x" * 65_536

    count = [0]
    async with pool(start=False) as made:
        made.pipe(url_of(0))
        made.liar.instead = lambda method, path: Fake(endless()) if path == OFFER else None
        await made.gateway.start()
        assert made.known == []
        await made.gateway.gateway.close()
        assert count[0] < 10


@pytest.mark.parametrize("pause_s", [0.5, 10_000.0])
async def test_a_slow_offer_does_not_hold_the_gateway_up(pause_s: float) -> None:
    async def drops() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(pause_s)
            yield b" "

    async with pool(2, start=False) as made:
        made.pipe(url_of(0))
        made.liar.instead = lambda method, path: Fake(drops()) if path == OFFER else None
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await made.gateway.start()
        assert loop.time() - begun < 10
        assert [known.url for known in made.known] == [url_of(1)]
        assert (await made.chat()).status == 200
        await made.gateway.machine.cut()
        await made.gateway.gateway.close()


async def test_many_services_up_to_the_limit() -> None:
    async with pool(start=False) as made:
        offer = offer_of(made.nodes[0]).offer
        base = offer.services[0]
        many = [
            replace(base, manifest=sha256(b"%d" % n), model=f"m{n}")
            for n in range(OFFER_SERVICES_MAX + 1)
        ]
        assert await shown_offer(made, services=tuple(many[:-1])) in (0, 1)
        assert await shown_offer(made, services=tuple(many)) == 0
        few = tuple(many[:60])
        assert await shown_offer(made, services=few) == 1


async def test_a_redirect_is_not_followed() -> None:
    async with pool(start=False) as made:
        made.pipe(url_of(0))
        made.liar.instead = lambda method, path: (
            Fake([], status=302, headers=[(b"location", b"http://10.0.0.1/")])
            if path == OFFER
            else None
        )
        await made.gateway.start()
        assert made.known == []
        assert set(made.liar.asked) == {OFFER}
        await made.gateway.gateway.close()


# -- bindings -------------------------------------------------------------------------------------


def bound(made: Pool, until_ms: int, owner: Key, **changes: Any) -> bytes:
    offer = replace(offer_of(made.nodes[0]).offer, owner=owner.address, **changes)
    word = owner.sign(binding_digest(owner.address, offer.node, until_ms, offer.terms.chain_id))
    return signed(offer, owner_signature=word, owner_valid_until_ms=until_ms).encode()


async def by_hand(made: Pool, data: bytes) -> int:
    """A node that is in no registry: its URL was given by hand."""
    made.pipe(url_of(0))
    made.liar.on_offer = lambda _: data
    gateway = made.gateway
    await gateway.start()
    gateway.gateway.directory.urls = (url_of(0),)
    await gateway.gateway.directory.refresh()
    found = len(made.known)
    await gateway.gateway.close()
    return found


@pytest.mark.parametrize(
    ("kind", "known"),
    [("good", 1), ("missing", 0), ("expired", 0), ("another owner's", 0), ("another node's", 0)],
)
async def test_an_unregistered_node_needs_its_owners_word(kind: str, known: int) -> None:
    async with pool(register=False, start=False) as made:
        owner, later = owner_key(0), EPOCH_MS + 86_400_000
        offer = offer_of(made.nodes[0]).offer
        data = {
            "good": lambda: bound(made, later, owner),
            "missing": lambda: signed(offer).encode(),
            "expired": lambda: bound(made, EPOCH_MS - 1, owner),
            "another owner's": lambda: signed(
                offer,
                owner_signature=STRANGER.sign(
                    binding_digest(offer.owner, offer.node, later, offer.terms.chain_id)
                ),
                owner_valid_until_ms=later,
            ).encode(),
            "another node's": lambda: signed(
                offer,
                owner_signature=owner.sign(
                    binding_digest(offer.owner, STRANGER.address, later, offer.terms.chain_id)
                ),
                owner_valid_until_ms=later,
            ).encode(),
        }[kind]()
        assert await by_hand(made, data) == known


async def test_the_registry_binds_a_key_to_one_owner_only() -> None:
    """A stranger's word for a node key that the registry binds to another owner counts nothing."""
    async with pool(start=False) as made:
        assert await shown(made, bound(made, EPOCH_MS + 86_400_000, STRANGER)) == 0
        assert await shown(made, bound(made, EPOCH_MS - 1, owner_key(0))) == 1


async def test_a_node_on_another_chain_gets_no_work() -> None:
    async with pool(2, start=False) as made:
        offer = offer_of(made.nodes[0]).offer
        foreign = replace(offer, terms=replace(offer.terms, chain_id=1))
        made.pipe(url_of(0))
        made.liar.on_offer = lambda _: signed(foreign).encode()
        await made.gateway.start()
        for _ in range(5):
            assert (await made.chat()).status == 200
        assert made.nodes[0].node.ledger.channels == {}
        await made.gateway.machine.cut()
        await made.gateway.gateway.close()


# -- endpoints of strangers -----------------------------------------------------------------------

WEIRD = [
    "x",
    "http://",
    "http://[::1",
    "http://a..b/",
    "http://" + "a" * 70,
    "http://host:99999",
    "http://host:x",
    "ftp://host",
    "file:///etc/passwd",
    "http://user:secret@host",
    "http://\u00e9\u00e9",
    "http://host\\x",
    "javascript:alert(1)",
]


def strict_open(made: Pool) -> Any:
    """Opens pipes as a real gateway does, where the URL is not one of the test's nodes."""
    from inferpool.transport.http import open_transport

    def open_(url: str, spki: bytes | None) -> Any:
        if any(node.url == url for node in made.nodes):
            return made.pipe(url, spki)
        open_transport(url, spki)  # raises for what is no URL
        raise ConnectFailed("nobody there")

    return open_


@pytest.mark.parametrize("endpoint", WEIRD, ids=repr)
@pytest.mark.parametrize("allow_private", [True, False], ids=["private", "public"])
async def test_a_registered_endpoint_that_is_no_url_harms_nobody(
    endpoint: str, allow_private: bool
) -> None:
    """Anyone can register anything; the gateway starts, and keeps looking."""
    async with pool(start=False) as made:
        await made.chain.with_sender(STRANGER).register(Key(sha256(b"weird")), endpoint)
        directory = Directory(
            made.chain,
            made.nodes[0].clock,
            strict_open(made),
            allow_private=allow_private,
            refresh_every_s=30.0,
        )
        if not allow_private:
            loop = asyncio.get_running_loop()

            async def lookup(host: str, *_: Any, **__: Any) -> Any:
                host.encode("idna")  # as the resolver does
                if not host.startswith("node-"):
                    raise OSError("unknown host")
                return [(0, 0, 0, "", ("203.0.114.1", 0))]

            loop.getaddrinfo = lookup  # type: ignore[method-assign]
        await directory.start()
        assert [node.url for node in directory.nodes.values()] == [url_of(0)]
        await asyncio.sleep(100)
        assert directory._task is not None
        assert not directory._task.done(), "it goes on looking"
        await directory.close()


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("0.0.0.0", False),
        ("8.8.8.8", True),
    ],
)
async def test_a_public_gateway_does_not_call_into_its_own_network(
    address: str, reached: bool
) -> None:
    async with pool(start=False) as made:
        loop = asyncio.get_running_loop()

        async def lookup(host: str, *_: Any, **__: Any) -> Any:
            return [(0, 0, 0, "", ("8.8.8.8", 0)), (0, 0, 0, "", (address, 0))]

        loop.getaddrinfo = lookup  # type: ignore[method-assign]
        directory = Directory(made.chain, made.nodes[0].clock, made.pipe, allow_private=False)
        await directory.start()
        assert bool(directory.nodes) is reached
        assert bool(made.liars.get(url_of(0)) and made.liar.asked) is reached
        await directory.close()


async def test_what_the_operator_names_may_be_private() -> None:
    """A stranger who registers the same address is not let in by it."""
    async with pool(start=False) as made:
        loop = asyncio.get_running_loop()

        async def lookup(host: str, *_: Any, **__: Any) -> Any:
            return [(0, 0, 0, "", ("127.0.0.1", 0))]

        loop.getaddrinfo = lookup  # type: ignore[method-assign]
        directory = Directory(made.chain, made.nodes[0].clock, made.pipe, (url_of(0),))
        await directory.start()
        assert [node.url for node in directory.nodes.values()] == [url_of(0)]
        await directory.close()


# -- leases ---------------------------------------------------------------------------------------


async def test_a_node_whose_leases_stop_is_out_within_thirty_seconds() -> None:
    """Its pipe stays open and silent, as behind a router that died."""
    async with pool(2) as made:
        lease = json.dumps(json.loads(made.nodes[0].node.lease().encode())).encode() + b"\n"
        # From now on the first node's leases hang after one line.
        made.liar.instead = lambda method, path: (
            Fake([lease], hang=True) if path == "/inferpool/lease" else None
        )
        directory = made.gateway.gateway.directory
        node = next(known for known in made.known if known.url == url_of(0))
        await made.nodes[0].machine.cut()
        made.nodes[0].machine.up = True
        await asyncio.sleep(2)
        assert node.alive(directory.clock.now_ms()), "it came back with one more lease"
        await asyncio.sleep(30)
        assert not node.alive(directory.clock.now_ms())
        for _ in range(5):
            answer = await made.chat()
            assert answer.proof["node"] == to_hex(node_key(1).address)


async def test_a_cut_pipe_takes_a_node_out_at_once_and_it_returns_after_its_restart() -> None:
    async with pool(2) as made:
        await made.nodes[0].crash()
        await asyncio.sleep(0.01)
        now = made.gateway.gateway.clock.now_ms
        node = next(known for known in made.known if known.url == url_of(0))
        assert not node.alive(now())
        assert (await made.send("GET", "/v1/models")).json["data"][0]["inferpool"]["nodes"] == 1
        await asyncio.sleep(20)
        await made.nodes[0].start()
        await asyncio.sleep(31)
        assert node.alive(now())
        assert node.offer.epoch == made.nodes[0].starts == 2
        assert (await made.send("GET", "/v1/models")).json["data"][0]["inferpool"]["nodes"] == 2


async def test_a_node_that_is_there_later_than_the_gateway_is_found() -> None:
    async with pool(start=False) as made:
        await made.nodes[0].crash()
        await made.gateway.start()
        assert (await made.chat()).status == 404
        await made.nodes[0].start()
        await asyncio.sleep(31)
        assert (await made.chat()).status == 200
        await made.gateway.machine.cut()
        await made.gateway.gateway.close()


@pytest.mark.parametrize(
    "line", [b"{}\n", b"garbage\n", b"x" * 5000, b'{"epoch":-1}\n', b"\n", b"\xff\n"], ids=repr
)
async def test_a_lease_that_is_none_takes_the_node_out(line: bytes) -> None:
    async with pool(2) as made:
        made.liar.instead = lambda method, path: (
            Fake([line], hang=True) if path == "/inferpool/lease" else None
        )
        await made.nodes[0].machine.cut()
        made.nodes[0].machine.up = True
        await asyncio.sleep(60)
        node = next(known for known in made.known if known.url == url_of(0))
        assert not node.alive(made.gateway.gateway.clock.now_ms())
        assert (await made.chat()).status == 200


async def test_a_node_of_two_ways_that_cuts_each_after_a_line_is_not_asked_without_end() -> None:
    """Each line would count as a way that works, and the next way be asked at once."""
    async with pool(2) as made:
        lease = made.nodes[0].node.lease().encode() + b"\n"
        asked = 0

        def instead(method: str, path: str) -> Any:
            nonlocal asked
            if path != "/inferpool/lease":
                return None
            asked += 1
            return Fake([lease], cut=True) if asked < 1000 else Fake([], hang=True)

        node = next(known for known in made.known if known.url == url_of(0))
        node.ways = (*node.ways, Endpoint("https://relay.test", bytes(31) + b"1"))
        made.liar.instead = instead
        await made.nodes[0].machine.cut()
        made.nodes[0].machine.up = True
        await asyncio.sleep(10)
        assert node.alive(made.gateway.gateway.clock.now_ms())
        assert 1 < asked < 100


async def test_leases_that_always_tell_of_a_later_offer_do_not_ask_for_it_without_end() -> None:
    async with pool(2) as made:
        told = json.loads(made.nodes[0].node.lease().encode())

        async def lines() -> AsyncIterator[bytes]:
            for sequence in range(1000):
                yield json.dumps({**told, "sequence": 10**6 + sequence}).encode() + b"\n"
                await asyncio.sleep(0.01)
            await asyncio.get_running_loop().create_future()

        looks = 0

        def instead(method: str, path: str) -> Any:
            nonlocal looks
            looks += path == OFFER
            return Fake(lines()) if path == "/inferpool/lease" else None

        made.liar.instead = instead
        await made.nodes[0].machine.cut()
        made.nodes[0].machine.up = True
        await asyncio.sleep(11)
        assert 1 < looks < 100


async def test_a_node_that_moves_is_followed() -> None:
    async with pool(2) as made:
        moved = made.nodes.pop()  # the second one's machine takes the first one's identity
        new = "http://moved.test"
        await made.nodes[0].crash()
        made.nodes[0].url = new
        made.liars[new] = made.liars.pop(url_of(0))
        await made.nodes[0].start()
        await made.chain.with_sender(owner_key(0)).set_endpoint(new)
        await moved.crash()
        await asyncio.sleep(65)
        answer = await made.chat()
        assert answer.status == 200
        assert answer.proof["node"] == to_hex(node_key(0).address)


async def test_a_registry_that_is_away_takes_nobody_out() -> None:
    from inferpool.chain.memory import FailingChain, Failure
    from inferpool.protocol.errors import Unavailable

    async with pool() as made:
        directory = made.gateway.gateway.directory
        away = Failure(Unavailable("away", code="chain_unavailable"))
        directory.chain = FailingChain(
            directory.chain, lambda name: away if name == "registrations" else None
        )
        await asyncio.sleep(500)
        assert (await made.chat()).status == 200, "its offer is renewed without the registry"
