"""What the gateway costs beside its upstream: one run, four rows, ratios that hold on any machine.

usage: python -m bench.gateway [--calls N] [--soak-s N] [--soak-streams N] [--full] [--json FILE]
                               [--peer vllm-router=PYTHON]

One mock node (`bench.mock_node`) answers at once. In front of it stand, one after another, a door
that passes bytes on (bare), the gateway without the money of its channels (features), and the
gateway as it is at a window of 1 (a voucher and a signed receipt for each call) and of 32 (vouchers
sent again, receipts of small calls chained): see `bench.doors`. CPU is of every thread of the
processes that are measured, kernel time included; it and the differences from the upstream asked
directly, in the same run, count. Requests per second is what one core makes of that CPU; what the
run itself reached is printed beside it, with client and mock node on the same machine. The process
measured is pinned to one core where there are several, client and node to the others.

A peer (`bench.gateway_peers`) stands in front of the same node in the same run. It knows nothing of
tensors and of money: beside `bare` and `features`, and by whole chats and streams, it is compared.

`--full` is the soak: 1,000 streams for ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench import load
from bench.gateway_peers import KEY as PEER_KEY
from bench.gateway_peers import peer
from bench.mock_node import BULK, ROWS, paced
from bench.tax import cpu_ns, family
from inferpool.daemon.pool import Pool
from inferpool.home import Home
from inferpool.transport.http import open_transport

CONNECTIONS = 16
STREAMS = 64
ROUNDS = 6
TOKENS = 40
WARM_CALLS = 400
STALL_S = 2.0
BULK_TOKENS = 100_000  # of 1,000 bytes: 100 MB
LEFT_AFTER = 10  # tokens
WINDOWS = {"paid, window 1": 1, "paid, window 32": 32}


@dataclass
class Upstream:
    """The mock node's process."""

    url: str
    process: subprocess.Popen[bytes]


@dataclass
class Row:
    """A door that is measured; `key` opens it."""

    name: str
    url: str
    pid: int
    key: str


def pin(pid: int, here: bool) -> None:
    """The measured processes get the first core, everything else the others."""
    if not ALL_CORES[1:]:
        return
    for one in family(pid):
        for task in Path(f"/proc/{one}/task").iterdir():
            os.sched_setaffinity(int(task.name), ALL_CORES[:1] if here else ALL_CORES[1:])


