"""A model that Ray Serve runs, sold by a node: by URL, through Ray's own proxy and router."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import httpx
import poolkit
import pytest

from inferpool.engines.base import Tensor, TensorSpec
from inferpool.engines.oip import OipEngine
from inferpool.protocol.errors import BadRequest, Unavailable

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]


def tensor(*rows: tuple[float, float, float, float]) -> Tensor:
    numbers = [number for row in rows for number in row]
    return Tensor("x", "FP32", (len(rows), 4), struct.pack(f"<{len(numbers)}f", *numbers))


def sums(outputs: list[Tensor]) -> list[float]:
    (output,) = outputs
    return list(struct.unpack(f"<{output.shape[0]}f", output.data))


async def _many(url: str) -> None:
    engine = OipEngine(url, "sums", "fp32")
    await engine.start()
    try:
        assert engine.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
        assert engine.engine_class.startswith("oip@ray-serve-")

        async def caller(number: int) -> None:
            rows = [(float(number), float(row), 0.5, 1.0) for row in range(1 + number % 5)]
            expected = [number + row + 1.5 for row in range(len(rows))]
            assert sums(await engine.infer([tensor(*rows)], len(rows))) == expected

        await asyncio.gather(*map(caller, range(64)))
        with pytest.raises(BadRequest) as caught:
            await engine.infer([Tensor("y", "FP32", (1, 4), bytes(16))], 1)
        assert caught.value.code == "invalid_tensor"
    finally:
        await engine.close()


def test_its_answers_are_each_callers_own(url: str) -> None:
    asyncio.run(_many(url))


async def _killed(url: str) -> None:
    engine = OipEngine(url, "sums", "fp32")
    await engine.start()
    try:
        with pytest.raises(Unavailable) as caught:
            await engine.infer([tensor((-1, 0, 0, 0))], 1)
        assert caught.value.code in ("engine_failed", "engine_unavailable")
        answers = 0
        for _ in range(600):  # Ray starts another replica meanwhile
            try:
                answers += sums(await engine.infer([tensor((1, 2, 3, 4))], 1)) == [10]
            except Unavailable:
                await asyncio.sleep(0.1)
            if answers == 20:
                break
        assert answers == 20
    finally:
        await engine.close()


def test_a_replica_that_dies_is_an_honest_error_and_no_end(url: str) -> None:
    asyncio.run(_killed(url))


MANIFEST = """
name = "sums"
task = "tensor"
engine = "oip"
licence = "Apache-2.0"
description = "Sums of four numbers."
unit = "row"
[limits]
max_rows = 64
[class]
quant = "f32"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[outputs]]
name = "sum"
datatype = "FP32"
shape = [-1, 1]
"""


def test_a_node_sells_it(url: str, tmp_path: Path) -> None:
    """Through the whole pool, paid by row."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "sums.toml").write_text(MANIFEST)
    flags = {
        **poolkit.FREE_PORTS,
        "node.manifests": str(manifests),
        "node.models": ["sums"],
        "node.upstreams": [f"sums {url}"],
        "node.prices": ["sums 0.5"],
    }
    running = poolkit.start(tmp_path / "home", flags)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1] * 8}]}
    try:
        answer = httpx.post(
            f"{running.url()}/v2/models/sums/infer", json=body, headers=running.headers, timeout=60
        )
        assert answer.json()["outputs"][0]["data"] == [4, 4]
        assert running.books_agree() == 2 * 500_000, "two rows at 0.5 USD a million"
    finally:
        running.pool.close()
