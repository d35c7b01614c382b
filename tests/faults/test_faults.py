"""Seven faults of the first node, with real processes: the client sees one complete answer.

Refused, 500, 429, a slow first token, death in mid-stream, silence in mid-stream, and an engine
that hangs while its front end beats on. The client is openai-python, without retries of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.faults.kit import CHEAP, MODEL, PRICE, FaultyPool, expected, faulty_pool
from tests.faults.streams import Seen, stream

pytestmark = pytest.mark.timeout(180)
TOKENS = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyPool]:
    with faulty_pool(tmp_path_factory.mktemp("faults"), [CHEAP, PRICE], proxied=True) as pool:
        yield pool


@pytest.fixture(autouse=True)
def healed(made: FaultyPool) -> Iterator[None]:
    """The first node is well, and the gateway believes it, before each fault."""
    node = made.nodes[0]
    node.engine_fault()
    node.network_fault()

    def well() -> bool:
        return all(served_first(made, f"well {number}") for number in range(4))

    made.until("the first node serves again", well, 90)
    yield
    node.engine_fault()
    node.network_fault()


def served_first(made: FaultyPool, text: str) -> bool:
    seen = stream(made, text, 5, 2)
    return seen.proof["node"] == made.nodes[0].facts["node"] and seen.proof["legs"] == 1


def whole(made: FaultyPool, seen: Seen, text: str, seed: int) -> None:
    """Complete: no token lost, repeated or altered, and one answer's price."""
    assert seen.error is None
    assert seen.text == expected(text, seed, TOKENS)
    assert seen.finish == "length"
    assert seen.proof["output_units"] == TOKENS
    assert seen.proof["node"] == made.nodes[1].facts["node"]
    node, wire = made.nodes[1], seen.proof["receipt"]
    assert int(seen.proof["cost_pico_usd"]) == (
        seen.proof["prompt_units"] * 150_000 + TOKENS * 600_000
    )
    assert wire is not None
    assert node.book()


@pytest.mark.parametrize("fault", ["refuse", "status 500", "status 429", "die 10", "stall 10"])
def test_the_network_fails(made: FaultyPool, fault: str) -> None:
    made.nodes[0].network_fault(fault)
    seen = stream(made, f"count {fault}", TOKENS, 7)
    whole(made, seen, f"count {fault}", 7)
    assert seen.proof["legs"] >= 2


@pytest.mark.parametrize("fault", ["hang 10", "fail 10"])
def test_the_engine_fails_behind_a_front_end_that_lives(made: FaultyPool, fault: str) -> None:
    made.nodes[0].engine_fault(fault)
    seen = stream(made, f"count {fault}", TOKENS, 7)
    whole(made, seen, f"count {fault}", 7)
    assert seen.proof["legs"] == 2


def test_a_slow_first_token_is_waited_for_while_the_engine_says_why(made: FaultyPool) -> None:
    """Its heartbeats say `prefill`: it is slow and not dead, and a second prefill costs money."""
    made.nodes[0].engine_fault("slow 5")
    seen = stream(made, "count slow", TOKENS, 7)
    assert seen.text == expected("count slow", 7, TOKENS)
    assert seen.proof["legs"] == 1


def test_where_nobody_can_go_on_there_is_an_error_and_no_clean_end(made: FaultyPool) -> None:
    """A stop text may be half held back inside the dead node, so that nobody can go on."""
    made.nodes[0].network_fault("die 10")
    seen = stream(made, "count on", TOKENS, 7, stop=["never said"])
    assert seen.error in ("node_failed", "timeout")
    assert seen.finish is None
    assert not seen.done
    assert expected("count on", 7, TOKENS).startswith(seen.text)
    assert seen.text


def test_a_whole_answer_is_made_again_elsewhere_even_then(made: FaultyPool) -> None:
    """Nothing of it was delivered yet."""
    made.nodes[0].network_fault("die 10")
    with made.client() as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "count whole"}],
            max_tokens=TOKENS,
            seed=7,
            stop=["never said"],
        )
    assert answer.choices[0].message.content == expected("count whole", 7, TOKENS)


def test_the_client_raises_where_both_nodes_fail(made: FaultyPool) -> None:
    for node in made.nodes:
        node.engine_fault("fail 0")
    try:
        with made.client() as client, pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=4
            )
        assert raised.value.status_code == 502
    finally:
        made.nodes[1].engine_fault()


def test_in_the_end_both_sides_hold_the_same_receipts(made: FaultyPool) -> None:
    made.nothing_held()
    assert made.books_agree() > 0
