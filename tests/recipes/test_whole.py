"""The table of what whole recipes show: each recipe through one pool, and each demand seen to fail.

A recipe that stops showing one of them fails here, and so does a demand that nothing can fail.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferpool.recipes import registry
from inferpool.recipes.kit import whole
from inferpool.recipes.kit.case import Recipe
from inferpool.recipes.kit.data import heldout
from inferpool.recipes.kit.live import rehearse
from inferpool.recipes.kit.pool import PoolScorer, own_pool
from inferpool.recipes.kit.running import Listener, run_case
from inferpool.recipes.kit.scorer import EngineScorer

WHOLE = [item for item in registry.all() if isinstance(item, Recipe) and item.whole]
IDS = [recipe.name for recipe in WHOLE]
# What has to go for the demand to fail; one that needs nothing of these would hold of anything.
PART = {
    "figures with intervals and baselines": "figures",
    "calibration": "calibration",
    "doubtful cases go to a person": "band",
    "drift is noticed": "drift",
    "decisions are made again from their files": "decisions",
    "each is proven by its node's signature": "decisions",
    "late answers are counted": "waiting",
    "latency beside the bare engine": "latency",
    "cost of 1,000 decisions": "cost",
    "identifiers stay here": "trace",
    "known limits": "limits",
    whole.FIRST: "failover",
}


@pytest.fixture(scope="module")
def pool() -> Iterator[PoolScorer]:
    models = [case.model for recipe in WHOLE for case in recipe.cases]
    with own_pool(models) as started, started.client() as client:
        yield client


@pytest.mark.timeout(180)  # a pool and then two nodes start, on a machine that may be busy
@pytest.mark.parametrize("recipe", WHOLE, ids=IDS)
def test_a_whole_recipe_shows_everything(
    recipe: Recipe, pool: PoolScorer, engine: EngineScorer, tmp_path: Path
) -> None:
    cases = [
        run_case(recipe, case, pool, engine, tmp_path, small=True, listener=Listener())
        for case in recipe.cases
    ]
    assert lacking(cases, small=True) == {}
    assert lacking(cases, small=False) == {whole.FIRST: [recipe.cases[0].model]}
    for demand in whole.EACH:
        broken = copy.deepcopy(cases)
        del broken[0][PART[demand]]
        assert lacking(broken, small=True)[demand] == [recipe.cases[0].model], demand


@pytest.mark.timeout(180)  # five processes start, on a machine that may be busy
@pytest.mark.parametrize("name", ["spam", "maintenance"])  # texts and numbers; `run` checks all
def test_a_node_killed_in_the_middle_loses_nothing(name: str, engine: EngineScorer) -> None:
    case = registry.load(name).cases[0]
    found = rehearse(case, heldout(case.model)[case.input], engine)
    assert found["by_pool"] == found["receipts"] == found["sent"]
    assert found["difference_to_engine"] <= 2e-6
    results = {"model": case.model, "failover": found}
    assert whole.FIRST not in lacking([results], small=False)
    for change in ({"answered": found["sent"] - 1}, {"by_killed": 0},
                   {"charged_for_failed_pico_usd": 1}):  # fmt: skip
        broken = {**results, "failover": found | change}
        assert lacking([broken], small=False)[whole.FIRST] == [case.model]


def test_every_demand_is_in_the_table_and_in_the_manual() -> None:
    assert set(PART) == {*whole.EACH, whole.FIRST}
    page = Path(__file__).parents[2] / "docs" / "howto" / "run-a-recipe.md"
    text = page.read_text("utf-8")
    for demand in PART:
        assert demand in text, demand


def lacking(cases: list[dict[str, Any]], *, small: bool) -> dict[str, list[str]]:
    return {name: models for name, models in whole.shown(cases, small=small).items() if models}
