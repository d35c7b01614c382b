"""`inferpool gateway --workers 2` for real: one is killed under load, and every sum agrees."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from inferpool.daemon.workers import Crew, Worker
from inferpool.payments.database import Location
from inferpool.protocol.encoding import parse
from inferpool.protocol.voucher import ChannelConfig
from tests.faults.kit import MODEL, PRICE, FaultyPool, faulty_pool

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        "INFERPOOL_TEST_POSTGRESQL" not in os.environ,
        reason="races of real workers, half a minute each: make test-postgres",
    ),
]


def rows(location: Location, query: str) -> list[Any]:
    """What the book says, read beside its owners."""
    url = str(location).replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url if "://" in url else f"sqlite:///{location}")
    with engine.connect() as connection:
        found = list(connection.execute(text(query)).all())
    engine.dispose()
    return found


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        found += [int(item) for item in (task / "children").read_text().split()]
    return found


def inferpool(pool: FaultyPool, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "inferpool", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "INFERPOOL_HOME": str(pool.pool.home.root)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(pool: FaultyPool, key: str, content: str = "hello", **more: Any) -> httpx.Response:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 10,
        **more,
    }
    headers = {"authorization": f"Bearer {key}"}
    url = f"{pool.gateway_url}/v1/chat/completions"
    with httpx.Client(timeout=60) as client:
        return client.post(url, json=body, headers=headers)


@pytest.fixture
def pool(location: Location, tmp_path: Path) -> Iterator[FaultyPool]:
    """Two workers before two nodes."""
    db = str(location) if "://" in str(location) else ""
    with faulty_pool(tmp_path, [PRICE, PRICE], proxied=False, workers=2, db=db) as made:
        yield made


@pytest.fixture
def book(location: Location, pool: FaultyPool) -> Location:
    """Where their book is."""
    return location if "://" in str(location) else pool.pool.home.ledger("gateway")


@contextmanager
def load(pool: FaultyPool, key: str, threads: int = 6) -> Iterator[list[int]]:
    """Clients that ask and ask; the statuses that they got, 0 for a connection that broke."""
    stop, found = threading.Event(), list[int]()

    def client(number: int) -> None:
        while not stop.is_set():
            try:
                answer = ask(pool, key, f"hello {number}", stream=bool(number % 2))
                found.append(answer.status_code)
            except httpx.TransportError:
                found.append(0)

    running = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in running:
            thread.join()


def until(what: str, look: Callable[[], Any], within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)
    return found


def test_one_of_two_workers_is_killed_under_load(pool: FaultyPool, book: Location) -> None:
    key = inferpool(pool, "keys", "create", "web", "--budget", "1", "--concurrent", "100")["key"]
    until("both workers answer", lambda: len(lanes_used(book, pool, key)) == 2)
    supervisor = pool.pool.running["gateway"].process.pid
    before = children(supervisor)
    assert len(before) == 2
    with load(pool, key) as found:
        until("load runs", lambda: len(found) > 20)
        os.kill(before[0], signal.SIGKILL)
        fresh = until(
            "another worker takes its place",
            lambda: [pid for pid in children(supervisor) if pid not in before],
        )
        until("it serves on", lambda: len(found) > 120)
    assert len(fresh) == 1
    assert found.count(200) > 100
    # Broken connections are those of the dead one; nobody else heard of it but by 5xx.
    assert set(found) <= {0, 200, 502, 503}

    def theirs() -> dict[bytes, int]:
        joined: dict[bytes, int] = {}
        for node in pool.nodes:
            joined |= node.book()
        return joined

    def ours() -> dict[bytes, int]:
        query = "SELECT request_id, charge_pico_usd FROM attempts WHERE state = 'settled'"
        return {bytes(row[0]): int(row[1]) for row in rows(book, query)}

    until("both sides hold the same receipts", lambda: theirs() == ours())
    billed = rows(book, "SELECT billed_pico_usd FROM attempts WHERE account = 'web'")
    spent = rows(
        book,
        "SELECT s.total FROM spending s JOIN accounts a ON a.key_hash = s.owner"
        " WHERE a.name = 'web'",
    )
    assert len(spent) == 2, "each lane wrote its own"
    total = sum(int(row[0]) for row in billed)
    assert sum(int(row[0]) for row in spent) == total > 0
    until(
        "nothing is reserved or running any more",
        lambda: all(row == ("0", 0) for row in rows(book, "SELECT held, running FROM reserved")),
    )
    shown = inferpool(pool, "keys", "show", "web")
    assert round(float(shown["spent_usd"]) * 10**12) == total
    assert (shown["held_usd"], shown["running"]) == ("0", 0)
    used = inferpool(pool, "usage", "--by", "key")["rows"]
    (web,) = [row for row in used if row["key"] == "web"]
    assert round(float(web["price_usd"]) * 10**12) == total
    signers_are_apart(book)
    told_as_one(pool, book)


def test_metrics_are_those_of_all_workers(pool: FaultyPool, book: Location) -> None:
    key = inferpool(pool, "keys", "create", "web", "--budget", "1")["key"]
    until("both workers answer", lambda: len(lanes_used(book, pool, key)) == 2)
    settled = "SELECT COUNT(*) FROM attempts WHERE state = 'settled'"

    def counted() -> dict[str, str]:
        page = httpx.get(f"{pool.gateway_url}/metrics", timeout=60).text
        return dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))

    for _ in range(6):  # whichever of them answers
        found = counted()
        receipts = [v for name, v in found.items() if "_receipts_total" in name and MODEL in name]
        assert sum(map(int, receipts)) == rows(book, settled)[0][0] >= 8
        assert found["inferpool_gateway_nodes"] == "2"


def told_as_one(pool: FaultyPool, book: Location) -> None:
    """The operator sees, and moves, the channels of both, whichever of them is asked."""
    known = {
        "0x" + bytes(row[0]).hex() for row in rows(book, "SELECT channel_id FROM payer_channels")
    }
    assert len(known) >= 3
    for _ in range(4):
        assert {item["channel"] for item in pool.status()["channels"]} == known
        listed = inferpool(pool, "channels")["channels"]
        assert {item["channel"] for item in listed} >= known
    for channel in sorted(known):
        (moved,) = inferpool(pool, "channels", "withdraw", channel)["channels"]
        assert (moved["channel"], moved["way_back"]) == (channel, "pending")


def lanes_used(book: Location, pool: FaultyPool, key: str) -> set[str]:
    """Lanes that have served so far, after eight more at once: a lone caller may always come to
    the worker that waited last."""
    found: list[int] = []
    asked = [
        threading.Thread(target=lambda: found.append(ask(pool, key).status_code)) for _ in range(8)
    ]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert found == [200] * 8
    return {row[0] for row in rows(book, "SELECT lane FROM attempts")}


def signers_are_apart(book: Location) -> None:
    """No channel has two lanes, and no voucher key signs in two."""
    keys: dict[bytes, set[str]] = {}
    for config, lane in rows(book, "SELECT config, lane FROM payer_channels"):
        signer = ChannelConfig.from_wire(parse(bytes(config), 4096)).payer_authorizer
        keys.setdefault(signer, set()).add(lane)
    assert len(keys) == 2
    assert all(len(lanes) == 1 for lanes in keys.values())


def test_a_retry_that_comes_to_another_worker_is_answered_once_more_and_billed_once(
    pool: FaultyPool, book: Location
) -> None:
    key = inferpool(pool, "keys", "create", "web")["key"]
    until("both workers answer", lambda: len(lanes_used(book, pool, pool.api_key)) == 2)

    def again(**headers: str) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "again"}]}
        url = f"{pool.gateway_url}/v1/chat/completions"
        with httpx.Client(timeout=60) as client:  # a connection of its own: either worker's
            sent = {"authorization": f"Bearer {key}", **headers}
            return client.post(url, json=body, headers=sent)

    def billed() -> int:
        return len(rows(book, "SELECT 1 FROM attempts WHERE account = 'web' AND seq > 0"))

    first = again(**{"x-stainless-retry-count": "0"})
    retries = [again(**{"x-stainless-retry-count": "1"}) for _ in range(12)]
    assert {answer.content for answer in retries} == {first.content}
    assert {answer.headers["inferpool-replayed"] for answer in retries} == {"1"}
    assert billed() == 1

    # Many at once under one key: one of them is served, whichever workers they come to.
    found: list[httpx.Response] = []
    asks = [
        threading.Thread(target=lambda: found.append(again(**{"idempotency-key": "once"})))
        for _ in range(12)
    ]
    for thread in asks:
        thread.start()
    for thread in asks:
        thread.join()
    assert {answer.status_code for answer in found} == {200}
    assert len({answer.json()["id"] for answer in found}) == 1
    assert billed() == 2

    other = {"model": MODEL, "messages": [{"role": "user", "content": "another"}]}
    for _ in range(4):
        with httpx.Client(timeout=60) as client:
            url = f"{pool.gateway_url}/v1/chat/completions"
            sent = {"authorization": f"Bearer {key}", "idempotency-key": "once"}
            assert client.post(url, json=other, headers=sent).status_code == 409
            # A stranger who says that it is a neighbour is a client like any other.
            sent = {"inferpool-neighbour": "0x" + "00" * 24 + " 1", "idempotency-key": "once"}
            assert client.post(url, json=other, headers=sent).status_code == 401


async def test_a_worker_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As while an upgrade replaces the interpreter, or where no process is left to be had."""
    interpreter = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(interpreter))
    pipe = subprocess.PIPE
    handle, other = os.pipe()
    first = subprocess.Popen(["true"], stdin=pipe, stdout=pipe)
    crew = Crew(Worker(1, 2, handle), first)
    keeping = asyncio.create_task(crew.keep())
    try:
        while "cannot be started" not in caplog.text and not keeping.done():  # noqa: ASYNC110 - another's progress
            await asyncio.sleep(0.01)
        assert not keeping.done()
        fresh = tmp_path / "fresh"
        fresh.write_text("#!/bin/sh\necho '{}'\nexec cat\n")
        fresh.chmod(0o700)
        fresh.replace(interpreter)
        while crew.process is first:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await crew.stop()
        os.close(handle)
        os.close(other)
