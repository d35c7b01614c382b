"""Chat through our paid node against the engine's own HTTP, in front of one engine process.

The same request by turns, each with the voucher and the receipt that a stranger's would have. A
pair is one call each way; what counts is the median of the pairs' differences and ratios.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from bench.drive import Purse
from inferpool.models import catalogue
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.price import maximum
from inferpool.transport.http import HttpTransport
from inferpool.transport.sse import Event, events

MODEL = "smollm2-135m-instruct"
TOKENS = 64
PATH = "/v1/chat/completions"
_TEXT = b'"content":"'


def weights() -> Path:
    """The small model's file, fetched where it is not on disk yet."""
    manifest, store = catalogue.load(MODEL), Store()
    pull_model(store, manifest, prefer=preferred())
    return store.path(manifest.files[0])


def body_of(pair: int) -> bytes:
    """A chat with a long answer; both calls of a pair are the same."""
    prompt = f"Write a long story about ship number {pair + 100} and its crew."
    return orjson.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "seed": 7,
            "stream": True,
        }
    )


async def once(url: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Any:
    """First token and whole answer, in ms, on a connection of its own: the engine closes those
    that are idle for five seconds."""
    pipe = HttpTransport(url)
    begun, first = time.perf_counter(), 0.0
    try:
        response = await pipe.request("POST", PATH, headers, body, timeout_s=60)
        assert response.status == 200, await response.read(10_000)
        async for item in events(response):
            if isinstance(item, Event) and _TEXT in item.data and _TEXT + b'"' not in item.data:
                first = first or time.perf_counter() - begun
        return 1000 * first, 1000 * (time.perf_counter() - begun)
    finally:
        await pipe.close()


async def _measure(facts: dict[str, Any], purse: Purse, pairs: int) -> dict[str, Any]:
    key = [
        (b"authorization", facts["engine"]["key"].encode()),
        (b"content-type", b"application/json"),
    ]
    direct, through = [], []
    for pair in range(-2, pairs):
        body = body_of(pair)
        job = ChatRequest.parse(body).job
        assert maximum(job, purse.offer.services[0], 6) == 1, "the purse pays one base unit"
        for way in (0, 1) if pair % 2 else (1, 0):
            if way:
                seen = await once(facts["url"], purse.headers(), body)
            else:
                seen = await once(facts["engine"]["url"], key, body)
            if pair >= 0:
                (through if way else direct).append(seen)
    added = [ours[0] - theirs[0] for ours, theirs in zip(through, direct, strict=True)]
    slower = [ours[1] / theirs[1] for ours, theirs in zip(through, direct, strict=True)]
    return {
        "pairs": pairs,
        "tokens": TOKENS,
        "engine": [statistics.median(item) for item in zip(*direct, strict=True)],
        "node": [statistics.median(item) for item in zip(*through, strict=True)],
        "first_added_ms": statistics.median(added),
        "tokens_per_s_lost": 1 - 1 / statistics.median(slower),
    }


def measure(pairs: int) -> dict[str, Any]:
    """So many pairs of calls."""
    from bench.serving import started

    with (
        tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder,
        started("paid", weights(), Path(folder)) as (facts, purse, _),
    ):
        assert purse is not None, "a paid row has one"
        return asyncio.run(_measure(facts, purse, pairs))


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    if not report:
        return ""
    rows = [f"{'chat: ' + MODEL:32}{'first token ms':>16}{'whole answer ms':>17}"]
    for name, key in (("the engine's own HTTP", "engine"), ("through the node, paid", "node")):
        first, whole = report[key]
        rows.append(f"{name:32}{first:16.1f}{whole:17.1f}")
    rows.append(
        f"medians of {report['pairs']} pairs of {report['tokens']} tokens: first token"
        f" {report['first_added_ms']:+.1f} ms, tokens/s lost {report['tokens_per_s_lost']:.1%}"
    )
    return "\n".join(rows)
