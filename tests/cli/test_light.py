"""What a start does not load: seconds and megabytes that nobody asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("inferpool.cli.main", {"numpy", "sqlalchemy", "uvicorn", "inferpool.gateway.gateway"}),
        (
            "inferpool.daemon.gateway",
            {"numpy", "sqlalchemy.dialects.postgresql", "typer", "inferpool.node.node"},
        ),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_used(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not heavy & set(loaded)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by /proc")
@pytest.mark.parametrize("entry", ["inferpool.cli.main", "inferpool.daemon.__main__"])
def test_numpy_has_no_threads_of_its_own(entry: str) -> None:
    code = (
        f"import os, sys; from {entry} import main; sys.argv = ['inferpool', '--version']\n"
        "try:\n    main(*([[]] if 'daemon' in main.__module__ else []))\n"
        "except SystemExit:\n    pass\n"
        "import numpy; numpy.ones((900, 900)) @ numpy.ones((900, 900))\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept
    ).stdout
    assert said.split()[-1] == "1"
