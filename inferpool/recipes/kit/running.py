"""Evaluating and running a recipe: the same steps for each, their results as data for reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.protocol.units import format_usd
from inferpool.recipes.kit import audit, calibration, drift
from inferpool.recipes.kit.case import TEXT, Case, Recipe, Trained, scores_of
from inferpool.recipes.kit.data import Array, Sample, first, heldout
from inferpool.recipes.kit.gate import parity
from inferpool.recipes.kit.metrics import Figure
from inferpool.recipes.kit.reasons import reasons
from inferpool.recipes.kit.scorer import (
    Answer,
    Scorer,
    difference,
    infer_all,
    latencies_ms,
)

AGREE: Final = 2e-6  # pool against the engine in this process, relative (design D6)
SMALL_ROWS: Final = 256
DECISIONS: Final = 8
_CALLS: Final = 200
_SMALL_CALLS: Final = 20
_PICO: Final = 10**12


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision as it is shown."""

    case: str
    score: float
    verdict: str
    why: str
    node: str
    charge_pico_usd: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told while a recipe runs."""

    progress: Callable[[str, int, int], None] = lambda label, done, total: None
    decision: Callable[[Decision], None] = lambda decision: None


def evaluate(
    case: Case,
    scorer: Scorer,
    engine: Scorer,
    rows: int | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Score the committed held-out cases both ways and judge them."""
    told = listener or Listener()
    sample = first(heldout(case.model), rows)
    total = len(sample["truth"])
    outputs = infer_all(
        scorer,
        case.model,
        case.input,
        sample[case.input],
        lambda done: told.progress(case.model, done, total),
    )
    apart = difference(outputs, infer_all(engine, case.model, case.input, sample[case.input]))
    scores = scores_of(case, outputs)
    return {
        "model": case.model,
        "question": case.question,
        "scored_by": scorer.name,
        "n": total,
        "figures": [
            asdict(item) | {"reached": item.reached} for item in judged(case, sample, scores)
        ],
        "difference_to_engine": apart,
        "agrees": apart <= AGREE,
        **_probability_facts(case, sample, scores),
    }


