"""Which node is chosen: the cost in integers, told in the trace; liars' offers harm nobody else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.router import Candidate, choose
from inferpool.protocol.encoding import sha256, to_hex
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.offer import Endpoint, Offer, Service, Terms

NOW = 1_000_000
SERVICE = Service(
    manifest=sha256(b"m"),
    model="m",
    task=Task.CHAT,
    engine_class="fake@1/none/none",
    price_in_pico_usd_per_unit=100,
    price_out_pico_usd_per_unit=1000,
    context=4096,
    default_max_output=64,
    template_overhead=0,
    message_overhead=8,
    resume=True,
    audited=True,
)
TERMS = Terms(1, bytes(20), "D", "1", 6, b"p" * 20, b"r" * 20, 0, 900)
LEASE = Lease(1, 1, 4, 0, 200, 10_000)
JOB = Job(Task.CHAT, "m", prompt_bytes=400, messages=1, max_output=50)


def node(number: int, *services: Service, lease: Lease | None = LEASE, **facts: Any) -> KnownNode:
    address = sha256(b"node %d" % number)[:20]
    url = f"http://node-{number}.test"
    offer = Offer(
        owner=b"o" * 20,
        node=address,
        epoch=1,
        sequence=1,
        valid_until_ms=NOW + 600_000,
        endpoints=(Endpoint(url),),
        services=services or (SERVICE,),
        terms=TERMS,
    )
    known = KnownNode(offer, offer.digest(), url, None)  # type: ignore[arg-type]
    known.lease, known.lease_ms = lease, NOW
    for name, value in facts.items():
        setattr(known, name, value)
    return known


def route(nodes: list[KnownNode], job: Job = JOB, seed: int = 1, value: int = 0) -> list[Candidate]:
    return choose(job, nodes, now_ms=NOW, value_of_time_pico_usd_per_s=value, random=Random(seed))


def test_the_cost_is_price_time_and_risk_in_whole_pico_usd() -> None:
    (found,) = route([node(1)], value=10_000)
    assert found.price_pico_usd == (100 + 8) * 100 + 50 * 1000
    assert found.time_pico_usd == 10_000 * (200 + 50 * 10) // 1000
    assert found.risk_pico_usd == 0
    assert found.maximum_pico_usd == (400 + 8) * 100 + 50 * 1000
    assert found.cost_pico_usd == found.price_pico_usd + found.time_pico_usd
    assert all(type(v) is int for k, v in found.trace().items() if k.endswith("_pico_usd"))


def test_the_trace_names_node_and_every_factor() -> None:
    (found,) = route([node(1, in_flight=2, failures=0.5)], value=10_000)
    trace = found.trace()
    assert trace["node"] == to_hex(sha256(b"node 1")[:20])
    assert trace["in_flight"] == 2
    assert found.risk_pico_usd == (found.price_pico_usd + found.time_pico_usd) // 2
    total = sum(trace[f"{name}_pico_usd"] for name in ("price", "time", "risk"))  # type: ignore[misc]
    assert total == found.cost_pico_usd


def test_a_far_cheaper_node_gets_nearly_all() -> None:
    dear = replace(SERVICE, price_in_pico_usd_per_unit=10_000, price_out_pico_usd_per_unit=100_000)
    nodes = [node(1), node(2, dear)]
    firsts = Counter(route(nodes, seed=seed)[0].node.address for seed in range(500))
    assert firsts[nodes[0].address] >= 495


def test_equal_nodes_share_the_work() -> None:
    nodes = [node(number) for number in range(4)]
    firsts = Counter(route(nodes, seed=seed)[0].node.address for seed in range(800))
    assert len(firsts) == 4
    assert min(firsts.values()) > 100


def test_of_two_equal_ones_the_less_busy_is_taken() -> None:
    nodes = [node(1, in_flight=9), node(2)]
    firsts = Counter(route(nodes, seed=seed)[0].node.address for seed in range(200))
    assert firsts[nodes[1].address] > 140


def test_time_decides_where_it_has_a_value() -> None:
    slow = node(1, lease=replace(LEASE, expected_wait_ms=60_000))
    fast = node(2, replace(SERVICE, price_out_pico_usd_per_unit=1500))
    by_price = Counter(route([slow, fast], seed=s)[0].node.address for s in range(200))
    by_time = Counter(route([slow, fast], seed=s, value=10**6)[0].node.address for s in range(200))
    assert by_price[slow.address] > by_time[slow.address]
    assert by_time[fast.address] > 190


def test_the_order_holds_every_living_node_once_and_blocked_ones_last() -> None:
    nodes = [node(number) for number in range(5)]
    nodes[0].blocked_until_ms = NOW + 5000
    nodes[1].blocked_until_ms = NOW + 1000
    for seed in range(20):
        found = [candidate.node for candidate in route(nodes, seed=seed)]
        assert len(found) == len({item.address for item in found}) == 5
        assert found[3:] == [nodes[1], nodes[0]], "the one that is free again first comes first"
    nodes[0].blocked_until_ms = NOW
    assert route(nodes)[-1].node is nodes[1]


def test_only_blocked_nodes_are_better_than_none() -> None:
    only = node(1, blocked_until_ms=NOW + 60_000)
    assert [c.node for c in route([only])] == [only]


def test_a_model_nobody_offers_is_not_the_same_as_silent_nodes() -> None:
    for nodes in ([], [node(1)]):
        with pytest.raises(BadRequest) as unknown:
            route(nodes, replace(JOB, model="other"))
        assert unknown.value.code == "model_not_found"
    with pytest.raises(BadRequest):
        route([node(1)], replace(JOB, task=Task.TENSOR, rows=1))
    for gone in (node(1, lease_ms=NOW - 30_000), node(2)):
        gone.offer = replace(gone.offer, valid_until_ms=NOW) if gone.lease_ms == NOW else gone.offer
        with pytest.raises(Unavailable) as silent:
            route([gone])
        assert silent.value.code == "no_node"
        assert silent.value.retry_after_s


def test_a_model_is_found_by_its_manifest_too() -> None:
    (found,) = route([node(1)], replace(JOB, model=to_hex(SERVICE.manifest)))
    assert found.service == SERVICE


def test_failures_block_for_longer_each_time_and_a_success_forgives() -> None:
    known = node(1)
    pauses = []
    for _ in range(12):
        known.failed(NOW, "node_failed")
        pauses.append(known.blocked_until_ms - NOW)
    assert pauses[:3] == [500, 1000, 2000]
    assert max(pauses) == 60_000
    assert known.reasons == {"node_failed": 12}
    before = known.failures
    known.succeeded()
    assert known.failures < before
    known.failed(NOW, "timeout")
    assert known.blocked_until_ms - NOW == 500


@pytest.mark.parametrize(
    "changes",
    [
        {"default_max_output": 0},
        {"default_max_output": 2**32 - 1},
        {"price_out_pico_usd_per_unit": 2**64 - 1, "price_in_pico_usd_per_unit": 2**64 - 1},
        {"message_overhead": 2**32 - 1, "template_overhead": 2**32 - 1},
    ],
    ids=str,
)
def test_an_offer_with_absurd_numbers_takes_no_other_node_out(changes: dict[str, int]) -> None:
    """A stranger may offer anything; requests that others can serve are served by others."""
    job = replace(JOB, max_output=None)
    honest, liar = node(1), node(2, replace(SERVICE, **changes))
    for seed in range(20):
        assert route([honest, liar], job, seed=seed)[0].node is honest
