"""The command line, in a home of its own; for what needs a pool, the end-to-end suite's one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import poolkit

from inferpool.cli.main import main
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


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The same in this process, for what ends before any role would start."""

    def command(*arguments: str, **more: str) -> Done:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("INFERPOOL_")]:
                patch.delenv(name)
            for name, text in {"INFERPOOL_HOME": str(home.root), **more}.items():
                patch.setenv(name, text)
            patch.setattr(sys, "argv", ["inferpool", *arguments])
            with pytest.raises(SystemExit) as caught:
                main()
        code = caught.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[poolkit.Running]:
    """The end-to-end suite's pool, for commands that look at one."""
    with poolkit.shared(tmp_path_factory) as running:
        yield running
