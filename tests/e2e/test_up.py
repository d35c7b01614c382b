"""`inferpool up` as a user runs it: it says how to use it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import poolkit
import pytest
from poolkit import CHAT, until

from inferpool.daemon.pool import ROLES
from inferpool.home import Home

pytestmark = pytest.mark.timeout(120)


class Up:
    """A running `inferpool up --json` on free ports."""

    def __init__(self, home: Home, *arguments: str, **more: str) -> None:
        self.home = home
        self.errors = home.root / "up.stderr"
        home.root.mkdir(parents=True, exist_ok=True)
        ports = {f"INFERPOOL_{role.upper()}_PORT": "0" for role in ROLES}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inferpool", "up", *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=poolkit.environment(home, **ports, **more),
                start_new_session=True,
            )

    def running(self, role: str) -> dict[str, Any] | None:
        assert self.process.poll() is None, self.errors.read_text()
        return self.home.running(role)

    def wait_for(self, role: str) -> dict[str, Any]:
        return until(f"the {role} runs", lambda: self.running(role), 60)

    def facts(self) -> dict[str, Any]:
        """The JSON that it prints once all runs."""
        self.wait_for("gateway")
        assert self.process.stdout is not None
        text = b""
        while not text.endswith(b"\n}\n"):
            line = self.process.stdout.readline()
            assert line, self.errors.read_text()
            text += line
        found: dict[str, Any] = orjson.loads(text)
        return found

    def pids(self) -> list[int]:
        """Every process of the pool, by what the roles announced and by /proc."""
        found = [int(self.wait_for(role)["pid"]) for role in ROLES]
        assert set(found) == set(poolkit.children(self.process.pid))
        engine = poolkit.engine_of(int(self.wait_for("node")["pid"]))
        assert engine is not None
        return [*found, engine]


@contextmanager
def upped(root: Path, *arguments: str, **more: str) -> Iterator[Up]:
    up = Up(Home(root), *arguments, **more)
    try:
        yield up
    finally:
        up.process.kill()
        up.process.wait()
        assert up.process.stdout is not None
        up.process.stdout.close()


@pytest.fixture(autouse=True)
def weights() -> None:
    poolkit.pull_weights()


def test_kill_9_of_the_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    with upped(tmp_path, "--json") as up:
        facts = up.facts()
        assert facts["urls"].keys() == set(ROLES)
        pids = up.pids()
        assert all(map(poolkit.alive, pids))
        answer = httpx.post(
            f"{facts['urls']['gateway']}/v1/chat/completions",
            json={
                "model": CHAT,
                "messages": [{"role": "user", "content": "Hello!"}],
                "max_tokens": 2,
            },
            headers={"Authorization": f"Bearer {facts['api_key']}"},
            timeout=30,
        )
        assert answer.status_code == 200
        up.process.kill()
        up.process.wait()
        poolkit.all_gone(pids, within_s=10)
        assert not any(Home(tmp_path).running(role) for role in ROLES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_told(tmp_path: Path, number: signal.Signals) -> None:
    with upped(tmp_path, "--json") as up:
        up.facts()
        pids = up.pids()
        up.process.send_signal(number)
        code = up.process.wait(60)
        assert code in (0, 130), up.errors.read_text()
        poolkit.all_gone(pids, within_s=5)
        assert "Traceback" not in up.errors.read_text()
        for role in ROLES:
            assert "Traceback" not in (tmp_path / "logs" / f"{role}.log").read_text()
        assert not list((tmp_path / "run").glob("*.json"))


def test_ctrl_c_in_the_middle_of_its_start(tmp_path: Path) -> None:
    """The chain runs, the node is on its way: neither may stay."""
    with upped(tmp_path, "--json") as up:
        up.wait_for("chain")
        pids = until(
            "the node's process is there",
            lambda: found if len(found := poolkit.children(up.process.pid)) == 2 else None,
        )
        up.process.send_signal(signal.SIGINT)
        code = up.process.wait(40)
        poolkit.all_gone(pids, within_s=10)
        assert code in (0, 130)
        assert "Traceback" not in up.errors.read_text()


def test_port_in_use_names_the_flag(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        alone = poolkit.inferpool("node", "--port", str(port), home=Home(tmp_path / "node"))
        check_port_error(alone, port, "--port")
        free = {"INFERPOOL_NODE_PORT": "0", "INFERPOOL_GATEWAY_PORT": "0"}
        home = Home(tmp_path / "up")
        whole = poolkit.inferpool("up", home=home, INFERPOOL_CHAIN_PORT=str(port), **free)
        check_port_error(whole, port, "--port", said="stopping\n")
        assert not left_over(tmp_path)


def check_port_error(
    done: subprocess.CompletedProcess[str], port: int, flag: str, said: str = ""
) -> None:
    assert done.returncode == 1
    assert done.stdout == said
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"port {port}" in done.stderr
    assert flag in done.stderr


def left_over(root: Path) -> list[int]:
    """Processes whose home lies under `root`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"INFERPOOL_HOME={root}".encode() in path.read_bytes():
                pid = int(path.parent.name)
                if pid != os.getpid() and poolkit.alive(pid):
                    found.append(pid)
        except OSError:
            continue
    return found
