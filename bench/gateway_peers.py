"""Other gateways in front of the same mock node, each from an environment of its own.

A peer is the path of a Python in whose environment it is installed: vllm-router. It has one
upstream and one thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import load
from bench.mock_node import paced

READY_S: Final = 120.0
KEY: Final = "sk-of-nobody"


def _router(*module: str) -> Callable[[str, int, str, Path], list[str]]:
    def command(python: str, port: int, upstream: str, folder: Path) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream]
        metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        rest = ["--policy", "round_robin", "--log-level", "error"]
        return [python, "-m", *module, *options, *metrics, *rest]

    return command


PEERS: Final = {
    "vllm-router": _router("vllm_router.launch_router"),
}
_ENVIRONMENT: Final = {
    "NO_PROXY": "*",
    "RUST_LOG": "error",
    "TOKIO_WORKER_THREADS": "1",
}


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def peer(name: str, python: str, upstream: str) -> Iterator[tuple[str, int]]:
    """Its URL and the first of its processes, once it has answered a chat."""
    port = free_port()
    url, request = f"http://127.0.0.1:{port}", load.chat_request(paced(0), KEY, 1, stream=False)
    with tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        command = PEERS[name](python, port, upstream, Path(folder))
        with (Path(folder) / "log").open("w+b") as log:
            process = subprocess.Popen(
                command,
                env={"PATH": os.environ["PATH"], "HOME": folder, **_ENVIRONMENT},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _await(name, process, url, request, Path(log.name))
                yield url, process.pid
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _await(
    name: str, process: subprocess.Popen[bytes], url: str, request: bytes, log: Path
) -> None:
    end = time.monotonic() + READY_S
    last: Exception | None = None
    while process.poll() is None and time.monotonic() < end:
        try:
            _in_a_thread(url, request)
        except (OSError, RuntimeError) as error:
            last = error
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{name} did not start: {last}\n{log.read_text()[-3000:]}")


def _in_a_thread(url: str, request: bytes) -> None:
    """One call, on a loop of its own: the caller's is running."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, load.calls(url, request, 1, 1)).result()
