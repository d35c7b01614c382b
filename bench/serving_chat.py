"""Chat through our paid node against the engine's own HTTP, in front of one engine process.

The same request by turns, each with the voucher and the receipt that a stranger's would have: over
the engine's own HTTP, through the node, and through the node with log-probabilities, which the
engine sorts its vocabulary for. Of every round the first way is another; what counts is the median
of the rounds' differences and ratios. CPU is of every thread, kernel time included, and says most
on a machine that is not idle: engine and node share its cores.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.drive import Purse
from bench.tax import children, cpu_ns
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
DIRECT, THROUGH = "the engine's own HTTP", "through the node, paid"
LOGPROBS = "through the node, log-probabilities"
WAYS = [DIRECT, THROUGH, LOGPROBS]
_TEXT = b'"content":"'


def weights() -> Path:
    """The small model's file, fetched where it is not on disk yet."""
    manifest, store = catalogue.load(MODEL), Store()
    pull_model(store, manifest, prefer=preferred())
    return store.path(manifest.files[0])


def body_of(pair: int, more: dict[str, object]) -> bytes:
    """A chat with a long answer; all calls of a round have the same prompt."""
    prompt = f"Write a long story about ship number {pair + 100} and its crew."
    return orjson.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "seed": 7,
            "stream": True,
            **more,
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


@dataclass(frozen=True, slots=True)
class Spent:
    """One call: first token and whole answer in ms, CPU of engine and node in ms."""

    first: float
    whole: float
    engine: float
    node: float


async def _measure(facts: dict[str, Any], purse: Purse, pid: int, rounds: int) -> dict[str, Any]:
    key = [
        (b"authorization", facts["engine"]["key"].encode()),
        (b"content-type", b"application/json"),
    ]
    (engine,) = children(pid)
    seen: dict[str, list[Spent]] = {way: [] for way in WAYS}
    for count in range(-2, rounds):
        turn = count % len(WAYS)
        for way in [*WAYS[turn:], *WAYS[:turn]]:
            body = body_of(count, {"logprobs": True} if way == LOGPROBS else {})
            job = ChatRequest.parse(body).job
            assert maximum(job, purse.offer.services[0], 6) == 1, "the purse pays one base unit"
            before = cpu_ns(engine), cpu_ns(pid)
            if way == DIRECT:
                first, whole = await once(facts["engine"]["url"], key, body)
            else:
                first, whole = await once(facts["url"], purse.headers(), body)
            used = [(cpu_ns(p) - b) / 1e6 for p, b in zip((engine, pid), before, strict=True)]
            if count >= 0:
                seen[way].append(Spent(first, whole, *used))
    return {
        "rounds": rounds,
        "tokens": TOKENS,
        "rows": {way: _medians(calls) for way, calls in seen.items()},
        "first_added_ms": _against(seen, THROUGH, lambda a, b: a.first - b.first),
        "tokens_per_s_lost": 1 - 1 / _against(seen, THROUGH, lambda a, b: a.whole / b.whole),
        "cpu": _against(seen, THROUGH, lambda a, b: (a.engine + a.node) / b.engine),
        "logprobs_cpu": _against(seen, LOGPROBS, lambda a, b: (a.engine + a.node) / b.engine),
    }


def _medians(calls: list[Spent]) -> list[float]:
    columns = ([getattr(call, name) for call in calls] for name in Spent.__slots__)
    return [statistics.median(column) for column in columns]


def _against(
    seen: dict[str, list[Spent]], way: str, compare: Callable[[Spent, Spent], float]
) -> float:
    pairs = zip(seen[way], seen[DIRECT], strict=True)
    return statistics.median(compare(ours, theirs) for ours, theirs in pairs)


def measure(rounds: int) -> dict[str, Any]:
    """So many rounds of calls."""
    from bench.serving import started

    with (
        tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder,
        started("paid", weights(), Path(folder)) as (facts, purse, pid),
    ):
        assert purse is not None, "a paid row has one"
        return asyncio.run(_measure(facts, purse, pid, rounds))


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    if not report:
        return ""
    name = f"chat: {MODEL}"
    rows = [f"{name:36}{'first token ms':>15}{'whole ms':>10}{'engine CPU':>12}{'node CPU':>10}"]
    for way, (first, whole, engine, node) in report["rows"].items():
        rows.append(f"{way:36}{first:15.1f}{whole:10.1f}{engine:12.1f}{node:10.1f}")
    rows.append(
        f"medians of {report['rounds']} rounds of {report['tokens']} tokens: first token"
        f" {report['first_added_ms']:+.1f} ms, tokens/s lost {report['tokens_per_s_lost']:.1%},"
        f" CPU {report['cpu']:.2f} x the engine's own,"
        f" {report['logprobs_cpu']:.2f} x with log-probabilities"
    )
    return "\n".join(rows)
