"""Which node is chosen: the cost in integers, told in the trace; liars' offers harm nobody else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from inferpool.gateway import router
from inferpool.gateway.affinity import ENDS, PrefixMap, blocks
from inferpool.gateway.memory import TwoSpeed
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.offer_index import OfferIndex
from inferpool.gateway.router import Candidate, Route, Wanted, choose
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
    price_in_pico_usd_per_unit=100_000,
    price_out_pico_usd_per_unit=1_000_000,
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


def chosen(
    nodes: list[KnownNode],
    job: Job = JOB,
    seed: int = 1,
    value: int = 0,
    prefixes: PrefixMap | None = None,
    **wanted: Any,
) -> Route:
    known = Wanted(NOW, value, **wanted)
    return choose(job, OfferIndex.of(nodes), known, Random(seed), prefixes)


def route(nodes: list[KnownNode], job: Job = JOB, seed: int = 1, value: int = 0) -> list[Candidate]:
    return chosen(nodes, job, seed, value).candidates


def known_well(*nodes: KnownNode) -> None:
    """No longer newcomers."""
    for item in nodes:
        item.memory.served = 100


def firsts(nodes: list[KnownNode], count: int = 400, **facts: Any) -> Counter[bytes]:
    """How often each node came first."""
    index = OfferIndex.of(nodes)
    prefixes, value = facts.pop("prefixes", None), facts.pop("value", 0)
    job = facts.pop("job", JOB)
    return Counter(
        choose(job, index, Wanted(NOW, value, **facts), Random(seed), prefixes)
        .candidates[0]
        .node.address
        for seed in range(count)
    )


def test_the_cost_is_price_time_risk_and_trust_in_whole_pico_usd() -> None:
    (found,) = route([node(1)], value=10**7)
    assert found.price_pico_usd == (100 + 8) * 100_000 + 50 * 10**6
    assert found.time_pico_usd == 10**7 * (200 + 50 * 10) // 1000
    assert found.risk_pico_usd == 0
    assert found.trust_pico_usd == found.price_pico_usd // 5, "it has served nothing yet"
    assert found.maximum_pico_usd == (400 + 8) * 100_000 + 50 * 10**6
    assert found.cost_pico_usd == sum(
        (found.price_pico_usd, found.time_pico_usd, found.trust_pico_usd)
    )
    assert all(type(v) is int for k, v in found.trace().items() if k.endswith("_pico_usd"))


def test_the_trace_names_node_and_every_factor() -> None:
    known = node(1, in_flight=2)
    known.memory.failures = TwoSpeed(0.5, 0.1, NOW, 9)
    (found,) = route([known], value=10**7)
    trace = found.trace()
    assert trace["node"] == to_hex(sha256(b"node 1")[:20])
    assert trace["in_flight"] == 2
    assert found.risk_pico_usd == (found.price_pico_usd + found.time_pico_usd) // 2
    names = ("price", "time", "risk", "trust")
    total = sum(trace[f"{name}_pico_usd"] for name in names)  # type: ignore[misc]
    assert total == found.cost_pico_usd


def test_a_far_cheaper_node_gets_nearly_all() -> None:
    dear = replace(SERVICE, price_in_pico_usd_per_unit=10**7, price_out_pico_usd_per_unit=10**8)
    nodes = [node(1), node(2, dear)]
    known_well(*nodes)
    assert firsts(nodes)[nodes[0].address] >= 395


def test_equal_nodes_share_the_work() -> None:
    nodes = [node(number) for number in range(4)]
    found = firsts(nodes, 800)
    assert len(found) == 4
    assert min(found.values()) > 100


def test_of_two_equal_ones_the_less_busy_is_taken() -> None:
    nodes = [node(1, in_flight=9), node(2)]
    assert firsts(nodes, 200)[nodes[1].address] > 140


def test_time_decides_where_it_has_a_value() -> None:
    slow = node(1, lease=replace(LEASE, expected_wait_ms=60_000))
    fast = node(2, replace(SERVICE, price_out_pico_usd_per_unit=1_500_000))
    known_well(slow, fast)
    by_price, by_time = firsts([slow, fast]), firsts([slow, fast], value=10**9)
    assert by_price[slow.address] > by_time[slow.address]
    assert by_time[fast.address] > 390


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
    known.succeeded(NOW)
    assert 0 < known.failures < before
    known.failed(NOW, "timeout")
    assert known.blocked_until_ms - NOW == 500


def test_after_the_pause_one_call_at_a_time_probes() -> None:
    known = node(1)
    known.failed(NOW, "node_failed")
    assert known.held_back(NOW) == "failed before"
    later = known.blocked_until_ms
    assert not known.held_back(later)
    known.began()
    assert known.held_back(later) == "failed before", "the probe is on its way"
    known.ended()
    assert not known.held_back(later)


def test_one_that_fails_half_of_its_calls_is_ejected_though_it_succeeds_between() -> None:
    known = node(1)
    at = NOW
    for number in range(40):
        at += 100
        known.failed(at, "engine_failed") if number % 3 else known.succeeded(at)
    known.succeeded(at)
    assert known.held_back(at) == "failed before" or known.ejected_until_ms > at
    assert known.ejected_until_ms >= at + 30_000 - 1000
    others = [node(number) for number in range(2, 4)]
    assert [c.node for c in route([known, *others])][-1] is known


def test_where_most_are_ejected_it_is_the_pool_and_not_they() -> None:
    nodes = [node(number, ejected_until_ms=NOW + 1000) for number in range(3)]
    nodes.append(node(9))
    assert len(firsts(nodes)) == 4


def test_a_full_node_takes_fewer_at_once_and_more_again_as_it_succeeds() -> None:
    known = node(1, in_flight=10)
    known.failed(NOW, "overloaded")
    assert known.failures == 0, "being full is no fault"
    assert known.memory.cap == 7
    assert known.held_back(NOW + 501) == "full"
    for _ in range(30):
        known.memory.learn(SERVICE.call_class, 100, 50, 10, 10, NOW)
    assert not node(2, in_flight=10).held_back(NOW)
    assert known.held_back(NOW + 501) == ""


def test_two_speeds_feel_a_turn_at_once_and_do_not_forgive_for_one_answer() -> None:
    share = TwoSpeed()
    share.add(1.0, NOW)
    assert share.now(NOW) >= 0.3
    for number in range(300):
        share.add(1.0, NOW + number)
    late = NOW + 300 + 600_000
    assert share.now(late) > 0.8, "ten minutes later the slow memory still knows"
    share.add(0.0, late)
    assert share.now(late) > 0.7
    assert share.now(late + 100 * 3_600_000) < 0.01


def test_a_line_for_each_class_of_call() -> None:
    """A long prompt takes longer, a tensor call is not a chat, and a slow spell is felt."""
    known = node(1)
    for units in (10, 1000, 10, 1000, 500, 2000):
        known.memory.learn(SERVICE.call_class, units, 100 + units / 10, 50, 500, NOW)
    line = known.memory.latency(SERVICE.call_class)
    assert 300 < line.first_ms(3000, None, NOW) < 420
    assert 80 < line.first_ms(0, None, NOW) < 140
    assert line.unit_us(None) == pytest.approx(10_000)
    assert line.prefill_ms(1000) == pytest.approx(100, rel=0.05)
    assert known.memory.latency((b"m", "tensor")).first_ms(3000, LEASE, NOW) == 200
    for _ in range(3):
        known.memory.learn(SERVICE.call_class, 1000, 2000, 0, 0, NOW)
    assert line.first_ms(1000, None, NOW) > 1500
    assert line.first_ms(1000, None, NOW + 600_000) < 1200, "and it passes"


def test_a_node_that_knows_the_prompt_is_preferred_until_it_is_crowded() -> None:
    nodes = [node(number) for number in range(12)]
    known_well(*nodes)
    for item in nodes:
        for units in (100, 2000, 100, 2000):
            item.memory.learn(SERVICE.call_class, units, 50 + units, 50, 500, NOW)
    text = "You are a pirate. " * 400
    prefixes, prompt = PrefixMap(), blocks([text, "What is your name?"])
    prefixes.note(prompt, nodes[3].address, NOW)
    job = replace(JOB, prompt_bytes=len(text))
    asked = blocks([text, "Where is the treasure?"])
    assert prefixes.warm(asked, NOW)[nodes[3].address] == max(e for e in ENDS if e <= len(text))
    facts = {"prefixes": prefixes, "prompt": asked, "job": job, "value": 10**8}
    assert firsts(nodes, 100, **facts)[nodes[3].address] == 100
    nodes[3].in_flight = 6
    assert firsts(nodes, 100, **facts)[nodes[3].address] < 50
    assert prefixes.warm(asked, NOW + 3_600_000) == {}, "an engine has forgotten it by then"
    assert blocks(["short"]) == ()


def test_prompts_that_are_cold_go_round() -> None:
    """One session after the other, each new: nothing is in flight when the next one comes."""
    nodes = [node(number) for number in range(4)]
    index, random, found = OfferIndex.of(nodes), Random(5), Counter[bytes]()
    for number in range(400):
        first = choose(JOB, index, Wanted(NOW + number), random).candidates[0].node
        first.memory.missed(NOW + number)
        found[first.address] += 1
    assert min(found.values()) > 60


def test_newcomers_get_a_turn_and_no_more() -> None:
    """Three in a hundred, though they are dearer by the surcharge; far dearer ones get none."""
    old = [node(number) for number in range(20)]
    known_well(*old)
    dear = replace(SERVICE, price_in_pico_usd_per_unit=10**7, price_out_pico_usd_per_unit=10**7)
    new, greedy = node(100), node(101, dear)
    found = firsts([*old, new, greedy], 3000)
    assert found[new.address] > 30
    assert found[greedy.address] == 0
    for _ in range(10):
        new.memory.learn(SERVICE.call_class, 100, 200, 50, 500, NOW)
    assert chosen([*old, new]).candidates[0].trust_pico_usd == 0


def test_of_a_thousand_the_cheap_ones_share_and_the_dear_ones_wait() -> None:
    nodes = []
    for number in range(1000):
        price = 10**6 * (1 + number // 100)
        nodes.append(node(number, replace(SERVICE, price_out_pico_usd_per_unit=price)))
    known_well(*nodes)
    found = firsts(nodes, 1000)
    cheap = sum(found[item.address] for item in nodes[:200])
    assert cheap > 800
    assert len(found) > 150, "nobody gets it all"
    for item in nodes[:100]:
        item.blocked_until_ms = NOW + 1
    assert not any(firsts(nodes, 200)[item.address] for item in nodes[:100])


def test_the_index_follows_a_node() -> None:
    """Its price, its models, its speed; and it forgets it."""
    nodes = [node(number) for number in range(30)]
    known_well(*nodes)
    index = OfferIndex.of(nodes)

    def first() -> Counter[bytes]:
        return Counter(
            choose(JOB, index, Wanted(NOW), Random(seed)).candidates[0].node.address
            for seed in range(60)
        )

    first()
    cheap = replace(SERVICE, price_in_pico_usd_per_unit=1, price_out_pico_usd_per_unit=1)
    nodes[7].offer = replace(nodes[7].offer, services=(cheap,))
    index.put(nodes[7])
    assert first()[nodes[7].address] == 60
    nodes[7].offer = replace(nodes[7].offer, services=(replace(SERVICE, model="other"),))
    index.put(nodes[7])
    assert nodes[7].address not in first()
    market = index.market("other", Task.CHAT)
    assert market is not None
    assert list(market.entries) == [nodes[7].address]
    index.drop(nodes[7].address)
    assert index.market("other", Task.CHAT) is None
    for item in nodes[:7] + nodes[8:]:
        index.drop(item.address)
    assert index.market("m", Task.CHAT) is None


def test_what_the_caller_rules_out_is_told() -> None:
    nodes = [node(number) for number in range(3)]
    keep = nodes[1].address
    allows = lambda known, _: "" if known.address == keep else "not in only"  # noqa: E731
    found = chosen(nodes, allows=allows)
    assert [c.node.address for c in found.candidates] == [keep]
    assert found.passed == {"not in only": 2}
    with pytest.raises(BadRequest, match="not in only"):
        chosen(nodes, allows=lambda *_: "not in only")


def test_the_budget_rules_out_only_what_it_does_not_cover() -> None:
    dear = replace(SERVICE, template_overhead=2**31)
    nodes = [node(1), node(2, dear)]
    most = route([nodes[0]])[0].maximum_pico_usd
    assert [c.node for c in chosen(nodes, free_pico_usd=most).candidates] == [nodes[0]]
    both = chosen(nodes, free_pico_usd=most - 1).candidates
    assert len(both) == 2, "the budget itself then refuses, and says what is missing"


def test_the_same_seed_chooses_the_same() -> None:
    nodes = [node(number) for number in range(200)]
    again = [node(number) for number in range(200)]
    for seed in range(20):
        one, two = (chosen(found, seed=seed).trace() for found in (nodes, again))
        assert one == two


def test_every_candidate_tells_why_it_is_not_the_first() -> None:
    dear = replace(SERVICE, price_out_pico_usd_per_unit=5 * 10**7)
    slow = replace(LEASE, expected_wait_ms=100_000)
    nodes = [node(1), node(2, dear), node(3, lease=slow), node(4, blocked_until_ms=NOW + 9)]
    failing = node(5)
    failing.memory.failures = TwoSpeed(0.9, 0.9, NOW, 9)
    nodes.append(failing)
    known_well(*nodes)
    found = next(
        made
        for seed in range(50)
        if (made := chosen(nodes, seed=seed, value=10**7)).candidates[0].node is nodes[0]
    )
    why = {c.node.address: router.why_not(c, found.candidates[0]) for c in found.candidates}
    wanted = ["", "dearer", "slower", "failed before", "less reliable"]
    assert [why[item.address] for item in nodes] == wanted


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


def test_a_ranking_follows_a_node_that_was_touched_before_it_began() -> None:
    nodes = [node(number) for number in range(12)]
    known_well(*nodes)
    index, wanted = OfferIndex.of(nodes), Wanted(NOW, 10**9)
    for item in nodes:
        index.touch(item.address)  # nothing is ranked yet
    choose(JOB, index, wanted, Random(1))  # ranks them
    best = nodes[7]
    for _ in range(20):
        best.memory.learn(SERVICE.call_class, 100, 1.0, 49, 1.0, NOW)
    index.touch(best.address)
    firsts = Counter(
        choose(JOB, index, wanted, Random(seed)).candidates[0].node.address for seed in range(50)
    )
    assert firsts[best.address] > 40
