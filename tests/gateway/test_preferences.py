"""OpenRouter's `provider` object and ours: read strictly, and obeyed."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from inferpool.gateway.offer_index import OfferIndex
from inferpool.gateway.preferences import allows, arrange, trust, value_of_time
from inferpool.gateway.router import Wanted, choose
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.preferences import (
    NO_PREFERENCES,
    RoutePreferences,
    preferences_of,
    take_preferences,
)
from tests.gateway.parts import CHAT, INFER, KEY_HEADER, Answer, Pool, pool
from tests.gateway.test_router import JOB, NOW, node

TENSOR = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}]}


def read(provider: object = None, **ours: object) -> RoutePreferences:
    body: dict[str, object] = {} if provider is None else {"provider": provider}
    if ours:
        body["inferpool"] = ours
    found = take_preferences(body)
    assert not body, "everything was taken"
    return found


# -- reading -------------------------------------------------------------------------------------


def test_nothing_said_is_no_preference() -> None:
    assert read() is NO_PREFERENCES
    assert read({}) == read({"require_parameters": True, "data_collection": "allow"})
    assert read({"zdr": False, "allow_fallbacks": None, "max_price": None}) == NO_PREFERENCES


def test_every_field_has_its_meaning() -> None:
    found = read(
        {
            "order": ["0x" + "11" * 20],
            "only": ["0x" + "11" * 20, "0x" + "22" * 20],
            "ignore": ["0x" + "33" * 20],
            "allow_fallbacks": False,
            "require_parameters": True,
            "data_collection": "deny",
            "quantizations": ["Q4_1", "fp16"],
            "max_price": {"prompt": 0.15, "completion": "0.6", "request": 0.01},
            "sort": {"by": "latency", "partition": "model"},
            "preferred_min_throughput": {"p50": 20, "p90": 30},
            "preferred_max_latency": {"p50": 1, "p99": 2.5},
        },
        min_trust=0.5,
        value_of_time_usd_per_hour=36,
    )
    assert found == RoutePreferences(
        order=(b"\x11" * 20,),
        only=frozenset({b"\x11" * 20, b"\x22" * 20}),
        ignore=frozenset({b"\x33" * 20}),
        allow_fallbacks=False,
        private=True,
        quantizations=frozenset({"q4_1", "f16"}),
        max_in_pico_usd_per_unit=150_000,
        max_out_pico_usd_per_unit=600_000,
        max_request_pico_usd=10**10,
        sort="latency",
        min_units_per_s=30.0,
        max_first_ms=1000.0,
        min_trust=0.5,
        value_of_time_pico_usd_per_s=10**10,
    )


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        ([], "provider"),
        ({"onyl": []}, "provider.onyl"),
        ({"order": "0x" + "11" * 20}, "provider.order"),
        ({"only": ["openai"]}, "provider.only"),
        ({"ignore": ["0x" + "11" * 20] * 257}, "provider.ignore"),
        ({"allow_fallbacks": "no"}, "provider.allow_fallbacks"),
        ({"require_parameters": False}, "provider.require_parameters"),
        ({"data_collection": "never"}, "provider.data_collection"),
        ({"zdr": 1}, "provider.zdr"),
        ({"quantizations": [4]}, "provider.quantizations"),
        ({"max_price": {"prompt": -1}}, "provider.max_price.prompt"),
        ({"max_price": {"prompt": True}}, "provider.max_price.prompt"),
        ({"max_price": {"completion": "NaN"}}, "provider.max_price.completion"),
        ({"max_price": {"image": 1}}, "provider.max_price.image"),
        ({"sort": "best"}, "provider.sort"),
        ({"sort": {"by": "price", "partition": "none"}}, "provider.sort.partition"),
        ({"preferred_min_throughput": "fast"}, "provider.preferred_min_throughput"),
        ({"preferred_max_latency": {"p42": 1}}, "provider.preferred_max_latency.p42"),
    ],
)
def test_a_fault_is_named(provider: object, param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read(provider)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("ours", "param"),
    [
        ({"min_trust": 1.5}, "inferpool.min_trust"),
        ({"value_of_time_usd_per_hour": "much"}, "inferpool.value_of_time_usd_per_hour"),
        ({"region": "eu"}, "inferpool.region"),
    ],
)
def test_a_fault_in_ours_is_named(ours: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read(**ours)
    assert raised.value.param == param


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": 1}', b'{"provider": 1}', b"x" * 17_000])
def test_a_header_is_read_as_strictly(header: bytes) -> None:
    with pytest.raises(BadRequest):
        preferences_of(header)


# -- obeying -------------------------------------------------------------------------------------


def route(wanted: RoutePreferences, *nodes: Any, seed: int = 1) -> list[bytes]:
    known = Wanted(NOW, value_of_time(wanted, 0), None, (), allows(wanted, JOB, NOW), wanted.order)
    found = choose(JOB, OfferIndex.of(list(nodes)), known, Random(seed)).candidates
    return [candidate.node.address for candidate in arrange(found, wanted)]


def test_order_comes_first_and_without_fallbacks_nothing_else() -> None:
    nodes = [node(number) for number in range(20)]  # more than are priced exactly
    last, other = nodes[19].address, nodes[7].address
    for seed in range(20):
        assert route(RoutePreferences(order=(last, other)), *nodes, seed=seed)[:2] == [last, other]
        strict = RoutePreferences(order=(last, other), allow_fallbacks=False)
        assert route(strict, *nodes, seed=seed) == [last, other]
        assert len(route(RoutePreferences(allow_fallbacks=False), *nodes, seed=seed)) == 1


def test_an_owner_names_all_its_nodes() -> None:
    nodes = [node(number) for number in range(3)]
    owner = frozenset({nodes[0].offer.owner})
    assert len(route(RoutePreferences(only=owner), *nodes)) == 3
    with pytest.raises(Exception, match=r"in provider\.ignore"):
        route(RoutePreferences(ignore=owner), *nodes)


def test_trust_is_earned_by_answers() -> None:
    stranger, known = node(1), node(2)
    known.memory.served = 1000
    assert (trust(stranger, NOW), trust(known, NOW)) == (0.0, 1.0)
    assert route(RoutePreferences(min_trust=0.5), stranger, known) == [known.address]


async def asked(made: Pool, provider: dict[str, Any], **more: Any) -> Answer:
    return await made.chat(provider=provider, **more)


def address(made: Pool, number: int) -> str:
    return to_hex(made.nodes[number].node.key.address)


def served(answer: Answer) -> str:
    return answer.headers[b"inferpool-node"].decode()


async def reprice(made: Pool, number: int, into: int, out: int) -> None:
    made.nodes[number].node.services.hosted[0].reprice(into, out)
    made.nodes[number].node.offers._signed = None
    for known in made.known:
        await made.gateway.gateway.directory.look(known)
        known.blocked_until_ms = 0


async def test_a_client_names_its_node_and_no_other_serves_it() -> None:
    async with pool(3) as made:
        for number in range(3):
            for _ in range(3):
                answer = await asked(made, {"only": [address(made, number)]})
                assert answer.status == 200
                assert served(answer) == address(made, number)
                answer = await asked(made, {"order": [address(made, number)]}, stream=True)
                assert served(answer) == address(made, number)
        answer = await asked(made, {"only": ["0x" + "77" * 20]})
        assert (answer.status, answer.code) == (400, "preferences_unmet")
        assert answer.json["error"]["param"] == "provider.only"
        assert "not among provider.only" in answer.json["error"]["message"]


async def test_a_fallback_is_taken_where_it_is_allowed() -> None:
    async with pool(2) as made:
        made.nodes[0].engine.fail_after = 0
        order = [address(made, 0)]
        answer = await asked(made, {"order": order})
        assert served(answer) == address(made, 1)
        for known in made.known:
            known.blocked_until_ms = 0
        answer = await asked(made, {"order": order, "allow_fallbacks": False})
        assert answer.status == 502
        assert made.account.held_pico_usd == 0


async def test_no_node_over_the_price() -> None:
    async with pool(2) as made:
        await reprice(made, 0, 600_000, 2_400_000)
        for _ in range(5):
            answer = await asked(made, {"max_price": {"completion": 0.6}, "sort": "price"})
            assert served(answer) == address(made, 1)
        answer = await asked(made, {"max_price": {"completion": 0.1}})
        assert (answer.status, answer.code) == (400, "preferences_unmet")
        assert "over max_price" in answer.json["error"]["message"]
        for wish, param in (
            ({"max_price": {"request": 0}}, "max_price.request"),
            ({"data_collection": "deny"}, "data_collection"),
            ({"quantizations": ["fp8"]}, "quantizations"),
        ):
            error = (await asked(made, wish)).json["error"]
            assert (error["code"], error["param"]) == ("preferences_unmet", f"provider.{param}")
        assert (await asked(made, {"quantizations": ["none"]})).status == 200
        for known in made.known:
            known.lease_ms = 0  # silent: what fits may be back soon, what does not may not
        assert (await asked(made, {})).code == "no_node"
        assert (await asked(made, {"quantizations": ["fp8"]})).code == "preferences_unmet"


async def test_tensors_take_theirs_in_a_header() -> None:
    async with pool(2) as made:
        for number in (0, 1):
            said = json.dumps({"provider": {"only": [address(made, number)]}}).encode()
            pairs = [KEY_HEADER, (b"inferpool-provider", said)]
            answer = await made.send("POST", INFER, TENSOR, pairs)
            assert (answer.status, served(answer)) == (200, address(made, number))
        bad = await made.send("POST", INFER, TENSOR, [KEY_HEADER, (b"inferpool-provider", b"{")])
        assert bad.status == 400


async def test_a_refusal_names_the_parameter_as_the_api_does() -> None:
    async with pool() as made:
        body = {"model": "fake-chat", "messages": [{"role": "user", "content": "hi"}]}
        answer = await made.send("POST", CHAT, body | {"provider": {"sort": "best"}})
        assert (answer.status, answer.json["error"]["param"]) == (400, "provider.sort")
