"""Evaluating and running a recipe: the same steps for each, their results as data for reports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit import calibration, card, drift
from inferpool.recipes.kit.case import TEXT, Case, Recipe, Trained, scores_of
from inferpool.recipes.kit.data import Array, Sample, first, heldout
from inferpool.recipes.kit.deciding import Decision, Desk, cost, spread, waiting
from inferpool.recipes.kit.gate import parity
from inferpool.recipes.kit.live import rehearse
from inferpool.recipes.kit.metrics import Figure
from inferpool.recipes.kit.scorer import (
    Scorer,
    difference,
    infer_all,
    latencies_ms,
    percentiles,
    request_body,
)
from inferpool.recipes.kit.take import example, leaks, take

AGREE: Final = 2e-6  # pool against the engine in this process, relative (design D6)
SMALL_ROWS: Final = 256
DECISIONS: Final = 8
_CALLS: Final = 200
_SMALL_CALLS: Final = 20


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
    *,
    sections: bool = False,
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
            asdict(item) | {"reached": item.reached} for item in judged(case, sample, outputs)
        ],
        "difference_to_engine": apart,
        "agrees": apart <= AGREE,
        **_trust(case, sample, scores),
        **({"sections": case.sections(sample, scores)} if sections and case.sections else {}),
    }


def judged(case: Case, sample: Sample, outputs: Sample) -> list[Figure]:
    """The judge's figures; a resample of few cases may lack a class, which is no error."""
    scores = outputs[case.output] if case.ranking else scores_of(case, outputs)
    with np.errstate(invalid="ignore", divide="ignore"):
        return case.judge(sample, scores.astype(np.float64))


def _trust(case: Case, sample: Sample, scores: Array) -> dict[str, Any]:
    truth, said = sample["truth"], scores.astype(np.float64)
    facts: dict[str, Any] = {}
    if case.probability or "residual_quantiles" in sample:
        found = (
            calibration.bins(truth, said)
            if case.probability
            else calibration.coverage(truth, said, sample["residual_quantiles"])
        )
        facts["calibration"] = [asdict(item) for item in found]
        facts["expected_calibration_error"] = calibration.expected_error(found)
        facts["calibration_of"] = "probability" if case.probability else "number"
    if "band" in sample:
        event = truth if case.probability else (truth >= case.threshold).astype(int)
        low, high = map(float, sample["band"])
        facts["band"] = asdict(calibration.band(event, said, low, high, case.threshold))
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
    rows = SMALL_ROWS if small else None
    facts = evaluate(case, scorer, engine, rows, listener, sections=True)
    sample = heldout(case.model)
    said = scores_of(case, infer_all(engine, case.model, case.input, sample[case.input]))
    facts["drift"] = drift_facts(case, sample, said)
    desk = Desk(recipe, case, scorer, engine, out / "decisions")
    taken = spread(sample[case.input], said, DECISIONS)
    decisions, _, told = desk.decide(taken, sample, listener.decision)
    facts["decisions"], facts["cost"] = [asdict(item) for item in decisions], cost(told)
    facts["waiting"] = waiting(case, decisions)
    facts["limits"] = card.limits(case.model)
    if recipe.whole:
        facts["trace"] = trace(case)
    if recipe.whole and not small and case is recipe.cases[0]:
        facts["failover"] = rehearse(case, sample[case.input], engine)
    calls = _SMALL_CALLS if small else _CALLS
    facts["latency"] = {
        way.name: percentiles(latencies_ms(way, case.model, case.input, sample[case.input], calls))
        for way in {scorer.name: scorer, engine.name: engine}.values()
    }
    return facts


def monitored(case: Case, sample: Sample, scores: Array) -> Array:
    """What the drift monitor looks at: every numeric field (or what is watched), and the score."""
    score = scores.astype(np.float32).reshape(-1, 1)
    if case.input == TEXT:
        return score
    rows = sample[case.input]
    return np.hstack([rows if case.watch is None else case.watch(rows), score])


def drift_facts(case: Case, sample: Sample, scores: Array) -> dict[str, Any]:
    """The monitor on the held-out cases, and a rehearsal: one field shifted by two deviations."""
    fields = (*(case.watched or case.fields), "score")
    monitor = drift.Monitor(fields, sample["drift_edges"], sample["drift_shares"])
    now = monitored(case, sample, scores)
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


def trace(case: Case) -> dict[str, Any]:
    """What leaves of an example file with made-up people, and what does not: the request's very
    bytes are searched for every identifier."""
    with TemporaryDirectory() as folder:
        path = example(case, Path(folder), 1)[0]
        item = take(case, path)[-1]
        sent = request_body(case.input, item.row)
        return {
            "file": path.name,
            "left_out": dict(item.identifiers),
            "sent": f"{case.input} {list(item.row.shape)}, {len(sent)} bytes",
            "sent_sha256": hashlib.sha256(sent).hexdigest(),
            "leaks": leaks(sent, item.identifiers),
        }


def train(case: Case) -> tuple[Trained, list[Figure], float]:
    """Train, pass the parity gate, judge all held-out cases. Raises `Refused` at the gate."""
    trained = case.train()
    apart = parity(case, trained)
    said = np.asarray(trained.predict(trained.test))
    return trained, judged(case, trained.test, {case.output: said}), apart


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
