"""The network tax: the same work through gateway and node, paid, against the bare engine.

usage: python -m bench.tax [--chats N] [--calls N] [--json FILE]

A chat and a tensor call, each bare (the engine's adapter in this process) and paid: through gateway
and node, each a process of its own, on a real development chain, with a receipt for every call.
Tensor calls are paid twice, at a window of 1 (a voucher and a signed receipt each: a row costs one
base unit of the token) and of 32 (vouchers sent again, receipts chained), each one at a time and 16
at once; at 32 once more with TLS 1.3 between gateway and node. What paying costs by itself is
measured in the same run by `bench.payment`, both sides and both disks together; half of it is taken
off for the row `with features`. CPU is of every thread of a process, kernel time included, from the
scheduler's statistics; all figures are medians or means over the calls of one run, and ratios
within it count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from bench import payment
from inferpool.config import load
from inferpool.daemon.node import load_services
from inferpool.daemon.pool import ROLES, Pool
from inferpool.engines.base import Progress, Sampling, Tensor, TextCall
from inferpool.home import Home
from inferpool.models.store import Store
from inferpool.transport.http import HttpTransport, open_transport
from inferpool.transport.sse import Event, events

PROMPT = "Name three primary colours."
TEXT = "meeting moved to friday please confirm that you can make it"
TOKENS = 24
WARM = 3
WARM_TENSORS = 64  # a node has earned a window by then
OFF_LOOPBACK: dict[str, object] = {  # the node's doors have TLS wherever it listens but at .1
    "node.host": "127.0.0.2",
    "gateway.allow_private": True,
}
TEXT_CHUNK = re.compile(rb'"content":"[^"]')


def cpu_ns(pid: int) -> int:
    """CPU time of every thread of a process, in nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:  # a thread that ended meanwhile
            continue
    return total


def children(pid: int) -> list[int]:
    """Child processes: a node's engines."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        try:
            found += children(parent)
        except OSError:  # it ended meanwhile
            continue
    return found


class Meter:
    """CPU of the pool's processes between two looks."""

    def __init__(self, pool: Pool) -> None:
        node = pool.running["node"].process.pid
        self.pids = {
            "gateway": [pool.running["gateway"].process.pid],
            "node": [node],
            "engine": children(node),
        }
        self._start = self._read()

    def _read(self) -> dict[str, int]:
        return {name: sum(map(cpu_ns, pids)) for name, pids in self.pids.items()}

    def per_call_us(self, calls: int) -> dict[str, float]:
        """Microseconds of CPU a call, by process."""
        return {n: (v - self._start[n]) / calls / 1000 for n, v in self._read().items()}


async def bare_chat(engine: Any, calls: int) -> dict[str, float]:
    """The engine's adapter alone: first token and whole answer, in ms."""
    first, whole = [], []
    for i in range(calls + WARM):
        message: dict[str, object] = {"role": "user", "content": PROMPT}
        call = TextCall((message,), None, TOKENS, Sampling(seed=7, temperature=0.0))
        begun, at = time.perf_counter(), 0.0
        async for chunk in engine.generate(call, Progress()):
            at = at or (time.perf_counter() - begun if chunk.text else 0.0)
        if i >= WARM:
            first.append(at)
            whole.append(time.perf_counter() - begun)
    return {
        "first_ms": 1000 * statistics.median(first),
        "whole_ms": 1000 * statistics.median(whole),
    }


async def paid_chat(pipe: HttpTransport, key: str, pool: Pool, calls: int) -> dict[str, float]:
    """The same through the pool."""
    body = orjson.dumps(
        {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "seed": 7,
            "stream": True,
        }
    )
    headers = [(b"authorization", b"Bearer " + key.encode())]
    first, whole, meter = [], [], None
    for i in range(calls + WARM):
        if i == WARM:
            meter = Meter(pool)
        begun, at = time.perf_counter(), 0.0
        response = await pipe.request("POST", "/v1/chat/completions", headers, body, timeout_s=60)
        assert response.status == 200, await response.read(10_000)
        async for item in events(response):
            if isinstance(item, Event) and TEXT_CHUNK.search(item.data):
                at = at or time.perf_counter() - begun
        if i >= WARM:
            first.append(at)
            whole.append(time.perf_counter() - begun)
    assert meter is not None, "there is at least one call"
    return {
        "first_ms": 1000 * statistics.median(first),
        "whole_ms": 1000 * statistics.median(whole),
        **{f"{name}_us": value for name, value in meter.per_call_us(calls).items()},
    }


async def bare_tensor(engine: Any, calls: int) -> dict[str, float]:
    """The ONNX adapter alone."""
    data = len(TEXT.encode()).to_bytes(4, "little") + TEXT.encode()
    tensor = Tensor("text", "BYTES", (1, 1), data)
    spent = []
    for i in range(calls + WARM):
        begun = time.perf_counter()
        await engine.infer([tensor], 1)
        if i >= WARM:
            spent.append(time.perf_counter() - begun)
    return {"whole_ms": 1000 * statistics.median(spent)}


