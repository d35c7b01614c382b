"""A real pool of several nodes, each process its own, each able to fail on command."""

from __future__ import annotations

import os
import select
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import orjson

from inferpool.cli.status import gateway_status
from inferpool.daemon.pool import Pool
from inferpool.engines.base import Sampling, TextCall
from inferpool.engines.fake import prompt_text, token_id, token_text
from inferpool.home import Home

MODEL = "fake-chat"
PRICE = ("0.15", "0.6")  # USD per million tokens in and out
CHEAP = ("0.01", "0.01")  # so much that this node always comes first
START_S = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def expected(content: str, seed: int, count: int) -> str:
    """What the fake engine says, whichever nodes say it."""
    call = TextCall(({"role": "user", "content": content},), None, count, Sampling(seed))
    return "".join(token_text(token_id(prompt_text(call), seed, at)) for at in range(count))


def first_line(process: subprocess.Popen[bytes], what: str) -> bytes:
    """What a process says when it is ready."""
    assert process.stdout is not None, "it is a pipe"
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else b""
    assert line, f"{what} did not start"
    return line


@dataclass(slots=True)
class FaultyNode:
    """A node in a home of its own; `proxied`: others reach it through a process that breaks the
    network."""

    root: Path
    chain: dict[str, object]  # what the chain's process announced
    price_in: str  # USD per million tokens
    price_out: str
    proxied: bool = False
    relays: tuple[str, ...] = ()  # where it waits for callers; others reach it in no other way
    port: int = field(default_factory=free_port)
    proxy_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    proxy: subprocess.Popen[bytes] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Home:
        return Home(self.root)

    def engine_fault(self, fault: str = "") -> None:
        """From the next call on."""
        (self.root / "engine").write_text(fault)

    def network_fault(self, fault: str = "") -> None:
        """From the next request on."""
        (self.root / "network").write_text(fault)

    def start(self) -> None:
        """Start its process, or start it again over the same ledger, and wait until it serves."""
        self.home.announce("chain", self.chain)
        own = f"http://127.0.0.1:{self.port}"
        flags = {
            "node.port": self.port,
            "node.models": [MODEL],
            "node.slots": 64,
            "node.price_in_usd_per_million": self.price_in,
            "node.price_out_usd_per_million": self.price_out,
            "node.endpoint": f"http://127.0.0.1:{self.proxy_port}" if self.proxied else own,
            "node.relays": list(self.relays),
        }
        if self.proxied and self.proxy is None:
            words = [str(self.proxy_port), str(self.port), str(self.root / "network")]
            self.proxy = self._run("tests.faults.proxy", *words)
            first_line(self.proxy, "the proxy")
        control = str(self.root / "engine")
        self.process = self._run("tests.faults.node", control, orjson.dumps(flags).decode())
        self.facts = orjson.loads(first_line(self.process, "the node"))

    def _run(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdout=subprocess.PIPE,
                stdin=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "INFERPOOL_HOME": str(self.root)},
            )

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None, "it runs"
        _end(self.process)
        self.process = None

    def close(self) -> None:
        """Kill what still runs."""
        for process in (self.process, self.proxy):
            if process is not None:
                _end(process)

    def book(self) -> dict[bytes, int]:
        """Request id -> charge in pico-USD, by its ledger on disk."""
        query = "SELECT request_id, charge_pico_usd FROM payee_receipts"
        return {row[0]: int(row[1]) for row in rows(self.home.ledger("node"), query)}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What a ledger on disk says, read beside its owner."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as book:
        return book.execute(query).fetchall()


@dataclass(slots=True)
class FaultyPool:
    """Chain, gateway and nodes."""

    pool: Pool
    nodes: list[FaultyNode]

    @property
    def gateway_url(self) -> str:
        return self.pool.running["gateway"].url

    @property
    def api_key(self) -> str:
        return self.pool.home.secret("api-key")

    def client(self, **options: Any) -> openai.OpenAI:
        base = {"base_url": f"{self.gateway_url}/v1", "api_key": self.api_key, "max_retries": 0}
        return openai.OpenAI(**{**base, "timeout": 60, **options})

    def status(self) -> dict[str, Any]:
        return gateway_status(self.pool.home)

    def until(self, what: str, look: Any, within_s: float = 30.0) -> Any:
        """The first true answer of `look`."""
        deadline = time.monotonic() + within_s
        while not (found := look()):
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
            time.sleep(0.05)
        return found

    def living(self, count: int) -> None:
        """Wait until that many nodes have a lease."""
        self.until(
            f"{count} nodes live",
            lambda: sum(item["alive"] for item in self.status()["nodes"]) >= count,
        )

    def gateway_book(self) -> dict[bytes, int]:
        """Request id -> charge in pico-USD, by the gateway's ledger on disk."""
        query = "SELECT request_id, charge_pico_usd FROM attempts WHERE state = 'settled'"
        path = self.pool.home.ledger("gateway")
        return {row[0]: int(row[1]) for row in rows(path, query)}

    def books_agree(self) -> int:
        """Wait until the ledgers hold the same receipts; returns their sum in pico-USD."""

        def look() -> bool:
            theirs: dict[bytes, int] = {}
            for node in self.nodes:
                theirs |= node.book()
            return theirs == self.gateway_book()

        self.until("both sides hold the same receipts", look, 60.0)
        return sum(self.gateway_book().values())

    def nothing_held(self) -> None:
        """Wait until no money is held or unresolved."""

        def look() -> bool:
            status = self.status()
            open_ = [c["held_base_units"] + c["unresolved_base_units"] for c in status["channels"]]
            return not any(open_) and not any(a["held_pico_usd"] for a in status["accounts"])

        self.until("nothing is held or unresolved", look, 60.0)


@contextmanager
def faulty_pool(
    root: Path,
    prices: list[tuple[str, str]],
    *,
    proxied: bool,
    relays: tuple[str, ...] = (),
    **more: object,
) -> Iterator[FaultyPool]:
    """A pool with a node for each price; only the first one is behind a proxy. `more`: settings
    of the gateway."""
    home = Home(root / "gateway")
    flags: dict[str, object] = {"chain.port": 0, "gateway.port": 0}
    flags["gateway.value_of_time_usd_per_hour"] = "0"
    flags |= {f"gateway.{name}": value for name, value in more.items()}
    pool = Pool(home, flags)
    nodes: list[FaultyNode] = []
    try:
        pool.start("chain")
        chain = home.running("chain")
        assert chain is not None, "it was just started"
        for number, price in enumerate(prices):
            place = root / f"node-{number}"
            place.mkdir()
            first = proxied and not number
            nodes.append(FaultyNode(place, chain, *price, proxied=first, relays=relays))
            nodes[-1].start()
        pool.start("gateway")
        made = FaultyPool(pool, nodes)
        made.living(len(prices))
        yield made
    finally:
        for node in nodes:
            node.close()
        pool.close()
