"""kill -9 in the middle of a stream: the client hears the truth, and both ledgers agree after it.

One pool for all of them; each test takes it whole and leaves it whole.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import orjson
import poolkit
import pytest
from poolkit import CHAT, LONG_STORY, Running, until

from inferpool.protocol.receipt import Outcome, SignedReceipt

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A pool that is killed piece by piece; each role comes back at the port that it had."""
    flags: dict[str, object] = {f"{role}.port": poolkit.free_port() for role in poolkit.ROLES}
    running = poolkit.start(tmp_path_factory.mktemp("crashes"), flags)
    yield running
    pids = running.pids
    assert set(running.pool.close().values()) == {0}
    poolkit.all_gone(pids)


@contextmanager
def streaming(pool: Running, max_tokens: int = 1000) -> Iterator[tuple[str, Iterator[str]]]:
    """The request id and the events of a long answer, by plain HTTP."""
    body = {"model": CHAT, "messages": LONG_STORY, "max_tokens": max_tokens, "stream": True}
    url = f"{pool.url()}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=pool.headers, timeout=30) as answer:
        assert answer.status_code == 200
        data = poolkit.events(answer.iter_lines())
        yield answer.headers["x-request-id"], iter(data)


def take(data: Iterator[str], count: int) -> list[Any]:
    return [orjson.loads(next(data)) for _ in range(count)]


