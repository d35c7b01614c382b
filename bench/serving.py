"""Our node as an inference server, side by side with others, in one run.

usage: python -m bench.serving [--small] [--peer mosec=PYTHON] [--peer mlserver=PYTHON] [--json F]

Tensors: two ONNX models (`bench.onnx_models`), one row of 30 floats in JSON, one call at a time and
32 at once, closed loop, from one driver. Rows of ours: `bare` (HTTP, protocol, checks, batcher),
`features` (the whole node, unpaid), `paid` (a voucher in and a receipt out, durable on disk) at a
window of 1 and of 32. A peer is the path of a Python in whose environment it is installed; each has
a file in `bench/peers`. Every server is up all the time and they take turns, so that a change of
the machine's load hits all of them; of the turns the best counts for calls a second and p50, the
median for CPU, which is of every thread of all processes of a server, kernel time included.
256 different rows, 32 at once, are compared with the model's own answers first.

Chat: the engine's own HTTP against our paid node in front of the same engine process, in turns.
Start: from the process's start to the first paid answer, weights on disk, channel open before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvloop

from bench import onnx_models, serving_chat, serving_start
from bench.drive import Purse, Seen, drive, for_a_while, http
from bench.served import CHANNEL, PAYER
from bench.tax import cpu_ns, family
from inferpool.protocol.offer import SignedOffer

PATH = "/v2/models/m/infer"
PEER_PATHS = {"mosec": "/inference", "mlserver": PATH}
PEERS = Path(__file__).parent / "peers"
READY_S = 60.0
AT_ONCE = (1, 32)


def name_of(pid: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


@dataclass(slots=True)
class Turn:
    """One server under one load for a while; CPU in us a call by process."""

    seen: Seen
    cpu_us: dict[str, float]


@dataclass(slots=True)
class Server:
    """One server to be measured."""

    name: str
    url: str
    path: str
    pid: int
    purse: Purse | None = None
    turns: dict[int, list[Turn]] = field(default_factory=dict)  # by calls at once

    async def turn(self, body: bytes, at_once: int, seconds: float, rate: float) -> None:
        """Drive it for a while; paid requests are made before, as many as it may take."""
        if self.purse is None:
            source = for_a_while(http(self.url, self.path, body), seconds)
        else:
            count = max(at_once, int(rate * seconds))
            made = self.purse.requests(self.url, self.path, body, count)
            source = iter(list(enumerate(made)))
        pids = family(self.pid)
        before = {pid: cpu_ns(pid) for pid in pids}
        seen = await drive(self.url, source, at_once)
        spent: dict[str, float] = {}
        for pid, start in before.items():
            used = (cpu_ns(pid) - start) / len(seen.spent_s) / 1000
            if used > 0.5:
                spent[f"{name_of(pid)}"] = spent.get(name_of(pid), 0.0) + used
        self.turns.setdefault(at_once, []).append(Turn(seen, spent))

    def wrong(self, bodies: Sequence[bytes], wanted: Sequence[Any]) -> Any:
        """How many of different rows, 32 at once, were not answered with the model's numbers."""
        if self.purse is None:
            made = [http(self.url, self.path, body) for body in bodies]
        else:
            made = [self.purse.requests(self.url, self.path, b, 1)[0] for b in bodies]
        return self._wrong(made, wanted)

    async def _wrong(self, made: Sequence[bytes], wanted: Sequence[Any]) -> int:
        seen = await drive(self.url, iter(list(enumerate(made))), 32, keep=True)
        wrong = 0
        for index, row in enumerate(wanted):
            outputs = json.loads(seen.bodies[index])["outputs"]
            found = next(item for item in outputs if item["name"] == "probabilities")
            wrong += not np.allclose(found["data"], row, atol=1e-5)
        return wrong

    def summary(self, at_once: int) -> dict[str, Any]:
        """The best turn's speed, the median CPU."""
        turns = self.turns[at_once]
        best = max(turns, key=lambda turn: turn.seen.per_s)
        cpu = statistics.median(sum(turn.cpu_us.values()) for turn in turns)
        middle = min(turns, key=lambda turn: abs(sum(turn.cpu_us.values()) - cpu))
        return {
            "per_s": best.seen.per_s,
            "p50_ms": min(turn.seen.quantile_ms(0.5) for turn in turns),
            "p99_ms": min(turn.seen.quantile_ms(0.99) for turn in turns),
            "cpu_us": cpu,
            "by_process": {name: round(us, 1) for name, us in middle.cpu_us.items()},
        }


@contextmanager
def started(
    row: str, model: Path, folder: Path, window: int = 1
) -> Iterator[tuple[dict[str, Any], Purse | None, int]]:
    """One of our rows as a process: what it announced, who pays it, its process id."""
    home = folder / f"{row}-{window}-{model.stem}"
    home.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "bench.served", row, model, home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "INFERPOOL_FOLLOW": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        purse = None
        if row == "paid":
            offer = SignedOffer.decode(bytes.fromhex(facts["offer"])).offer
            purse = Purse(PAYER, CHANNEL, offer, window)
        try:
            yield facts, purse, process.pid
        finally:
            process.stdin.close()


@contextmanager
def ours(row: str, model: Path, folder: Path, window: int = 1) -> Iterator[Server]:
    """One of our rows as a server of tensors."""
    with started(row, model, folder, window) as (facts, purse, pid):
        name = row if row != "paid" else f"paid, window {window}"
        yield Server(name, facts["url"], PATH, pid, purse)


