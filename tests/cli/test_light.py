"""What a start does not load: seconds and megabytes that nobody asked for."""

from __future__ import annotations

import subprocess
import sys

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
