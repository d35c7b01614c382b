"""A node that waits at two relays, each a process: one of them dies, hangs or forgets the node.

The client asks by openai-python, without retries of its own, and sees one whole answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from inferpool.protocol.encoding import from_hex
from inferpool.transport.base import ConnectFailed
from inferpool.transport.http import open_transport
from tests.faults.kit import MODEL, PRICE, FaultyPool, expected, faulty_pool, first_line, free_port
from tests.faults.streams import stream

pytestmark = pytest.mark.timeout(180)
TOKENS = 150  # a stream of 1.5 s


@dataclass(slots=True)
class RelayProcess:
    """A relay in a home of its own, always on the same port."""

    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = orjson.dumps({"relay.port": self.port, "relay.host": "127.0.0.1"}).decode()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferpool.daemon", "relay", flags],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            env={**os.environ, "INFERPOOL_HOME": str(self.root)},
        )
        first_line(self.process, "the relay")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            self.process = None


@dataclass(slots=True)
class Made:
    pool: FaultyPool
    relays: tuple[RelayProcess, RelayProcess]

    def endpoints(self) -> list[dict[str, Any]]:
        url = self.pool.nodes[0].facts["url"]
        offer = httpx.get(f"{url}/.well-known/inferpool/offer").json()["offer"]
        return list(offer["endpoints"])

    def waits_at(self, number: int) -> bool:
        """Whether the node can be reached by that relay now."""
        endpoint = self.endpoints()[number]

        async def ask() -> bool:
            pipe = open_transport(endpoint["url"], from_hex(endpoint["tlsSpki"], 32))
            try:
                answer = await pipe.request("GET", "/health", (), timeout_s=5)
                await answer.read(1 << 16)
                return answer.status == 200
            except ConnectFailed:
                return False
            finally:
                await pipe.close()

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("relays")
    relays = tuple(RelayProcess(root / f"relay-{at}", free_port()) for at in range(2))
    try:
        for relay in relays:
            relay.start()
        addresses = tuple(f"127.0.0.1:{relay.port}" for relay in relays)
        with faulty_pool(root, [PRICE], proxied=False, relays=addresses) as pool:
            yield Made(pool, (relays[0], relays[1]))
    finally:
        for relay in relays:
            relay.kill()


def whole_while(made: Made, text: str, what: Callable[[], None]) -> None:
    """A stream during which `what` happens: complete, and at one answer's price."""
    with made.pool.client() as client:
        chunks = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": text}],
            max_tokens=TOKENS,
            seed=7,
            stream=True,
        )
        said, finish, proof = "", None, {}
        for at, chunk in enumerate(chunks):
            if at == 20:
                what()
            choice = chunk.choices[0]
            said += choice.delta.content or ""
            finish = choice.finish_reason or finish
            proof = getattr(chunk, "inferpool", None) or proof
    assert said == expected(text, 7, TOKENS)
    assert finish == "length"
    assert proof["legs"] >= 2, "it was cut on its way"
    assert proof["output_units"] == TOKENS
    assert int(proof["cost_pico_usd"]) == proof["prompt_units"] * 150_000 + TOKENS * 600_000


def test_the_offer_names_every_relay(made: Made) -> None:
    ports = [item["url"].split("/")[2] for item in made.endpoints()]
    assert ports == [f"127.0.0.1:{relay.port}" for relay in made.relays]
    assert made.waits_at(0)
    assert made.waits_at(1)


def test_a_relay_dies_in_the_middle_of_a_stream(made: Made) -> None:
    first, _ = made.relays
    whole_while(made, "count on", first.kill)
    # It stays away: nothing waits for it, whichever relay the registry names.
    for number in range(3):
        seen = stream(made.pool, f"again {number}", 2, 5)
        assert (seen.text, seen.proof["legs"]) == (expected(f"again {number}", 5, 2), 1)
    assert made.pool.status()["nodes"][0]["alive"]
    first.start()
    made.pool.until("the node waits at it again", lambda: made.waits_at(0))


def test_a_relay_hangs_in_the_middle_of_a_stream(made: Made) -> None:
    made.pool.until("both relays have it", lambda: made.waits_at(0) and made.waits_at(1))
    _, second = made.relays
    try:
        whole_while(made, "hang on", lambda: second.signal(signal.SIGSTOP))
    finally:
        second.signal(signal.SIGCONT)


def test_in_the_end_both_sides_hold_the_same_receipts(made: Made) -> None:
    made.pool.nothing_held()
    assert made.pool.books_agree() > 0