@contextmanager
def peer(name: str, python: str, model: Path, batch: int, body: bytes) -> Iterator[Server]:
    """A peer as a process group, from its own environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PEER_MODEL": str(model),
        "PEER_PORT": str(port),
        "PEER_BATCH": str(batch),
    }
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [python, PEERS / f"{name}_peer.py"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        url, path = f"http://127.0.0.1:{port}", PEER_PATHS[name]
        try:
            end = time.monotonic() + READY_S
            while True:
                try:
                    source = iter([(0, http(url, path, body))])
                    asyncio.run(drive(url, source, 1))
                    break
                except (OSError, RuntimeError):
                    if process.poll() is not None or time.monotonic() > end:
                        log.seek(0)
                        raise SystemExit(f"{name} did not start:\n{log.read().decode()}") from None
                    time.sleep(0.2)
            yield Server(name + (" +batch" if batch else ""), url, path, process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def body_of(row: Any) -> bytes:
    """One row as a request."""
    tensor = {"name": "x", "shape": [1, onnx_models.FIELDS], "datatype": "FP32"}
    return json.dumps({"inputs": [tensor | {"data": [round(float(v), 5) for v in row]}]}).encode()


def tensors(model: Path, peers: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """One model behind every server."""
    rows = np.random.default_rng(7).normal(0, 1, (256, onnx_models.FIELDS)).astype("f4").round(5)
    wanted = onnxruntime.InferenceSession(str(model)).run(None, {"x": rows})[0]
    bodies = [body_of(row) for row in rows]
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        servers = [stack.enter_context(ours("bare", model, Path(folder)))]
        for name, python in peers.items():
            servers += [
                stack.enter_context(peer(name, python, model, batch, bodies[0]))
                for batch in (0, 32)
            ]
        servers.append(stack.enter_context(ours("features", model, Path(folder))))
        servers += [
            stack.enter_context(ours("paid", model, Path(folder), window)) for window in (1, 32)
        ]
        report: dict[str, Any] = {}
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for server in servers:
                report[server.name] = {"wrong": runner.run(server.wrong(bodies, wanted))}
            for turn in range(options.rounds + 1):
                for at_once in AT_ONCE:
                    for server in servers:
                        rate = 500.0 if at_once == 1 else 2500.0
                        seconds = options.seconds if turn else 0.2
                        runner.run(server.turn(bodies[0], at_once, seconds, rate))
        for server in servers:
            for at_once in AT_ONCE:
                server.turns[at_once].pop(0)  # the first warms up
                report[server.name][str(at_once)] = server.summary(at_once)
    return report


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for model, rows in report["tensors"].items():
        lines += [
            f"{model}: one row of {onnx_models.FIELDS} floats in JSON",
            f"{'row':18}{'at once':>8}{'calls/s':>9}{'p50 ms':>8}{'p99 ms':>8}{'CPU us':>8}"
            f"{'wrong':>7}  CPU by process",
        ]
        for at_once in map(str, AT_ONCE):
            for name, row in rows.items():
                seen = row[at_once]
                by = ", ".join(f"{who} {us:.0f}" for who, us in seen["by_process"].items())
                lines.append(
                    f"{name:18}{at_once:>8}{seen['per_s']:9.0f}{seen['p50_ms']:8.2f}"
                    f"{seen['p99_ms']:8.2f}{seen['cpu_us']:8.0f}{row['wrong']:7}  {by}"
                )
        lines += [*ratios(rows), ""]
    lines += [serving_chat.table(report["chat"]), "", serving_start.table(report["start"])]
    return "\n".join(lines)


def ratios(rows: dict[str, Any]) -> list[str]:
    """What the bars are about."""
    unpaid = rows["features"]["32"]
    lines = []
    for window in (1, 32):
        paid = rows[f"paid, window {window}"]["32"]
        lines.append(
            f"paid at window {window}, 32 at once: {paid['cpu_us'] / unpaid['cpu_us']:.2f} x the"
            f" CPU of features, {paid['per_s'] / unpaid['per_s']:.2f} x its calls/s"
        )
    for name in sorted({row.removesuffix(" +batch") for row in rows if row + " +batch" in rows}):
        for at_once in map(str, AT_ONCE):
            best = max((rows[name], rows[name + " +batch"]), key=lambda row: row[at_once]["per_s"])
            for row in ("bare", "features"):
                seen, other = rows[row][at_once], best[at_once]
                lines.append(
                    f"{row} against the better {name}, {at_once} at once:"
                    f" {seen['per_s'] / other['per_s']:.2f} x its calls/s,"
                    f" {other['cpu_us'] / seen['cpu_us']:.2f} x the calls for the same CPU"
                )
    return lines


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="below two minutes")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--model", action="append", choices=["small", "wide"])
    parser.add_argument("--only-tensors", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the report there")
    options = parser.parse_args()
    options.seconds, options.rounds = (0.4, 2) if options.small else (2.0, 5)
    peers = dict(item.split("=", 1) for item in options.peer)
    report: dict[str, Any] = {"tensors": {}}
    with tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        for name, path in onnx_models.write(Path(folder)).items():
            if name in (options.model or ["small", "wide"]):
                report["tensors"][name] = tensors(path, peers, options)
    pairs = 8 if options.small else 20
    report["chat"] = {} if options.only_tensors else serving_chat.measure(pairs)
    report["start"] = (
        {} if options.only_tensors else serving_start.measure(1 if options.small else 5)
    )
    sys.stdout.write(table(report) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