async def paid_tensor(
    pipe: HttpTransport, key: str, pool: Pool, calls: int, at_once: int
) -> dict[str, float]:
    """The same through the pool, so many at once."""
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]}
    body = orjson.dumps({"inputs": [tensor]})
    headers = [(b"authorization", b"Bearer " + key.encode())]
    spent: list[float] = []

    async def worker(count: int) -> None:
        for _ in range(count):
            begun = time.perf_counter()
            path = "/v2/models/spam/infer"
            response = await pipe.request("POST", path, headers, body, timeout_s=60)
            answer = await response.read(100_000)
            assert response.status == 200, answer
            spent.append(time.perf_counter() - begun)

    await asyncio.gather(*[worker(WARM_TENSORS // at_once) for _ in range(at_once)])
    spent.clear()
    meter, begun = Meter(pool), time.perf_counter()
    await asyncio.gather(*[worker(calls // at_once) for _ in range(at_once)])
    wall = time.perf_counter() - begun
    costs = {f"{name}_us": value for name, value in meter.per_call_us(len(spent)).items()}
    median = 1000 * statistics.median(spent)
    return {"whole_ms": median, "per_s": len(spent) / wall, **costs}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    chat = report["chat"]
    bare, paid = chat["bare"], chat["paid"]
    lines = [
        f"chat: {chat['calls']} calls, one at a time",
        f"{'row':24}{'first ms':>10}{'whole ms':>10}{'gateway us':>12}{'node us':>10}",
        f"{'bare engine':24}{bare['first_ms']:10.2f}{bare['whole_ms']:10.2f}",
        f"{'paid':24}{paid['first_ms']:10.2f}{paid['whole_ms']:10.2f}"
        f"{paid['gateway_us']:12.0f}{paid['node_us']:10.0f}",
        f"tax on the whole answer: {paid['whole_ms'] / bare['whole_ms']:.3f} x",
    ]
    if "engine_us" in paid:
        ours = paid["gateway_us"] + paid["node_us"]
        lines.append(f"our CPU against the engine's: {ours / paid['engine_us']:.3%}")
    lines += [
        "",
        f"tensor: {report['tensor']['calls']} calls a row",
        f"{'row':24}{'at once':>8}{'whole ms':>10}{'calls/s':>9}{'gateway us':>12}{'node us':>10}",
        f"{'bare engine':24}{1:8}{report['tensor']['bare']['whole_ms']:10.2f}",
    ]
    for row in report["tensor"]["rows"]:
        half = row["payment_us"] / 2
        gateway, node = row["gateway_us"], row["node_us"]
        rest = f"{gateway - half:12.0f}{node - half:10.0f}"
        lines.append(f"{'with features':24}{row['at_once']:8}{'':19}{rest}")
        lines.append(
            f"{_named(row):24}{row['at_once']:8}{row['whole_ms']:10.2f}"
            f"{row['per_s']:9.0f}{gateway:12.0f}{node:10.0f}"
        )
    lines += ["", "paying by itself, both sides and both disks, us of CPU a call:"]
    lines += [
        f"window {row['window']:2}, {row['at_once']:2} at once: {row['payment_us']:.0f}"
        for row in report["tensor"]["rows"]
        if not row["tls"]
    ]
    lines += ["", "TLS between gateway and node against none, CPU of both and whole time:"]
    lines += [_tls_tax(report["tensor"]["rows"], at_once) for at_once in (1, 16)]
    return "\n".join(lines)


def _tls_tax(rows: list[dict[str, Any]], at_once: int) -> str:
    plain, tls = (
        next(r for r in rows if (r["window"], r["tls"], r["at_once"]) == (32, secured, at_once))
        for secured in (False, True)
    )
    cpu = [row["gateway_us"] + row["node_us"] for row in (plain, tls)]
    return (
        f"{at_once:2} at once: {cpu[1] / cpu[0]:.3f} x, {tls['whole_ms'] / plain['whole_ms']:.3f} x"
    )


def _named(row: dict[str, Any]) -> str:
    return f"paid, window {row['window']}" + (", TLS" if row["tls"] else "")


@asynccontextmanager
async def running(flags: dict[str, object]) -> AsyncIterator[tuple[Pool, HttpTransport, str]]:
    """A pool of three processes, a pipe to its gateway, and an API key."""
    home = Home(Path(tempfile.mkdtemp(prefix="inferpool-bench-")))
    pool = Pool(home, flags)
    try:
        for role in ROLES:
            await asyncio.to_thread(pool.start, role)
        pipe = open_transport(pool.running["gateway"].url)
        yield pool, pipe, home.secret("api-key")
        await pipe.close()
    finally:
        await asyncio.to_thread(pool.close)


async def measure(chats: int, calls: int) -> dict[str, Any]:
    """Everything in one run."""
    flags: dict[str, object] = {"chain.port": 0, "node.port": 0, "gateway.port": 0}
    config = load(None, {}, flags)
    services = await load_services(config.node, Store())
    by_name = {item.manifest.name: item.engine for item in services.hosted}
    try:
        chat = await bare_chat(by_name["smollm2-135m-instruct"], chats)
        tensor = await bare_tensor(by_name["spam"], calls)
    finally:
        for engine in services.engines:
            await engine.close()
    async with running(flags) as (pool, pipe, key):
        through_chat = await paid_chat(pipe, key, pool, chats)
    rows = []
    for window, tls in ((1, False), (32, False), (32, True)):
        small = {
            **flags,
            **(OFF_LOOPBACK if tls else {}),
            "node.models": ("spam",),
            "node.price_row_usd_per_million": "1",
            "gateway.window": window,
        }
        async with running(small) as (pool, pipe, key):
            for at_once in (1, 16):
                row = await paid_tensor(pipe, key, pool, calls, at_once)
                alone = await payment.measure(calls, at_once, window)
                kept = {"window": window, "tls": tls, "at_once": at_once}
                rows.append({**kept, **row, "payment_us": alone["us"]})
    return {
        "chat": {"calls": chats, "bare": chat, "paid": through_chat},
        "tensor": {"calls": calls, "bare": tensor, "rows": rows},
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=30)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the report there")
    options = parser.parse_args()
    report = asyncio.run(measure(options.chats, options.calls))
    sys.stdout.write(table(report) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