def judged(case: Case, sample: Sample, scores: Array) -> list[Figure]:
    """The judge's figures; a resample of few cases may lack a class, which is no error."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return case.judge(sample, scores.astype(np.float64))


def _probability_facts(case: Case, sample: Sample, scores: Array) -> dict[str, Any]:
    if not case.probability:
        return {}
    truth, said = sample["truth"], scores.astype(np.float64)
    facts: dict[str, Any] = {
        "calibration": [asdict(item) for item in calibration.bins(truth, said)],
        "expected_calibration_error": calibration.expected_error(truth, said),
    }
    if "band" in sample:
        low, high = map(float, sample["band"])
        facts["band"] = asdict(calibration.band(truth, said, low, high, case.threshold))
    return facts


def run_case(
    recipe: Recipe,
    case: Case,
    scorer: Scorer,
    engine: Scorer,
    out: Path,
    *,
    small: bool,
    listener: Listener,
) -> dict[str, Any]:
    """Everything about one case: figures, drift, decisions with audits, latency, cost."""
    facts = evaluate(case, scorer, engine, SMALL_ROWS if small else None, listener)
    sample = heldout(case.model)
    facts["drift"] = drift_facts(case, sample, engine)
    facts["decisions"], facts["cost"] = _decide(
        recipe, case, sample, scorer, engine, out / "decisions", listener
    )
    calls = _SMALL_CALLS if small else _CALLS
    facts["latency"] = {
        way.name: _percentiles(latencies_ms(way, case.model, case.input, sample[case.input], calls))
        for way in {scorer.name: scorer, engine.name: engine}.values()
    }
    return facts


def monitored(case: Case, sample: Sample, scores: Array) -> Array:
    """What the drift monitor looks at: every numeric field, and the score."""
    score = scores.astype(np.float32).reshape(-1, 1)
    return score if case.input == TEXT else np.hstack([sample[case.input], score])


def drift_facts(case: Case, sample: Sample, engine: Scorer) -> dict[str, Any]:
    """The monitor on the held-out cases, and a rehearsal: one field shifted by two deviations."""
    fields = (*case.fields, "score")
    monitor = drift.Monitor(fields, sample["drift_edges"], sample["drift_shares"])
    outputs = infer_all(engine, case.model, case.input, sample[case.input])
    now = monitored(case, sample, scores_of(case, outputs))
    column = int(np.argmax([len(np.unique(now[:, i])) for i in range(now.shape[1])]))
    moved = monitor.check(drift.shifted(now, column, 2.0))
    hit = next(item for item in moved if item.field == fields[column])
    found = monitor.check(now)
    return {
        "n": len(now),
        "worst": [asdict(item) for item in found[:5]],
        "alarms": sum(item.alarm for item in found),
        "rehearsal": {"shifted": hit.field, "psi": hit.psi, "alarm": hit.alarm},
    }


def _decide(
    recipe: Recipe,
    case: Case,
    sample: Sample,
    scorer: Scorer,
    engine: Scorer,
    folder: Path,
    listener: Listener,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A few single decisions, each bought, explained, written to a file and replayed from it."""
    chosen = np.linspace(0, len(sample["truth"]) - 1, DECISIONS).astype(int)
    rows = [sample[case.input][index][None] for index in chosen]
    answers: list[Sample] = []
    times_ms = []
    for row in rows:
        answers.append(scorer.infer(case.model, case.input, row))
        times_ms.append(time.time_ns() // 1_000_000)
    told = scorer.told(case.model, answers)
    shown = []
    for row, answer, time_ms in zip(rows, told, times_ms, strict=True):
        score = float(scores_of(case, answer.outputs)[0])
        why = reasons(engine, case, row[0], sample.get("typical"))
        verdict = verdict_of(case, sample, score)
        decision = audit.record(
            recipe.name, case.model, case.input, row, answer, score, verdict, why, time_ms
        )
        path = audit.write(decision, folder / case.model)
        again = audit.replay(decision, engine)
        spent = _charge(answer)
        words = ", ".join(f"{item.field} {item.effect:+.3g}" for item in why[:3])
        item = Decision(case.model, score, verdict, words, answer.node, spent, again.same)
        listener.decision(item)
        shown.append(asdict(item) | {"bitwise": again.bitwise, "file": path.name})
    return shown, _cost(told)


def verdict_of(case: Case, sample: Sample, score: float) -> str:
    """The case's own verdict, or a person's where the score lies in the band."""
    if "band" in sample and case.probability:
        low, high = map(float, sample["band"])
        if low < high and low <= score <= high:
            return "refer to a person"
    return case.verdict(score)


def _charge(answer: Answer) -> int:
    return int(answer.receipt["receipt"]["chargePico"]) if answer.receipt else 0


def _cost(told: list[Answer]) -> dict[str, Any]:
    charged = sum(map(_charge, told))
    per_thousand = charged * 1000 // max(1, len(told))
    return {
        "decisions": len(told),
        "charged_pico_usd": charged,
        "usd_per_1000_decisions": per_thousand / _PICO,
        "per_1000_decisions": format_usd(per_thousand),
    }


def _percentiles(times_ms: Array) -> dict[str, float]:
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {"n": len(times_ms), "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def train(case: Case) -> tuple[Trained, list[Figure], float]:
    """Train, pass the parity gate, judge all held-out cases. Raises `Refused` at the gate."""
    trained = case.train()
    apart = parity(case, trained)
    said = np.asarray(trained.predict(trained.test))
    scores = scores_of(case, {case.output: said})
    return trained, judged(case, trained.test, scores), apart


def numeric_kept(known: Array, known_scores: Array) -> Sample:
    """What a sample keeps of the known cases: medians for reasons, quantiles for drift."""
    scores = np.asarray(known_scores, dtype=np.float32).reshape(-1, 1)
    edges, shares = drift.reference(np.hstack([known.astype(np.float32), scores]))
    typical = np.median(known, axis=0).astype(np.float32)
    return {"typical": typical, "drift_edges": edges, "drift_shares": shares}


def text_kept(known_scores: Array) -> Sample:
    """As `numeric_kept`, for a model that reads text: the scores' quantiles."""
    edges, shares = drift.reference(np.asarray(known_scores, dtype=np.float32).reshape(-1, 1))
    return {"drift_edges": edges, "drift_shares": shares}
