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
    """Chain, node and gateway as processes, with the real models."""
    with poolkit.shared(tmp_path_factory) as running:
        yield running
