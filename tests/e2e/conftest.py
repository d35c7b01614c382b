"""One running pool for the tests that leave it as it was; the others start their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import poolkit


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[poolkit.Running]:
    """Chain, node and gateway as processes, with the real models. Every role must end with 0."""
    running = poolkit.start(tmp_path_factory.mktemp("pool"))
    pids = running.pids
    yield running
    codes = running.pool.close()
    poolkit.all_gone(pids)
    assert codes == {"gateway": 0, "node": 0, "chain": 0}
    assert "Traceback" not in running.logs()