ALL_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children that is in RAM now."""
    lines = [
        line
        for one in family(pid)
        for line in Path(f"/proc/{one}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
    return sum(int(line.split()[1]) * 1024 for line in lines)


def spent_ns(pid: int) -> int:
    """CPU of a process and its children."""
    return sum(map(cpu_ns, family(pid)))


def _started(command: list[str], home: Path | None = None) -> tuple[subprocess.Popen[bytes], bytes]:
    environ = dict(os.environ)
    if home is not None:
        environ["INFERPOOL_HOME"] = str(home)
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{command[0]} did not start")
    return process, line


@contextmanager
def process_of(command: list[str], home: Path | None = None) -> Iterator[tuple[int, bytes]]:
    """A process that serves until its input ends; its id and the line that it printed."""
    process, line = _started(command, home)
    try:
        yield process.pid, line
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def door(name: str, upstream: str, pool: Pool, peers: dict[str, str]) -> Iterator[Row]:
    """One of the rows, started."""
    if name in peers:
        with peer(name, peers[name], upstream) as (url, pid):
            yield Row(name, url, pid, PEER_KEY)
        return
    key = pool.home.secret("api-key")
    flags: dict[str, object] = {**pool.flags, "gateway.nodes": (upstream,)}
    if name in WINDOWS:
        flags["gateway.window"] = WINDOWS[name]
        paid = Pool(pool.home, flags)
        running = paid.start("gateway")
        try:
            yield Row(name, running.url, running.process.pid, key)
        finally:
            paid.close()
        return
    command = ["bare", upstream] if name == "bare" else ["features", orjson.dumps(flags).decode()]
    with process_of(["bench.doors", *command], pool.home.root) as (pid, line):
        yield Row(name, orjson.loads(line)["url"], pid, "" if name == "bare" else key)


@asynccontextmanager
async def cpu(row: Row, found: dict[str, float], name: str, units: int) -> AsyncIterator[None]:
    """CPU of the row's process while the block runs, in us a unit; the least of several blocks,
    since other work on the machine only ever adds."""
    before = spent_ns(row.pid)
    yield
    spent = (spent_ns(row.pid) - before) / units / 1000
    found[name] = min(found.get(name, spent), spent)


async def small_calls(
    row: Row, direct: str, count: int, found: dict[str, float], kind: str = "call"
) -> None:
    """Requests at 16 connections, then at one, beside the same asked of the upstream: `call` is a
    row of tensors, `chat` a whole answer of one token."""
    request, bare = load.rows_request(ROWS, row.key), load.rows_request(ROWS, "")
    if kind == "chat":
        request, bare = (load.chat_request(paced(0), key, 1, stream=False) for key in (row.key, ""))
    await load.calls(row.url, request, WARM_CALLS, CONNECTIONS)
    each = count // ROUNDS
    found[f"{kind}_reached_per_s"] = 0.0
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        async with cpu(row, found, f"{kind}_us", each):
            await load.calls(row.url, request, each, CONNECTIONS)
        reached = each / (time.perf_counter() - begun)
        best = max(found[f"{kind}_reached_per_s"], reached)
        found[f"{kind}_reached_per_s"] = best
    found[f"{kind}_core_per_s"] = 1e6 / found[f"{kind}_us"]
    one = max(50, count // 8 // ROUNDS)
    through: list[int] = []
    for _ in range(ROUNDS):
        async with cpu(row, found, f"{kind}_alone_us", one):
            through += await load.calls(row.url, request, one, 1)
    one *= ROUNDS
    plain = await load.calls(direct, bare, one, 1)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        more = load.quantile(through, share) - load.quantile(plain, share)
        found[f"{kind}_added_{name}_ms"] = more / 1e6


async def chats(row: Row, direct: str, found: dict[str, float]) -> None:
    """Time to the first token at 1 and 64 streams, and CPU a chunk."""
    for at_once, gap_ms in ((1, 5), (STREAMS, 20)):
        request = load.chat_request(paced(gap_ms), row.key, TOKENS)
        plain = load.chat_request(paced(gap_ms), "", TOKENS)
        spread_s = TOKENS * gap_ms / 1000
        each = 5 if at_once == 1 else 2
        for _ in range(2):
            async with cpu(row, found, f"chunk_{at_once}_us", at_once * TOKENS):
                await load.streams(row.url, request, at_once, 1)
        async with cpu(row, found, f"chunk_{at_once}_us", at_once * each * TOKENS):
            through = await load.streams(row.url, request, at_once, each, spread_s)
        bare = await load.streams(direct, plain, at_once, each, spread_s)
        more = load.quantile(through.first, 0.5) - load.quantile(bare.first, 0.5)
        found[f"first_{at_once}_ms"] = more / 1e6
        more = load.quantile(through.transit, 0.5) - load.quantile(bare.transit, 0.5)
        found[f"transit_{at_once}_ms"] = more / 1e6


async def stopped_reader(row: Row, found: dict[str, float]) -> None:
    """A stream of 100 MB whose reader takes nothing: bytes that the process holds for it."""
    before = resident_bytes(row.pid)
    reader = load.stopped_reader(row.url, load.chat_request(BULK, row.key, BULK_TOKENS))
    try:
        most = 0
        for _ in range(10):
            await asyncio.sleep(STALL_S / 10)
            most = max(most, resident_bytes(row.pid))
    finally:
        reader.close()
    found["held_mb"] = (most - before) / 2**20


async def client_leaves(row: Row, direct: str, found: dict[str, float]) -> None:
    """How soon the node hears of it, and how many tokens it gave after the client hung up."""
    pipe = open_transport(direct)
    waits_ms, more = [], []
    try:
        for _ in range(5):
            known = len(await _left(pipe))
            seen = load.Seen()
            request = load.chat_request(paced(20), row.key, 500)
            gone_ns = await load.stream(row.url, request, seen, LEFT_AFTER)
            await asyncio.sleep(0.3)
            heard = await _left(pipe)
            if len(heard) <= known:
                found["told_ms"] = found["tokens_more"] = math.inf
                return
            waits_ms.append((heard[known]["at_ns"] - gone_ns) / 1e6)
            more.append(heard[known]["tokens"] - LEFT_AFTER)
    finally:
        await pipe.close()
    found["told_ms"], found["tokens_more"] = statistics.median(waits_ms), statistics.median(more)


async def _left(pipe: Any) -> list[dict[str, int]]:
    response = await pipe.request("GET", "/left", (), timeout_s=5.0)
    found: list[dict[str, int]] = orjson.loads(await response.read(1 << 20))
    return found


async def soak(row: Row, at_once: int, seconds: float, found: dict[str, float]) -> None:
    """Many streams, a token each 100 ms: gaps against the pace, and memory at both ends."""
    tokens = max(10, int(seconds * 10))
    request = load.chat_request(paced(100), row.key, tokens)
    run = asyncio.create_task(load.streams(row.url, request, at_once, 1, 1.0))
    await asyncio.sleep(min(3.0, seconds / 2))
    before = resident_bytes(row.pid)
    async with cpu(row, found, "soak_chunk_us", at_once * tokens):
        await asyncio.sleep(max(0.0, seconds - 4.0))
        found["soak_grown_mb"] = (resident_bytes(row.pid) - before) / 2**20
        seen = await run
    found["soak_gap_p99"] = load.quantile(seen.gaps, 0.99) / 100e6
    found["soak_resident_mb"] = resident_bytes(row.pid) / 2**20


async def start(
    name: str, upstream: str, pool: Pool, peers: dict[str, str], found: dict[str, float]
) -> None:
    """From the command to its first answer, with a wallet and a channel that are there already."""
    begun = time.perf_counter()
    with door(name, upstream, pool, peers) as row:
        await load.calls(row.url, load.chat_request(paced(0), row.key, 1, stream=False), 1, 1)
        found["start_s"] = time.perf_counter() - begun
        found["start_cpu_s"] = spent_ns(row.pid) / 1e9
        found["resident_mb"] = resident_bytes(row.pid) / 2**20


async def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every row."""
    home = Home(Path(tempfile.mkdtemp(prefix="inferpool-bench-")))
    peers = dict(item.split("=", 1) for item in options.peer)
    pool = Pool(home, {"chain.port": 0, "gateway.port": 0})
    rows: dict[str, dict[str, float]] = {}
    with process_of(["bench.mock_node"]) as (node, line):
        upstream = line.split()[0].decode()
        pool.start("chain")
        pin(node, here=False)
        pin(os.getpid(), here=False)
        try:
            for name in (*(options.rows or ("bare", "features", *WINDOWS)), *peers):
                found = rows.setdefault(name, {})
                with door(name, upstream, pool, peers) as row:
                    pin(row.pid, here=True)
                    if name not in peers:
                        await small_calls(row, upstream, options.calls, found)
                    await small_calls(row, upstream, options.calls, found, "chat")
                    await chats(row, upstream, found)
                    await client_leaves(row, upstream, found)
                    await soak(row, options.soak_streams, options.soak_s, found)
                    await stopped_reader(row, found)
                await start(name, upstream, pool, peers, found)
        finally:
            pool.close()
    return rows


