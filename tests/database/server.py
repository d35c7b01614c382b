"""A PostgreSQL server of its own in a folder, that tests may stop, kill and start."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDED = "INFERPOOL_TEST_POSTGRESQL"  # the folder with initdb and postgres


def _unprivileged() -> dict[str, Any]:
    """Whom the server runs as: it refuses root."""
    if os.geteuid():
        return {}
    known = {item.pw_name: item for item in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(slots=True)
class Server:
    """`start` makes the cluster the first time."""

    binaries: Path
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="inferpool-pg-")))
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None
    databases: int = 0

    def start(self) -> None:
        """Start and wait until it answers."""
        who, data = _unprivileged(), self.folder / "data"
        if not data.exists():
            if who:
                os.chown(self.folder, who["user"], who["group"])
            words = ["initdb", "-D", str(data), "-U", "inferpool", "-A", "trust", "-E", "UTF8"]
            self._run([*words, "--no-sync", "--locale=C"], who)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self.binaries / "postgres"), "-D", str(data), "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                    "-c", "max_connections=200",
                ],
                stdout=log, stderr=log, cwd=self.folder, **who,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def _answers(self) -> bool:
        words = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0

    def _run(self, words: list[str], who: dict[str, Any]) -> None:
        first, *rest = words
        done = subprocess.run(
            [str(self.binaries / first), *rest],
            capture_output=True, check=False, cwd=self.folder, **who,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()

    def kill(self) -> None:
        """End it at once, as a power cut would: every connection breaks, nothing is flushed."""
        assert self.process is not None, "it runs"
        self.process.send_signal(3)  # SIGQUIT: "immediate shutdown"
        self.process.wait()

    def new_database(self) -> str:
        """The URL of an empty database."""
        self.databases += 1
        name = f"test_{self.databases}"
        words = ["createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "inferpool", name]
        self._run(words, {})
        return f"postgresql://inferpool@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """End it and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
