"""The network tax: the same work through gateway and node, paid, against the bare engine.

usage: python -m bench.tax [--chats N] [--calls N] [--json FILE]

Three rows for a chat call and for a tensor call. Bare is the engine's adapter in this process; paid
is through gateway and node, each a process of its own, on a real development chain, with a voucher
and a receipt for every call (window 1). What vouchers and receipts cost is measured apart in the
same run and taken off for the row `with features`. CPU is of every thread of a process, from the
kernel's scheduler statistics; all figures are medians or means over the calls of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from inferpool.config import load
from inferpool.daemon.node import load_services
from inferpool.daemon.pool import ROLES, Pool
from inferpool.engines.base import Progress, Sampling, Tensor, TextCall
from inferpool.home import Home
from inferpool.identity.signing import Key, verify
from inferpool.models.store import Store
from inferpool.payments import x402
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payer import PayerChannel
from inferpool.protocol.offer import Terms
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.voucher import ChannelConfig
from inferpool.transport.http import HttpTransport, open_transport
from inferpool.transport.sse import Event, events

PROMPT = "Name three primary colours."
TEXT = "meeting moved to friday please confirm that you can make it"
TOKENS = 24
WARM = 3
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
        message = {"role": "user", "content": PROMPT}
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


async def paid_tensor(pipe: HttpTransport, key: str, pool: Pool, calls: int) -> dict[str, float]:
    """The same through the pool."""
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]}
    body = orjson.dumps({"inputs": [tensor]})
    headers = [(b"authorization", b"Bearer " + key.encode())]
    spent, meter = [], None
    for i in range(calls + WARM):
        if i == WARM:
            meter = Meter(pool)
        begun = time.perf_counter()
        response = await pipe.request("POST", "/v2/models/spam/infer", headers, body, timeout_s=60)
        answer = await response.read(100_000)
        assert response.status == 200, answer
        if i >= WARM:
            spent.append(time.perf_counter() - begun)
    assert meter is not None, "there is at least one call"
    costs = {f"{name}_us": value for name, value in meter.per_call_us(calls).items()}
    return {"whole_ms": 1000 * statistics.median(spent), **costs}


def payment_us(rounds: int = 2000) -> dict[str, float]:
    """CPU of a voucher and a receipt on each side, in microseconds."""
    payer, node = Key(b"\1" * 32), Key(b"\2" * 32)
    config = ChannelConfig(
        payer.address, payer.address, node.address, node.address, b"\3" * 20, 900, b"\4" * 32
    )
    terms = Terms(1, b"\3" * 20, "Dollar", "1", 6, node.address, node.address, 1, 900)
    channel_id = config.channel_id(1)
    ours = PayerChannel(config, channel_id, 1, 6, balance=10**15)
    theirs = PayeeChannel(config, channel_id, 1, 6, balance=10**15)
    costs: dict[str, float] = {"gateway": 0.0, "node": 0.0}

    def timed(side: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time_ns()
        result = work()
        costs[side] += (time.process_time_ns() - begun) / rounds / 1000
        return result

    for _ in range(rounds):
        request_id = secrets.token_bytes(32)
        voucher = timed("gateway", lambda: ours.authorise(request_id, 10, payer))
        header = timed("gateway", lambda: x402.payment_signature(config, voucher, terms, 10))
        payment = timed("node", lambda: x402.parse_payment(header))
        timed("node", lambda: payment.config.channel_id(1))
        timed("node", lambda: theirs.admit(request_id, payment.voucher, 10))
        theirs.charge(request_id, 3_000_000)
        receipt = Receipt(
            *[request_id] * 5, "fake@1", request_id, 0, channel_id, theirs.seq, 1, 1, 3_000_000,
            theirs.total_pico_usd, 1, 1, 2, Outcome.COMPLETE,
        )  # fmt: skip
        digest = timed("node", lambda: receipt.digest(1))
        signed = SignedReceipt(receipt, timed("node", lambda: node.sign(digest)))
        sent = timed("node", signed.header)
        got = timed("gateway", lambda: SignedReceipt.from_header(sent))
        timed("gateway", lambda: verify(got.receipt.digest(1), got.signature, node.address))
        timed("gateway", lambda: ours.book(got.receipt))
    return costs


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    pay = report["payment_us"]
    for kind in ("chat", "tensor"):
        bare, paid = report[kind]["bare"], report[kind]["paid"]
        lines.append(f"\n{kind}: {report[kind]['calls']} calls, one at a time")
        lines.append(f"{'row':16}{'first ms':>10}{'whole ms':>10}{'gateway us':>12}{'node us':>10}")
        for row, side in (("bare engine", bare), ("paid", paid)):
            if row == "paid":
                features = {n: paid[f"{n}_us"] - pay[n] for n in ("gateway", "node")}
                lines.append(
                    f"{'with features':16}{'':10}{'':10}"
                    f"{features['gateway']:12.0f}{features['node']:10.0f}"
                )
            first = f"{side['first_ms']:10.2f}" if "first_ms" in side else f"{'':10}"
            cpu = "".join(
                f"{side[f'{n}_us']:{w}.0f}" if f"{n}_us" in side else " " * w
                for n, w in (("gateway", 12), ("node", 10))
            )
            lines.append(f"{row:16}{first}{side['whole_ms']:10.2f}{cpu}")
        lines.append(f"tax on the whole answer: {paid['whole_ms'] / bare['whole_ms']:.3f} x")
        if "engine_us" in paid and kind == "chat":
            ours = paid["gateway_us"] + paid["node_us"]
            lines.append(f"our CPU against the engine's: {ours / paid['engine_us']:.3%}")
    lines.append(
        f"\nvoucher and receipt: gateway {pay['gateway']:.0f} us, node {pay['node']:.0f} us of CPU"
    )
    return "\n".join(lines)


async def measure(chats: int, calls: int) -> dict[str, Any]:
    """Everything in one run."""
    flags = {"chain.port": 0, "node.port": 0, "gateway.port": 0}
    home = Home(Path(tempfile.mkdtemp(prefix="inferpool-bench-")))
    config = load(None, {}, flags)
    services = await load_services(config.node, Store())
    by_name = {item.manifest.name: item.engine for item in services.hosted}
    try:
        chat = await bare_chat(by_name["smollm2-135m-instruct"], chats)
        tensor = await bare_tensor(by_name["spam"], calls)
    finally:
        for engine in services.engines:
            await engine.close()
    pool = Pool(home, flags)
    try:
        for role in ROLES:
            await asyncio.to_thread(pool.start, role)
        pipe = open_transport(pool.running["gateway"].url)
        key = home.secret("api-key")
        through_chat = await paid_chat(pipe, key, pool, chats)
        through_tensor = await paid_tensor(pipe, key, pool, calls)
        await pipe.close()
    finally:
        await asyncio.to_thread(pool.close)
    return {
        "chat": {"calls": chats, "bare": chat, "paid": through_chat},
        "tensor": {"calls": calls, "bare": tensor, "paid": through_tensor},
        "payment_us": payment_us(),
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
