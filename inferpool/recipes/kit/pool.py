"""Scores bought from a pool by tritonclient; a pool is started when none runs that has the models.

The receipts are in the gateway's book, which its operator may read; here that is ourselves.
"""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import orjson

from inferpool.daemon.pool import Pool, start_pool
from inferpool.home import Home
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.protocol.errors import Unavailable
from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.scorer import Answer

_TIMEOUT_S: Final = 60.0
_BOOK_BYTES: Final = 1 << 24
TOLD_MAX: Final = 50  # the gateway's book shows its last 100 attempts


class PoolScorer:
    """A gateway on this machine, asked with the standard client of the Open Inference Protocol."""

    name = "pool"

    def __init__(self, url: str, home: Home) -> None:
        import tritonclient.http as triton

        self._triton = triton
        self._url, self._home = url, home
        self._headers = {"Authorization": f"Bearer {home.secret('api-key')}"}
        self._client = triton.InferenceServerClient(
            url.removeprefix("http://"), network_timeout=_TIMEOUT_S
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def infer(self, model: str, name: str, rows: Array) -> Sample:
        """One paid request."""
        tensor = self._tensor(name, rows)
        answer = self._client.infer(model, [tensor], headers=self._headers)
        names = [output.name for output in catalogue.load(model).outputs]
        return {output: answer.as_numpy(output) for output in names}

    def told(self, model: str, answers: Sequence[Sample]) -> list[Answer]:
        """The last answers with the node and its receipt. Call it before any other request."""
        assert len(answers) <= TOLD_MAX
        booked = [item for item in self.book() if item["model"] == model and item["proof"]]
        if len(booked) < len(answers):
            raise Unavailable(f"the gateway's book has {len(booked)} receipts of {model}")
        latest = reversed(booked[: len(answers)])
        return [_answer(outputs, item) for outputs, item in zip(answers, latest, strict=True)]

    def book(self) -> list[dict[str, Any]]:
        """The gateway's last attempts, the newest first."""
        request = urllib.request.Request(  # noqa: S310 - a gateway on this machine
            f"{self._url}/inferpool/status",
            headers={"Authorization": f"Bearer {self._home.secret('control-token')}"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            attempts: list[dict[str, Any]] = orjson.loads(response.read(_BOOK_BYTES))["attempts"]
        return attempts

    def _tensor(self, name: str, rows: Array) -> Any:
        if rows.dtype == object:
            tensor = self._triton.InferInput(name, list(rows.shape), "BYTES")
            encoded = [[str(text).encode() for text in row] for row in rows.tolist()]
            tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_).reshape(rows.shape))
        else:
            tensor = self._triton.InferInput(name, list(rows.shape), "FP32")
            tensor.set_data_from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        return tensor


def _answer(outputs: Sample, attempt: dict[str, Any]) -> Answer:
    proof = attempt["proof"]
    receipt = proof["receipt"]
    return Answer(outputs, receipt["manifest"], receipt["class"], attempt["node"], proof)


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
    with _own_pool(models) as pool, PoolScorer(pool.running["gateway"].url, pool.home) as scorer:
        yield scorer


@contextmanager
def _own_pool(models: Sequence[str]) -> Iterator[Pool]:
    """A pool in a folder of its own, at free ports, that serves just these models."""
    store = Store()
    for model in models:
        pull_model(store, catalogue.load(model))
    home = Home(Path(tempfile.mkdtemp(prefix="inferpool-recipe-")))
    flags = {"chain.port": 0, "node.port": 0, "gateway.port": 0, "node.models": list(models)}
    try:
        pool = start_pool(home, flags)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        shutil.rmtree(home.root, ignore_errors=True)
