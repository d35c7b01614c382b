"""`llama-server`, llama.cpp's own program, in the place of the wheel: as it is found on a machine.

It runs on the processor, as the class says; a build for a GPU is told to leave it alone. Flags
that a release does not know are left out, where the answers do not depend on them. It is the
owner's own program and not held by the sandbox: see docs/explanation/sandbox.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from inferpool.protocol.errors import Refused

NAME: Final = "llama-server"
_ASK_S: Final = 30.0  # a build for a GPU looks for it first
_VERSION: Final = re.compile(r"version:\s*(\d+)\s*\(([0-9a-f]+)\)")


@dataclass(frozen=True, slots=True)
class Program:
    """A program with what it says of itself. `version`: its build number and commit."""

    path: Path
    version: str
    help: str

    @classmethod
    def find(cls, configured: str) -> Self:
        """By name on PATH or by path. Raises Refused(bad_config)."""
        path = shutil.which(configured)
        if path is None:
            raise _refused(f"{configured} is not on PATH, or not to be run")
        found = _VERSION.search(_say(path, "--version"))
        if found is None:
            raise _refused(f"{path} does not say a version of llama.cpp")
        return cls(Path(path).resolve(), f"b{found[1]}-{found[2][:9]}", _say(path, "--help"))

    def flags(self, model: Path, alias: str, sizes: dict[str, int]) -> list[str]:
        """The command line but for port and key. `sizes`: slots, context, batch, threads."""
        slots = sizes["slots"]
        needed = {
            "--model": model,
            "--alias": alias,
            "--host": "127.0.0.1",
            "--parallel": slots,
            "--ctx-size": slots * sizes["context"],
            "--batch-size": sizes["batch"],
            "--ubatch-size": sizes["batch"],
            "--threads": sizes["threads"],
            "--threads-batch": sizes["threads"],
            "--threads-http": slots + 4,
            "--n-gpu-layers": 0,
        }
        # Nothing of one caller's prompt is kept for another's; no page, no view of the slots.
        wanted: dict[str, object] = {
            "--no-cache-prompt": None,
            "--cache-ram": 0,
            "--ctx-checkpoints": 0,
            "--no-slots": None,
            "--no-webui": None,
            "--log-disable": None,
            "--offline": None,
        }
        known = set(re.findall(r"--[a-z0-9-]+", self.help))
        wanted = {flag: value for flag, value in wanted.items() if flag in known}
        pairs = [*needed.items(), *wanted.items()]
        return [str(word) for pair in pairs for word in pair if word is not None]


def _say(path: str, flag: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the owner's own program
            [path, flag], capture_output=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _refused(f"{path} {flag}: {error}") from error
    return (done.stdout + done.stderr).decode(errors="replace")


def _refused(why: str) -> Refused:
    return Refused(f"node.llama_server: {why}", code="bad_config", param="node.llama_server")
