"""Ray Serve in a process of its own, as its owner runs it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))

import poolkit

# `make test` names the group at its end, so that it is not left out in silence
collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the application answers."""
    port = poolkit.free_port()
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as told:
        command = [sys.executable, str(Path(__file__).parent / "sums.py"), str(port)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told
        )
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(90, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    assert line == b"serves\n", log.read_text()[-2000:]
    yield f"http://127.0.0.1:{port}"
    process.communicate(timeout=60)  # its input ends
    assert process.returncode == 0