LINES = (
    ("call_us", "us of CPU a row, 16 connections", "{:.0f}"),
    ("call_core_per_s", "rows/s that a core makes of it", "{:.0f}"),
    ("call_reached_per_s", "rows/s reached here", "{:.0f}"),
    ("call_alone_us", "us of CPU a row, 1 connection", "{:.0f}"),
    ("call_added_p50_ms", "added p50, 1 connection, ms", "{:.2f}"),
    ("call_added_p99_ms", "added p99, 1 connection, ms", "{:.2f}"),
    ("chat_us", "us of CPU a whole chat, 16 connections", "{:.0f}"),
    ("chat_core_per_s", "chats/s that a core makes of it", "{:.0f}"),
    ("chat_reached_per_s", "chats/s reached here", "{:.0f}"),
    ("chat_alone_us", "us of CPU a whole chat, 1 connection", "{:.0f}"),
    ("chat_added_p50_ms", "added p50 of a whole chat, ms", "{:.2f}"),
    ("chat_added_p99_ms", "added p99 of a whole chat, ms", "{:.2f}"),
    ("first_1_ms", "added time to first token, 1 stream, ms", "{:.2f}"),
    (f"first_{STREAMS}_ms", f"added time to first token, {STREAMS} streams, ms", "{:.2f}"),
    (f"transit_{STREAMS}_ms", f"added to each token, {STREAMS} streams, ms", "{:.2f}"),
    (f"chunk_{STREAMS}_us", f"us of CPU a chunk, {STREAMS} streams", "{:.0f}"),
    ("held_mb", "MB held for a reader that stopped", "{:.1f}"),
    ("told_ms", "client leaves: node told within ms", "{:.1f}"),
    ("tokens_more", "client leaves: tokens more", "{:.0f}"),
    ("start_s", "start to first answer, s", "{:.2f}"),
    ("start_cpu_s", "of it CPU of the process, s", "{:.2f}"),
    ("resident_mb", "MB resident then", "{:.0f}"),
    ("soak_gap_p99", "soak: p99 gap, times the pace", "{:.2f}"),
    ("soak_chunk_us", "soak: us of CPU a chunk", "{:.0f}"),
    ("soak_grown_mb", "soak: MB grown", "{:.1f}"),
)


def table(rows: dict[str, dict[str, float]]) -> str:
    """For people; in brackets the ratio to the bare door, of costs."""
    wide = 18
    lines = [f"{'':44}" + "".join(f"{name:>{wide}}" for name in rows)]
    for key, what, form in LINES:
        cells = []
        for row in rows.values():
            if key not in row:
                cells.append(f"{'-':>{wide}}")
                continue
            text = "never" if math.isinf(row[key]) else form.format(row[key])
            if key.endswith("_us") and "bare" in rows and row is not rows["bare"]:
                text += f" ({row[key] / rows['bare'][key]:.1f}x)"
            cells.append(f"{text:>{wide}}")
        lines.append(f"{what:44}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--rows", nargs="*", help="bare, features, 'paid, window 1' ...")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--soak-s", type=float, default=5.0)
    parser.add_argument("--soak-streams", type=int, default=100)
    parser.add_argument("--full", action="store_true", help="1,000 streams for ten minutes")
    parser.add_argument("--json", type=Path, help="also write the report there")
    options = parser.parse_args()
    if options.full:
        options.soak_s, options.soak_streams = 600.0, 1000
    try:
        import uvloop
    except ImportError:
        rows = asyncio.run(measure(options))
    else:
        rows = uvloop.run(measure(options))
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
