"""Newcomers at a gateway: offers that are pushed, canaries that are paid, and what a node hears."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from owner_kit import EPOCH_MS, GATEWAY_URL, NODE_URL, Net, net, until

from inferpool.gateway.admission import Caller
from inferpool.gateway.canary import ACCOUNT, FAILED_PAUSE_MS, Canaries, one_row
from inferpool.gateway.pushes import PushLimit
from inferpool.payments.budget import Account
from inferpool.protocol.errors import RateLimited
from inferpool.protocol.limits import (
    CANARY_EVERY_MS,
    PUSH_EVERY_MS,
    PUSHERS_MAX,
    PUSHES_AT_ONCE,
)
from inferpool.protocol.oip import InferRequest
from inferpool.transport.asgi import HttpRequest, Receive, Scope, Send
from inferpool.transport.memory import MemoryTransport


async def push(world: Net, body: bytes) -> tuple[int, Any]:
    pipe = MemoryTransport(world.gateway.app)
    response = await pipe.request("POST", "/inferpool/offers", (), body, timeout_s=30)
    data = await response.read(1 << 20)
    await response.close()
    await pipe.close()
    return response.status, json.loads(data)


def canaries(world: Net, most: int = 10**9) -> Canaries:
    caller = Caller(b"canary", Account(ACCOUNT, None))
    ledger = world.gateway.gateway.ledger
    ledger.accounts[caller.account_id] = caller.account
    ledger.keys.created_ms[caller.account_id] = EPOCH_MS
    return Canaries(world.gateway.gateway, caller, most)


async def test_an_unregistered_node_joins_by_pushing_its_offer(tmp_path: Path) -> None:
    async with net(tmp_path, registered=False) as world:
        assert world.known is None
        status, told = await push(world, world.node.node.offers.current().encode())
        assert (status, told["alive"], told["asked"]) == (200, True, 0)
        assert (await world.chat())[0] == 200


async def test_the_pusher_pushes_again_when_the_offer_changes(tmp_path: Path) -> None:
    async with net(tmp_path, registered=False) as world:
        job = asyncio.create_task(world.pusher.run())
        told = world.pusher.told[GATEWAY_URL]
        await until("it was pushed", lambda: told.accepted)
        known = world.known
        assert known is not None
        world.node.node.services.hosted[0].reprice(1, 2)
        world.node.node.announce()
        price = lambda: known.offer.services[0].price_in_pico_usd_per_unit  # noqa: E731
        await until("the new offer is there", lambda: price() == 1)
        await world.chat()
        await asyncio.sleep(31)
        assert (told.word["asked"], told.word["chosen"], told.word["lost"]) == (1, 1, {})
        job.cancel()
        await asyncio.wait([job])


async def test_a_gateway_that_is_away_is_tried_again(tmp_path: Path) -> None:
    async with net(tmp_path, registered=False) as world:
        await world.gateway.machine.cut()
        job = asyncio.create_task(world.pusher.run())
        told = world.pusher.told[GATEWAY_URL]
        await until("it failed", lambda: "down" in told.error)
        world.gateway.machine.up = True
        await until("it was pushed", lambda: told.accepted)
        job.cancel()
        await asyncio.wait([job])


@pytest.mark.parametrize(
    "word",
    [
        {"lost": 5},
        {"blocked_ms": "x"},
        {"failed": None},
        {"unmet": "fake-chat"},
        {"alive": 1},
        [["lost", 5]],
        [],
        "x",
    ],
    ids=repr,
)
async def test_a_gateways_nonsense_is_told_and_breaks_nothing(tmp_path: Path, word: Any) -> None:
    """`node status` and `node doctor` read these; the gateway is somebody else's program."""

    async def liar(scope: Scope, receive: Receive, send: Send) -> None:
        await HttpRequest(scope, receive, send).answer_json(word)

    async with net(tmp_path, registered=False) as world:
        told = world.pusher.told[GATEWAY_URL]
        pipe = MemoryTransport(liar)
        await world.pusher.push(GATEWAY_URL, pipe)
        assert (told.accepted, told.word) == (False, {})
        assert told.error == "status 200: its answer cannot be read"
        word = {"accepted": False, "error": "x", "lost": {"price": 1}}
        await world.pusher.push(GATEWAY_URL, pipe)
        found = told.to_wire()
        assert (found["accepted"], found["error"], found["lost"]) == (True, "", {"price": 1})
        await pipe.close()


@pytest.mark.parametrize("spoil", ["junk", "stranger", "url", "ended", "size"])
async def test_a_bad_offer_is_refused(tmp_path: Path, spoil: str) -> None:
    async with net(tmp_path, registered=False) as world:
        body = world.node.node.offers.current().encode()
        if spoil == "junk":
            body = b"{}"
        elif spoil == "stranger":
            body = body.replace(b'"sequence":1', b'"sequence":2')
        elif spoil == "url":
            body = body.replace(NODE_URL.encode(), b"http://liar.test")
        elif spoil == "ended":
            await asyncio.sleep(601)
        else:
            body += b" " * 70_000
        status, answer = await push(world, body)
        assert status in (413, 422), answer
        assert world.known is None


