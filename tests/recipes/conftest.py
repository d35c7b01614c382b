"""A scorer over the bare engine, and a store of its own: no network, no pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inferpool.models.store import Store
from inferpool.recipes.kit import metrics
from inferpool.recipes.kit.scorer import EngineScorer


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested on their own; elsewhere their width does not matter."""
    monkeypatch.setattr(metrics, "RESAMPLES", 60)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineScorer]:
    with EngineScorer(Store(tmp_path_factory.mktemp("store"))) as scorer:
        yield scorer
