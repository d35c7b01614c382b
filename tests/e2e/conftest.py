"""One running pool for the tests that leave it as it was; the others start their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import poolkit


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the npm client's tests out, aloud, where there is no npm client."""
    if "INFERPOOL_TEST_NPM" in os.environ:
        return
    left_out = [item for item in items if item.get_closest_marker("npm")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("npm")]
        print(f"\n{len(left_out)} tests of the npm client left out: make test-x402-npm runs them")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and every child inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[poolkit.Running]:
    """Chain, node and gateway as processes, with the real models."""
    with poolkit.shared(tmp_path_factory) as running:
        yield running
