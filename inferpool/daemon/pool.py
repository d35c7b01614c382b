"""A pool on this machine: one supervisor and a process for each role.

A role ends when its standard input does, so that none outlives the supervisor, however it dies.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from inferpool.home import Home
from inferpool.protocol.errors import CODES, Unavailable

START_TIMEOUT_S: Final = 120.0  # an engine that loads a large model
STOP_TIMEOUT_S: Final = 15.0
ABANDON_TIMEOUT_S: Final = 2.0  # a role that does not serve yet has nothing to bring to its end
_LOG_TAIL: Final = 12
_ERROR: Final = re.compile(r"error: (?P<message>.*) \[(?P<code>\w+)\]")  # daemon.__main__'s
ROLES: Final = ("chain", "node", "gateway")


@dataclass(slots=True)
class RoleProcess:
    """One running role and what it announced."""

    role: str
    process: subprocess.Popen[bytes]
    facts: Mapping[str, object]

    @property
    def url(self) -> str:
        """Where it serves."""
        return str(self.facts["url"])


@dataclass(slots=True)
class Pool:
    """Starts the roles in order and ends them in the reverse one."""

    home: Home
    flags: Mapping[str, object]
    running: dict[str, RoleProcess] = field(default_factory=dict)

    def start(self, role: str) -> RoleProcess:
        """Start one role and wait until it serves. Raises Unavailable with the end of its log."""
        log = self.log(role)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "inferpool.daemon", role, orjson.dumps(dict(self.flags))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "INFERPOOL_HOME": str(self.home.root), "INFERPOOL_FOLLOW": "1"},
                start_new_session=True,  # Ctrl-C reaches the supervisor, which ends them in order
            )
        try:
            facts = self._announced(role, process)
        except BaseException:  # Ctrl-C in the middle: nobody else knows this process yet
            self._end(process, ABANDON_TIMEOUT_S)
            raise
        self.running[role] = RoleProcess(role, process, facts)
        return self.running[role]

    def log(self, role: str) -> Path:
        """Where a role's messages go."""
        return self.home.root / "logs" / f"{role}.log"

    def _announced(self, role: str, process: subprocess.Popen[bytes]) -> Mapping[str, object]:
        assert process.stdout is not None, "it is a pipe"
        timer = threading.Timer(START_TIMEOUT_S, process.kill)
        timer.daemon = True  # Ctrl-C can come before it is cancelled: it must not keep us alive
        try:
            timer.start()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            process.wait()
            raise self._not_started(role, process.returncode)
        facts: Mapping[str, object] = orjson.loads(line)
        return facts

    def _not_started(self, role: str, exit_code: int) -> Unavailable:
        """The role's own error in one line where it gave one, else the end of its log."""
        lines = self.log(role).read_text("utf-8", errors="replace").splitlines()
        said = _ERROR.fullmatch(lines[-1]) if lines else None
        if said is not None and said["code"] in CODES:
            return Unavailable(f"The {role} did not start: {said['message']}", code=said["code"])
        tail = "\n".join(lines[-_LOG_TAIL:])
        return Unavailable(
            f"The {role} did not start (exit code {exit_code}):\n{tail}",
            code="engine_unavailable",
        )

    def stop(self, role: str) -> int:
        """End one role: its input first, then a signal; returns its exit code."""
        return self._end(self.running.pop(role).process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes], patience_s: float = STOP_TIMEOUT_S) -> int:
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        process.stdin.close()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        return process.returncode

    def close(self) -> dict[str, int]:
        """End every role, the last started first; exit codes by role."""
        return {role: self.stop(role) for role in reversed(list(self.running))}

    async def watch(self) -> str:
        """Return the name of the first role that ends by itself."""
        while True:
            for role, running in self.running.items():
                if running.process.poll() is not None:
                    return role
            await asyncio.sleep(0.5)


def start_pool(home: Home, flags: Mapping[str, object], roles: Sequence[str] = ROLES) -> Pool:
    """A pool with every role running. On a failure those that ran are ended again."""
    pool = Pool(home, flags)
    try:
        for role in roles:
            pool.start(role)
    except BaseException:
        pool.close()
        raise
    return pool
