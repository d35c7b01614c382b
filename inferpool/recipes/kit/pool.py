"""Scores bought from a pool by tritonclient; a pool is started when none runs that has the models.

The receipts are in the gateway's book, which its operator may read; here that is ourselves.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from inferpool.daemon.pool import Pool, start_pool
from inferpool.home import Home
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Unavailable
from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.scorer import Answer, request_hash, triton_input

_TIMEOUT_S: Final = 60.0
_BOOK_BYTES: Final = 1 << 24
TOLD_MAX: Final = 50  # the gateway's book shows its last 100 attempts


class PoolScorer:
    """A gateway on this machine, asked with the standard client of the Open Inference Protocol.

    Any thread may ask: each has a client of its own.
    """

    name = "pool"

    def __init__(
        self, url: str, home: Home, timeout_s: float = _TIMEOUT_S, first: str = ""
    ) -> None:
        self._url, self._home, self._timeout_s = url, home, timeout_s
        self._headers = {
            "Authorization": f"Bearer {home.secret('api-key')}",
            "Inferpool-Receipts": "signed",  # each by itself: a decision's audit stands alone
        }
        if first:  # the address of a node to ask before all others
            wanted = {"provider": {"order": [first]}}
            self._headers["Inferpool-Provider"] = orjson.dumps(wanted).decode()
        self._mine = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self._mine, "client"):  # those of other threads end with them
            self._mine.client.close()

    def openai(self) -> Any:
        """OpenAI's client at the same gateway, for speech and language."""
        from openai import OpenAI

        key = self._home.secret("api-key")
        wishes = {name: value for name, value in self._headers.items() if name != "Authorization"}
        return OpenAI(
            base_url=f"{self._url}/v1", api_key=key, timeout=300.0, default_headers=wishes
        )

    def proofs(self, model: str) -> dict[str, dict[str, Any]]:
        """The last paid attempts by the hash of what was asked."""
        paid = [item for item in self.book() if item["model"] == model and item["proof"]]
        return {item["proof"]["receipt"]["requestHash"]: item for item in reversed(paid)}

    @property
    def chain_id(self) -> int | None:
        """Of the chain that the receipts are signed for, where it runs here."""
        chain = self._home.running("chain")
        return int(str(chain["chain_id"])) if chain else None

    def infer(self, model: str, name: str, rows: Array) -> Sample:
        """One paid request."""
        import tritonclient.http as triton

        if not hasattr(self._mine, "client"):
            self._mine.client = triton.InferenceServerClient(
                self._url.removeprefix("http://"), network_timeout=self._timeout_s
            )
        tensor = triton_input(name, rows)
        # A copy: tritonclient writes the length of its body into what it is given.
        answer = self._mine.client.infer(model, [tensor], headers=dict(self._headers))
        names = [output.name for output in catalogue.load(model).outputs]
        return {output: answer.as_numpy(output) for output in names}

    def told(
        self, model: str, name: str, rows: Sequence[Array], answers: Sequence[Sample]
    ) -> list[Answer]:
        """The answers with the node and its receipt, found by the hash of what was asked. Call it
        soon: the book is short. Raises `Unavailable` where one has no receipt."""
        assert len(answers) <= TOLD_MAX
        booked: dict[str, list[dict[str, Any]]] = {}
        for item in reversed(self.book()):
            if item["model"] == model and item["proof"]:
                booked.setdefault(item["proof"]["receipt"]["requestHash"], []).append(item)
        found = []
        for row, outputs in zip(rows, answers, strict=True):
            same = booked.get(to_hex(request_hash(name, row)))
            if not same:
                raise Unavailable(f"the gateway's book has no receipt for an answer of {model}")
            found.append(_answer(outputs, same.pop(), self.chain_id))
        return found

    def book(self) -> list[dict[str, Any]]:
        """The gateway's last attempts, the newest first."""
        attempts: list[dict[str, Any]] = self.status()["attempts"]
        return attempts

    def status(self) -> dict[str, Any]:
        """What the gateway tells its operator."""
        request = urllib.request.Request(  # noqa: S310 - a gateway on this machine
            f"{self._url}/inferpool/status",
            headers={"Authorization": f"Bearer {self._home.secret('control-token')}"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            found: dict[str, Any] = orjson.loads(response.read(_BOOK_BYTES))
        return found


def _answer(outputs: Sample, attempt: dict[str, Any], chain_id: int | None) -> Answer:
    proof = attempt["proof"]
    receipt = proof["receipt"]
    return Answer(outputs, receipt["manifest"], receipt["class"], attempt["node"], proof, chain_id)


@dataclass(slots=True)
class LocalPool:
    """A pool of our own: chain, gateway and a node, and further nodes with homes of their own."""

    first: Pool
    more: list[Pool]

    @property
    def url(self) -> str:
        """The gateway's."""
        return self.first.running["gateway"].url

    def client(self, timeout_s: float = _TIMEOUT_S, first: str = "") -> PoolScorer:
        """A client; one for each thread. `first`: the node that it wants before all others."""
        return PoolScorer(self.url, self.first.home, timeout_s, first)

    @property
    def node(self) -> str:
        """The address of the first node, which `kill_node` kills."""
        return str(self.first.running["node"].facts["node"])

    def kill_node(self) -> str:
        """End the first node as a power cut would; returns its address."""
        node = self.first.running["node"]
        node.process.kill()
        node.process.wait()
        return self.node


@contextmanager
def open_pool(models: Sequence[str]) -> Iterator[PoolScorer]:
    """A scorer at the running pool, if it serves these models, else at one of its own."""
    home = Home.of()
    gateway, node = home.running("gateway"), home.running("node")
    offered = node.get("models", ()) if node else ()
    if gateway and isinstance(offered, list) and set(models) <= set(offered):
        with PoolScorer(str(gateway["url"]), home) as scorer:
            yield scorer
        return
    with own_pool(models) as pool, pool.client() as scorer:
        yield scorer


@contextmanager
def own_pool(models: Sequence[str], nodes: int = 1) -> Iterator[LocalPool]:
    """A pool in a folder of its own, at free ports, that serves just these models."""
    store, models = Store(), list(dict.fromkeys(models))  # an offer names a model once
    for model in models:
        pull_model(store, catalogue.load(model))
    root = Path(tempfile.mkdtemp(prefix="inferpool-recipe-"))
    flags = {"chain.port": 0, "node.port": 0, "gateway.port": 0, "node.models": list(models)}
    try:
        with ExitStack() as stack:
            first = start_pool(Home(root / "first"), flags)
            stack.callback(first.close)
            pool = LocalPool(first, [])
            for number in range(1, nodes):
                more = {
                    "chain.url": first.running["chain"].url,
                    "node.port": 0,
                    "node.models": list(models),
                    "node.gateways": [pool.url],
                }
                pool.more.append(Pool(Home(root / f"node-{number}"), more))
                stack.callback(pool.more[-1].close)
                pool.more[-1].start("node")
            with pool.client() as scorer:
                _until_known(scorer, nodes)
            yield pool
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _until_known(scorer: PoolScorer, nodes: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while sum(bool(node["alive"]) for node in scorer.status()["nodes"]) < nodes:
        if time.monotonic() > deadline:
            raise Unavailable(f"the gateway does not know {nodes} nodes after {_TIMEOUT_S:g} s")
        time.sleep(0.1)