def honest_end(data: Iterator[str]) -> dict[str, Any]:
    """The rest of a broken stream: chunks, then one error event, and no [DONE]."""
    rest = list(data)
    assert "[DONE]" not in rest
    *chunks, last = [orjson.loads(item) for item in rest]
    assert all("error" not in chunk for chunk in chunks)
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)
    assert last.keys() == {"error"}
    error: dict[str, Any] = last["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    return error


def attempts(pool: Running, request_id: str) -> list[dict[str, Any]]:
    found = pool.status()["attempts"]
    return [item for item in found if item["client_request_id"] == request_id]


def nothing_open(pool: Running) -> None:
    """No money is held or unresolved, on any channel or account."""

    def look() -> bool:
        status = pool.status()
        return not any(
            item[name]
            for group, names in (
                ("channels", ("held_base_units", "unresolved_base_units")),
                ("accounts", ("held_pico_usd",)),
            )
            for item in status[group]
            for name in names
        )

    until("nothing is held or unresolved", look, 15)


def test_node_dies_in_mid_stream_and_comes_back(own: Running) -> None:
    dies_and_comes_back(own)


def dies_and_comes_back(own: Running) -> None:
    engine = own.engine
    with streaming(own) as (request_id, data):
        chunks = take(data, 5)
        own.kill("node")
        error = honest_end(data)
    assert all(chunk["choices"] for chunk in chunks)
    assert error["code"] in ("node_failed", "timeout")
    poolkit.all_gone([engine])
    own.pool.start("node")
    answer = own.serves(within_s=10)
    assert own.checked(answer.json()["inferpool"]).outcome is Outcome.COMPLETE
    nothing_open(own)
    made = attempts(own, request_id)
    states = [item["state"] for item in made]
    assert states.count("failed") >= 1, states  # the dying socket may take a second one
    assert set(states) <= {"failed", "refused"}, "nothing was charged, and no other node was there"
    assert [item["charge_pico_usd"] for item in made] == [0] * len(made)
    assert own.books_agree() > 0


def test_openai_python_raises_where_the_node_dies(own: Running) -> None:
    with own.openai() as client:
        stream = client.chat.completions.create(
            model=CHAT,
            messages=LONG_STORY,  # type: ignore[arg-type]
            max_tokens=1000,
            stream=True,
        )
        got = [next(stream) for _ in range(5)]
        own.kill("node")
        with pytest.raises(openai.APIError) as caught:
            got.extend(stream)
    assert caught.value.code in ("node_failed", "timeout")
    assert all(chunk.choices for chunk in got)
    own.pool.start("node")
    own.serves()
    own.books_agree()


def test_gateway_dies_in_mid_stream_and_books_the_receipt_later(own: Running) -> None:
    own.books_agree()
    known = set(own.node_book())
    with own.openai(max_retries=0) as client:
        stream = client.chat.completions.create(
            model=CHAT,
            messages=LONG_STORY,  # type: ignore[arg-type]
            max_tokens=1000,
            stream=True,
        )
        for _ in range(5):
            assert next(stream).choices
        own.kill("gateway")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - a cut pipe, by whatever name
            list(stream)
        assert type(caught.value).__module__.split(".")[0] in ("openai", "httpx", "httpx2")
    fresh = until(
        "the node signs for the answer that was cut",
        lambda: set(own.node_book()) - known,
    )
    own.pool.start("gateway")
    assert own.books_agree() > 0
    (request_id,) = fresh
    found = [
        item for item in own.status()["attempts"] if item["request_id"] == "0x" + request_id.hex()
    ]
    assert [item["state"] for item in found] == ["settled"]
    receipt = SignedReceipt.from_wire(found[0]["proof"]).receipt
    assert receipt.outcome is Outcome.CANCELLED
    assert 4 <= receipt.output_units < 800
    assert found[0]["charge_pico_usd"] == receipt.charge_pico_usd > 0
    own.serves()
    own.books_agree()
    nothing_open(own)


def test_status_of_the_command_line_shows_it(own: Running) -> None:
    done = poolkit.inferpool("status", "--json", home=own.home)
    assert done.returncode == 0, done.stderr
    status = orjson.loads(done.stdout)
    assert all(status["roles"][role]["pid"] == own.pid(role) for role in status["roles"])
    outcomes = [
        item["proof"]["receipt"]["outcome"]
        for item in status["gateway"]["attempts"]
        if item["proof"]
    ]
    assert int(Outcome.CANCELLED) in outcomes
    assert sum(item["charged_pico_usd"] for item in status["gateway"]["channels"]) == (
        own.books_agree()
    )


def test_engine_dies_in_mid_stream_and_is_restarted(own: Running) -> None:
    engine = own.engine
    with streaming(own) as (request_id, data):
        take(data, 5)
        os.kill(engine, signal.SIGKILL)
        error = honest_end(data)
    assert error["code"] == "engine_failed"
    own.serves()
    assert own.engine != engine
    (attempt,) = attempts(own, request_id)
    assert attempt["state"] == "settled", "the node lived to sign for what was sent"
    receipt = SignedReceipt.from_wire(attempt["proof"]).receipt
    assert receipt.outcome is Outcome.FAILED
    assert 0 < receipt.output_units < 800
    own.books_agree()
    nothing_open(own)


def test_engine_dies_under_a_whole_answer(own: Running) -> None:
    engine, found = own.engine, []

    def ask() -> None:
        found.append(own.chat("Tell me everything about ships.", max_tokens=1000))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        until("the answer is under way", lambda: any(n["in_flight"] for n in own.status()["nodes"]))
        time.sleep(0.3)  # into the engine; earlier or later the error must be honest too
        os.kill(engine, signal.SIGKILL)
    finally:
        thread.join()
    (answer,) = found
    assert answer.status_code in (502, 503)
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.json()["error"]["code"] in ("engine_failed", "engine_unavailable")
    at_once = own.chat()
    assert at_once.status_code in (200, 502, 503), at_once.text
    if at_once.status_code != 200:
        assert at_once.json()["error"]["type"] == "server_error"
        assert int(at_once.headers["retry-after"]) >= 1
    own.serves()
    own.books_agree()


def test_chain_is_gone_for_a_while_and_service_goes_on(own: Running) -> None:
    """The chain is needed for deposits and claims, not for an answer on an open channel."""
    own.serves()
    own.kill("chain")
    assert own.chat().status_code == 200
    own.pool.start("chain")
    report = own.claim()
    assert report["left_out"] == []
    assert int(report["claimed_base_units"]) == own.books_agree() // 10**6


def test_node_comes_back_at_another_port(own: Running) -> None:
    """The registry is corrected by the node, and the gateway follows it there."""
    before = own.url("node")
    assert isinstance(own.pool.flags, dict)
    own.pool.flags["node.port"] = 0
    dies_and_comes_back(own)
    assert own.url("node") != before


def test_nothing_of_a_prompt_or_an_answer_was_written(own: Running) -> None:
    """After all these crashes: no prompt and no answer lies in any file of the pool."""
    for path in sorted(own.home.root.rglob("*")):
        if path.is_file():
            assert b"sailor and his ship" not in path.read_bytes(), path
            assert b"everything about ships" not in path.read_bytes(), path
