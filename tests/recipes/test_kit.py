"""Drift, splits, audits, the gate, reports: each shown to fire, and not to fire."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from inferpool.protocol.errors import Refused
from inferpool.recipes import crm
from inferpool.recipes.kit import audit, data, drift, gate, report, split, svg
from inferpool.recipes.kit.case import Trained, X, scores_of
from inferpool.recipes.kit.reasons import reasons
from inferpool.recipes.kit.scorer import EngineScorer, difference, infer_all
from inferpool.recipes.kit.use import about_usd

CHURN = crm.RECIPE.cases[0]


def test_psi_by_hand() -> None:
    assert drift.psi(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    by_hand = (0.75 - 0.5) * np.log(1.5) + (0.25 - 0.5) * np.log(0.5)
    assert drift.psi(np.array([0.5, 0.5]), np.array([0.75, 0.25])) == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(20))
def test_drift_fires_on_a_shift_and_on_nothing_else(seed: int) -> None:
    random = np.random.default_rng(seed)
    known = random.normal(size=(2_000, 3))
    monitor = drift.Monitor(("a", "b", "c"), *drift.reference(known))
    today = random.normal(size=(500, 3))
    assert not any(item.alarm for item in monitor.check(today))
    fired = [item.field for item in monitor.check(drift.shifted(today, 1)) if item.alarm]
    assert fired == ["b"]


def test_drift_of_a_field_with_few_values() -> None:
    known = np.repeat([[0.0], [1.0]], [90, 10], axis=0)
    monitor = drift.Monitor(("flag",), *drift.reference(known))
    assert monitor.check(known)[0].psi == pytest.approx(0, abs=1e-6)
    assert monitor.check(1 - known)[0].alarm


def test_splits_keep_groups_times_and_hashes_apart() -> None:
    known, test = split.by_time(np.arange(100.0)[::-1], 0.8, gap=5)
    assert (len(known), len(test)) == (80, 15)
    groups = np.array(["a", "b", "a", "c"])
    inside, outside = split.by_group(groups, np.array(["a"]))
    assert (inside.tolist(), outside.tolist()) == ([1, 3], [0, 2])
    keys = [str(i % 50) for i in range(200)]
    one, other = split.by_hash(keys)
    assert len(one) + len(other) == 200
    assert not {keys[i] for i in one} & {keys[i] for i in other}


def test_heldout_is_written_and_read_back(tmp_path: Path) -> None:
    texts = np.array(["one line", "über"], dtype=object).reshape(-1, 1)
    data.save_heldout("m", {"text": texts, "truth": np.array([0, 1])}, tmp_path)
    found = data.heldout("m", tmp_path)
    assert found["text"].tolist() == texts.tolist()
    assert found["truth"].tolist() == [0, 1]
    assert data.first(found, 1)["truth"].tolist() == [0]


def _decision(engine: EngineScorer) -> dict[str, object]:
    row = data.heldout("churn")[X][:1]
    outputs = engine.infer("churn", X, row)
    answer = engine.told("churn", X, [row], [outputs])[0]
    score = float(scores_of(CHURN, outputs)[0])
    return audit.record("crm", "churn", X, row, answer, score, "leave alone", [], 1)


def test_replay_is_equal_bit_for_bit(engine: EngineScorer, tmp_path: Path) -> None:
    path = audit.write(_decision(engine), tmp_path)
    again = audit.replay(json.loads(path.read_text()), engine)
    assert (again.same, again.bitwise, again.difference) == (True, True, 0)
    with pytest.raises(FileExistsError):
        audit.write(_decision(engine), tmp_path)


@pytest.mark.parametrize("part", ["input", "outputs"])
def test_an_altered_decision_is_refused(engine: EngineScorer, part: str) -> None:
    decision = copy.deepcopy(_decision(engine))
    tensor = decision[part] if part == "input" else decision[part][0]  # type: ignore[index]
    tensor["data_base64"] = "AAAA" + tensor["data_base64"][4:]  # type: ignore[index, call-overload]
    with pytest.raises(Refused, match="hash"):
        audit.replay(decision, engine)


def test_another_answer_is_not_the_same(engine: EngineScorer) -> None:
    row = data.heldout("churn")[X][:1]
    answer = engine.told("churn", X, [row], [engine.infer("churn", X, row)])[0]
    moved = replace(answer, outputs={"probability": answer.outputs["probability"] + 1e-3})
    decision = audit.record("crm", "churn", X, row, moved, 0.5, "", [], 1)
    assert not audit.replay(decision, engine).same


def test_another_model_is_refused(engine: EngineScorer) -> None:
    with pytest.raises(Refused, match="another model"):
        audit.replay({**_decision(engine), "manifest": "0x" + "00" * 32}, engine)


def _trained(engine: EngineScorer, spoil: float) -> Trained:
    sample = data.first(data.heldout("churn"), 100)
    truth = scores_of(CHURN, infer_all(engine, "churn", X, sample[X]))
    said = truth.astype(np.float64)
    said[0] += spoil
    model = (data.MODELS / "data" / "churn.onnx").read_bytes()
    return Trained(model, lambda cases: said, sample, sample, 1, "")


def test_gate_lets_an_equal_export_pass(engine: EngineScorer) -> None:
    assert gate.parity(CHURN, _trained(engine, 0.0)) == 0


def test_gate_refuses_a_different_export(engine: EngineScorer) -> None:
    with pytest.raises(Refused, match=r"differs from the trained model by 0\.001"):
        gate.parity(CHURN, _trained(engine, 1e-3))


def test_gate_refuses_a_flipped_verdict_however_small() -> None:
    with pytest.raises(Refused, match="1 flipped"):
        gate.compare(CHURN, np.array([0.5]), np.array([0.49999]))


def test_gate_refuses_no_number() -> None:
    with pytest.raises(Refused):
        gate.compare(CHURN, np.array([0.2, 0.3]), np.array([0.2, np.nan]))


def test_gate_refuses_a_file_that_is_no_model(engine: EngineScorer) -> None:
    from inferpool.protocol.errors import Unavailable

    broken = replace(_trained(engine, 0.0), model=b"\x00" * 100)
    with pytest.raises(Unavailable, match="not an ONNX model"):
        gate.parity(CHURN, broken)


def test_difference_is_infinite_between_unlike_answers() -> None:
    one = {"p": np.array([0.5, np.nan])}
    assert difference(one, one) == 0
    assert difference(one, {"q": one["p"]}) == float("inf")
    assert difference(one, {"p": np.array([0.5, 0.5])}) == float("inf")
    assert difference({"p": np.array([100.0])}, {"p": np.array([101.0])}) == pytest.approx(1 / 101)


def test_reasons_name_the_field_that_was_moved(engine: EngineScorer) -> None:
    sample = data.heldout("churn")
    typical = sample["typical"]
    row = typical.copy()
    row[crm.FIELDS.index("tenure")] = 1.0
    found = reasons(engine, CHURN, row, typical)
    assert [item.field for item in found] == ["tenure"]
    assert found[0].effect > 0  # a new customer leaves sooner
    assert reasons(engine, CHURN, typical, typical) == []


def test_drawings_are_well_formed_and_escaped() -> None:
    drawings = [
        svg.lines({"a<b": [(0, 0), (1, 2)], "c": [(0, 1)]}, "x", "y & z"),
        svg.bars([("<script>", 1.0), ("b", -0.5)], "%"),
        svg.calibration([(0.1, 0.2), (0.9, 0.8)]),
    ]
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        assert "<script" not in drawing


def test_report_escapes_what_it_shows(tmp_path: Path) -> None:
    facts = {"title": "<b>", "summary": "s & t", "data": "d", "cases": []}
    page, found = report.write(facts, tmp_path)
    assert "<b>" not in page.read_text("utf-8")
    assert json.loads(found.read_text("utf-8")) == facts


def test_amounts_for_people_have_three_digits_and_are_never_rounded_up() -> None:
    amounts = {31_766_129_032: "$0.0317", 399_999_999: "$0.000399", 0: "$0", 12: "$0.000000000012"}
    assert {pico: about_usd(pico) for pico in amounts} == amounts
