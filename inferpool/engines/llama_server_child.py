"""The child process of `llamacpp` where a `llama-server` runs in the place of the wheel.

Run as `python -I llama_server_child.py`. Reads one JSON line of configuration, starts the server,
answers one JSON line, {"url": ..., "sandbox": ..., "control": ...} or {"error": ...}, once it has
loaded its model, and ends with it; the server ends when our stdin closes, and on Linux when we die.
Imports nothing of this package: it starts faster and cannot break with it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

_SANDBOX: Final = "none: llama-server is the owner's own program; no core files, no new privileges"
_PR_SET_PDEATHSIG: Final = 1
_NO_NEW_PRIVS: Final = 38
_LOOK_S: Final = 0.02


def main() -> None:
    """Serve until the parent or the server is gone."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    config = json.loads(line)
    _die_with(config["parent"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        control = _reader().control_texts(config["path"])
        server = _start(config, port)
    except Exception as error:
        _answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    threading.Thread(target=_leave_with_stdin, args=(server,), daemon=True).start()
    url = f"http://127.0.0.1:{port}"
    while not _healthy(url) and server.poll() is None:
        time.sleep(_LOOK_S)
    if server.poll() is not None:  # also where another took the port before it could
        _answer({"error": f"it ended with status {server.returncode}"})
        sys.exit(1)
    _answer({"url": url, "sandbox": _SANDBOX, "control": control})
    sys.exit(server.wait() or 1)


def _start(config: dict[str, Any], port: int) -> subprocess.Popen[bytes]:
    me = os.getpid()

    def held() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file holds prompts
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        _die_with(me)

    return subprocess.Popen(  # noqa: S603 - the owner's own program
        [config["program"], *config["flags"], "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # our stdout carries exactly one line, ours
        env={**os.environ, "LLAMA_API_KEY": config["key"]},  # a command line is no secret
        preexec_fn=held,
    )


def _answer(found: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:  # 503 while it loads, or not listening yet
        return False


def _reader() -> Any:
    """`gguf_control`, by its path: this directory is no place to import from."""
    path = Path(__file__).with_name("gguf_control.py")
    spec = importlib.util.spec_from_file_location("_gguf_control", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _die_with(parent: int) -> None:
    """Linux: be killed when the parent dies, even while the model is loading."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that
            os._exit(0)


def _leave_with_stdin(server: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    server.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
