"""Every recipe on the engine in this process; one through a real pool; all of it offline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferpool.cli.main import app
from inferpool.models import catalogue
from inferpool.protocol.errors import BadRequest
from inferpool.recipes import registry
from inferpool.recipes.kit import data
from inferpool.recipes.kit.case import Case, Recipe
from inferpool.recipes.kit.deciding import Decision
from inferpool.recipes.kit.pool import open_pool
from inferpool.recipes.kit.running import Listener, evaluate, run_case
from inferpool.recipes.kit.scorer import EngineScorer

CASES = [(recipe, case) for recipe in registry.all() for case in recipe.cases]
IDS = [case.model for _, case in CASES]


@pytest.mark.parametrize(("recipe", "case"), CASES, ids=IDS)
def test_committed_cases_reach_their_bars(recipe: Recipe, case: Case, engine: EngineScorer) -> None:
    found = evaluate(case, engine, engine)
    assert found["agrees"]
    assert found["n"] >= 90
    for item in found["figures"]:
        assert item["low"] <= item["value"] <= item["high"], item
        assert item["reached"], item


SOUND = [(recipe, case) for recipe, case in CASES if not recipe.whole]  # others: test_whole


@pytest.mark.parametrize(("recipe", "case"), SOUND, ids=[case.model for _, case in SOUND])
def test_small_run(recipe: Recipe, case: Case, engine: EngineScorer, tmp_path: Path) -> None:
    told: list[Decision] = []
    found = run_case(
        recipe, case, engine, engine, tmp_path, small=True, listener=Listener(decision=told.append)
    )
    assert len(told) == len(found["decisions"]) == len(list(tmp_path.rglob("*.json")))
    assert all(item["bitwise"] for item in found["decisions"])
    assert found["drift"]["rehearsal"]["alarm"]
    assert found["limits"]


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=IDS)
def test_artefacts_are_small_described_and_attributed(case: Case) -> None:
    folder = data.MODELS / "data"
    manifest = catalogue.load(case.model)
    assert manifest.size <= case.bytes_max
    assert manifest.licence == case.licence
    assert (folder / f"{case.model}-heldout.npz").stat().st_size < 400_000
    assert case.model in (folder / f"{case.model}-card.md").read_text("utf-8")
    assert f"{case.model}.onnx" in (folder / "NOTICE-recipes").read_text("utf-8")
    assert [item.name for item in manifest.outputs] == [case.output]


@pytest.mark.timeout(180)  # three processes start, on a machine that may be busy
def test_through_a_real_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: EngineScorer
) -> None:
    monkeypatch.setenv("INFERPOOL_HOME", str(tmp_path / "home"))
    recipe = registry.load("crm")
    case = replace(recipe.cases[0], deadline_s=60.0)  # a busy machine is no reason to decide here
    with open_pool([case.model]) as pool:
        found = run_case(recipe, case, pool, engine, tmp_path, small=True, listener=Listener())
        listed = [item.id for item in pool.openai().models.list()]
    assert case.model in listed, "both clients, one after the other"
    assert found["agrees"]
    assert found["scored_by"] == "pool"
    assert found["cost"]["charged_pico_usd"] > 0
    assert all(item["bitwise"] for item in found["decisions"])
    files = list(tmp_path.rglob("decisions/**/*.json"))
    receipts = [json.loads(file.read_text())["receipt"] for file in files]
    assert len({receipt["signature"] for receipt in receipts}) == len(files) == 8
    assert {receipt["receipt"]["manifest"] for receipt in receipts} == {
        catalogue.load(case.model).id
    }
    replayed = CliRunner().invoke(app, ["recipe", "replay", *map(str, files), "--json"])
    assert replayed.exit_code == 0
    assert all(item["bitwise"] for item in json.loads(replayed.stdout))


def test_recipes_are_listed() -> None:
    found = CliRunner().invoke(app, ["recipes", "--json"])
    assert [item["name"] for item in json.loads(found.stdout)] == list(registry.NAMES)


def test_an_unknown_recipe_names_the_known() -> None:
    with pytest.raises(BadRequest, match="spam"):
        registry.load("nothing")
