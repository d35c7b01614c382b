"""The command line, in a home of its own; for what needs a pool, the end-to-end suite's one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import poolkit

from inferpool.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def run(home: Home) -> Callable[..., CompletedProcess[str]]:
    """Run a command in that home; no test of this folder may see a traceback."""

    def command(*arguments: str, **more: Any) -> CompletedProcess[str]:
        done = poolkit.inferpool(*arguments, **{"home": home} | more)
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done

    return command


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[poolkit.Running]:
    """A real pool with the small real model only, for commands that look at a pool."""
    flags = {**poolkit.FREE_PORTS, "node.models": [poolkit.SPAM]}
    running = poolkit.start(tmp_path_factory.mktemp("cli"), flags, names=[poolkit.SPAM])
    yield running
    assert set(running.pool.close().values()) == {0}