async def test_pushes_of_one_address_are_bounded(tmp_path: Path) -> None:
    async with net(tmp_path, registered=False) as world:
        body = world.node.node.offers.current().encode()
        found = [(await push(world, body))[0] for _ in range(PUSHES_AT_ONCE + 1)]
        assert found == [200] * PUSHES_AT_ONCE + [429]
        await asyncio.sleep(PUSH_EVERY_MS / 1000)
        assert (await push(world, body))[0] == 200


@given(st.lists(st.integers(0, 5000), max_size=60))
def test_a_bucket_lets_through_no_more_than_its_rate(pauses: list[int]) -> None:
    limit, now, taken = PushLimit(), 0, []
    for pause in pauses:
        now += pause
        try:
            limit.take("address", now)
            taken.append(now)
        except RateLimited as error:
            assert error.retry_after_s
    for at, begin in enumerate(taken):
        for count, end in enumerate(taken[at:], 1):
            assert count <= PUSHES_AT_ONCE + (end - begin) // PUSH_EVERY_MS


def test_an_ipv6_line_is_one_address_however_many_it_has() -> None:
    limit = PushLimit()
    for number in range(PUSHES_AT_ONCE):
        limit.take(f"2001:db8::{number:x}:1", 0)
    for address in ("2001:db8::ffff", "2001:db8:0:0:9::%eth0"):
        with pytest.raises(RateLimited):
            limit.take(address, 0)
    limit.take("2001:db8:0:1::1", 0)
    for _ in range(PUSHES_AT_ONCE):
        limit.take("::ffff:192.0.2.1", 0)
    with pytest.raises(RateLimited):
        limit.take("192.0.2.1", 0)
    limit.take("::ffff:192.0.2.2", 0)


def test_addresses_are_forgotten_before_they_are_too_many() -> None:
    limit = PushLimit()
    for number in range(PUSHERS_MAX + 5):
        limit.take(str(number), number)
    assert len(limit._until_ms) == PUSHERS_MAX


# -- canaries -----------------------------------------------------------------------------


async def test_a_newcomer_earns_once_and_then_for_an_hour_no_more(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        bird = canaries(world)
        job = asyncio.create_task(bird.run())
        await until("it was paid", lambda: world.node.node.ledger.latest(2))
        ((signed, model),) = world.node.node.ledger.latest(2)
        assert model == "fake-chat"
        assert 0 < signed.receipt.charge_pico_usd <= bird.maximum_pico_usd
        assert bird.caller.account.spent_pico_usd == signed.receipt.charge_pico_usd
        await asyncio.sleep(2 * CANARY_EVERY_MS / 1000)
        assert len(world.node.node.ledger.latest(9)) == 1, "it has a receipt now"
        job.cancel()
        await asyncio.wait([job])


async def test_a_node_that_fails_gets_no_canary_for_a_while(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        world.node.engine.fail_after = 0
        bird = canaries(world)
        assert bird.due() == [world.known]
        assert world.known is not None
        await bird.send(world.known)
        assert bird.due() == []
        await asyncio.sleep(FAILED_PAUSE_MS / 1000 - 1)
        assert bird.due() == []
        world.node.engine.fail_after = None


async def test_a_node_without_chat_gets_a_row(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        await world.control("models", model="fake-chat", serve=False)
        known = world.known
        assert known is not None
        await until("only tensors", lambda: len(known.offer.services) == 1)
        await canaries(world).send(known)
        ((signed, model),) = world.node.node.ledger.latest(2)
        assert (model, signed.receipt.prompt_units) == ("fake-tensor", 1)


async def test_a_dear_node_gets_none(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        bird = canaries(world, most=10)
        assert world.known is not None
        await bird.send(world.known)
        assert world.node.node.ledger.latest(1) == []
        assert bird.caller.account.spent_pico_usd == 0


async def test_a_paused_node_gets_none(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        await world.control("drain")
        known = world.known
        assert known is not None
        await until("nothing is offered", lambda: not known.offer.services)
        await canaries(world).send(known)
        assert world.node.node.ledger.latest(1) == []


datatypes = st.sampled_from(["BOOL", "BYTES", "FP32", "INT64", "UINT8"])
specs = st.lists(
    st.tuples(st.text(min_size=1, max_size=8), datatypes, st.lists(st.integers(-1, 4), max_size=3)),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item[0],
)


@given(specs)
def test_a_row_fits_the_metadata(found: list[tuple[str, str, list[int]]]) -> None:
    inputs = [{"name": n, "datatype": d, "shape": s} for n, d, s in found]
    try:
        body = one_row({"inputs": inputs})
    except ValueError:
        assert any(0 in shape for _, _, shape in found)
        return
    parsed = json.loads(body)["inputs"]
    for (name, datatype, shape), item in zip(found, parsed, strict=True):
        assert (item["name"], item["datatype"]) == (name, datatype)
        assert item["shape"] == [1 if size < 0 else size for size in shape]


@pytest.mark.parametrize("junk", [{}, {"inputs": 1}, {"inputs": [{}]}, [], None])
def test_metadata_that_is_none_is_no_row(junk: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        one_row(junk)


def test_a_huge_row_is_not_sent() -> None:
    item = {"name": "x", "datatype": "FP32", "shape": [-1, 2**40]}
    with pytest.raises(ValueError, match="too large"):
        one_row({"inputs": [item]})


def test_the_row_is_a_request(tmp_path: Path) -> None:
    body = one_row({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]})
    assert InferRequest.parse("fake-tensor", body, None).rows == 1
