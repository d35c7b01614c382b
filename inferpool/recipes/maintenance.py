"""Predictive maintenance: how long a turbofan still runs, and whether a radiator behaves oddly.

Late is worse than early, so remaining life comes with a lower bound and is scored by NASA's own
asymmetric rule. Whole engines are held out: neighbouring cycles of one engine tell each other.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import (
    Array,
    Sample,
    columns,
    numbers,
    packaged,
    published,
    read,
    rounded,
)
from inferpool.recipes.kit.export import boosted, export_boosted
from inferpool.recipes.kit.metrics import Figure, auc, average_precision, figure, recall, rmse
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_group, by_time

_FOLDER: Final = (
    "https://raw.githubusercontent.com/alireza-javanmardi/conformal-RUL-intervals/"
    "37e450ac8b656229d44aed3ac39dcf85ea11b86c/data/CMAPSS/"
)
TRAIN: Final = published(
    _FOLDER + "train_FD001.txt",
    3_515_356,
    "963b5e22825b34d8b21c69e1aeb4af3e647050eb672ee8834ba4b5d91d2de0f8",
)
TEST: Final = published(
    _FOLDER + "test_FD001.txt",
    2_228_855,
    "3cda7109ce17bafb5443f2ac926cfcf88154b941b8c4cf95eb55d1ddd6f52851",
)
TRUTH: Final = published(
    _FOLDER + "RUL_FD001.txt",
    429,
    "a19c8ec94931949d0485bdc35118206e9c81c4547b422efb9cf86f4ceddbceca",
)
SHUTTLE: Final = packaged(
    "pypi",
    "river",
    "0.26.1",
    "river/datasets/shuttle.csv.gz",
    346_275,
    "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59",
)

# The sensors of FD001 that change at all; column in the file, name in NASA's documentation.
SENSORS: Final = {
    6: "T24",
    7: "T30",
    8: "T50",
    11: "P30",
    12: "Nf",
    13: "Nc",
    15: "Ps30",
    16: "phi",
    17: "NRf",
    18: "NRc",
    19: "BPR",
    21: "htBleed",
    24: "W31",
    25: "W32",
}
CAP: Final = 125.0  # cycles; before that an engine shows no wear (the usual convention)
WINDOWS: Final = (5, 20)  # cycles
ALARM: Final = 30.0  # cycles left when a planner wants to know
COVERAGE: Final = 0.9
RUL_FIELDS: Final = tuple(
    f"{name} {what}"
    for name in SENSORS.values()
    for what in ("mean of 5", "mean of 20", "change over 20")
)


def cycles(text: str) -> Array:
    """The rows of a C-MAPSS file: unit, cycle, three settings, 21 sensors."""
    return np.array([[float(cell) for cell in line.split()] for line in text.splitlines() if line])


def engine_features(rows: Array) -> Array:
    """For each cycle of one engine, from itself and the cycles before it: means and trend."""
    found = []
    for column in SENSORS:
        values = rows[:, column]
        total = np.concatenate([[0.0], np.cumsum(values)])
        ends = np.arange(1, len(values) + 1)
        short, long = (
            (total[ends] - total[np.maximum(0, ends - width)]) / np.minimum(ends, width)
            for width in WINDOWS
        )
        before = short[np.maximum(0, ends - 1 - WINDOWS[1])]
        found += [short, long, short - before]
    return np.column_stack(found)


def nasa_score(truth: Array, value: Array) -> float:
    """NASA's rule of 2008, summed: an estimate that is too late costs more than one too early."""
    late = value - truth
    return float(np.where(late < 0, np.exp(-late / 13), np.exp(late / 10)).sum() - len(late))


def train_life() -> Trained:
    """Fit on 80 engines, learn the lower bound on 20 others, refit on all, test on 100 more."""
    rows = cycles(read(TRAIN))
    units = rows[:, 0]
    x = rounded(np.vstack([engine_features(rows[units == u]) for u in np.unique(units)]))
    last = {u: rows[units == u][-1, 1] for u in np.unique(units)}
    y = np.minimum(CAP, np.array([last[u] for u in units]) - rows[:, 1])
    fitted, judged = by_group(units, np.unique(units)[::5])
    settings: dict[str, Any] = {"num_leaves": 15, "learning_rate": 0.06, "min_child_samples": 60}
    draft = boosted("Regressor", x[fitted], y[fitted], **settings)
    # One cut per held-out engine, as in the test set; residuals of one engine hang together.
    cuts = _cuts(units[judged], y[judged])
    residuals = (y[judged] - draft.predict(x[judged]))[cuts]
    offset = float(np.quantile(residuals, 1 - COVERAGE))
    model = boosted("Regressor", x, y, **settings)
    tests = cycles(read(TEST))
    ends = [engine_features(tests[tests[:, 0] == u])[-1] for u in np.unique(tests[:, 0])]
    truth = np.array([float(line) for line in read(TRUTH).split()])
    sample = {
        X: rounded(np.array(ends)),
        "truth": np.minimum(CAP, truth),
        "age": np.array([(tests[:, 0] == u).sum() for u in np.unique(tests[:, 0])]),
        "mean_life": np.array(np.mean(list(last.values()))),
        "lower_offset": np.array(offset),
        **numeric_kept(x, model.predict(x)),
    }
    return Trained(
        export_boosted(model, x.shape[1], "cycles_left"),
        lambda cases: model.predict(cases[X]),
        sample,
        sample,
        len(x),
        "LightGBM, 79 trees, on means and trends of 14 sensors",
        (
            "Simulated engines, one flight condition and one fault. A real fleet is harder.",
            "True remaining life is capped at 125 cycles, as is usual for this set.",
            f"The lower bound is the estimate {offset:+.1f} cycles: what {COVERAGE:.0%} of 200"
            " cuts of 20 engines stayed above that the draft model had not seen.",
        ),
    )


def _cuts(units: Array, left: Array) -> Array:
    """Ten rows for each engine, spread over its life as the test set's ends are."""
    chosen: list[int] = []
    for unit in np.unique(units):
        rows = np.flatnonzero(units == unit)
        late = rows[left[rows] < CAP]
        chosen += np.linspace(rows[len(rows) // 3], late[-5], 10).astype(int).tolist()
    return np.array(chosen)


def judge_life(sample: Sample, scores: Array) -> list[Figure]:
    """Errors in cycles, NASA's score per engine, the alarm, and the lower bound."""
    truth = sample["truth"]
    rule = np.clip(sample["mean_life"] - sample["age"], 0, CAP)
    lower = scores + sample["lower_offset"]
    name = "mean life minus age"

    def per_engine(a: Array, b: Array) -> float:
        return nasa_score(a, b) / len(a)

    soon, said = (truth < ALARM).astype(int), (scores < ALARM).astype(int)
    ruled = (rule < ALARM).astype(int)
    return [
        figure("RMSE, cycles", rmse, truth, scores, rule, name, bar=16.0, more_is_better=False),
        figure(
            "NASA score per engine", per_engine, truth, scores, rule, name, more_is_better=False
        ),
        figure("found with under 30 cycles left", recall, soon, said, ruled, name),
        figure(
            "true life above the lower bound",
            lambda t, b: float((t >= b).mean()),
            truth,
            lower,
            float((truth >= scores).mean()),
            "the estimate itself",
            bar=0.85,
        ),
    ]


def train_shuttle() -> Trained:
    """Fit on the first 70 % of the stream; what comes after is held out."""
    table = columns(read(SHUTTLE))
    fields = [name for name in table if name != "anomaly"]
    x = rounded(np.column_stack([numbers(table[name]) for name in fields]))
    y = numbers(table["anomaly"]).astype(int)
    known, test = by_time(np.arange(len(x), dtype=float), 0.7)
    model = boosted("Classifier", x[known], y[known], num_leaves=15)
    middle = np.median(x[known], axis=0)
    spread = np.maximum(1.0, np.percentile(np.abs(x[known] - middle), 75, axis=0))
    rule = (np.abs(x - middle) / spread).max(axis=1)

    def sample(rows: Array) -> Sample:
        kept = numeric_kept(x[known], model.predict_proba(x[known])[:, 1])
        return {X: x[rows], "truth": y[rows], "rule": rule[rows].astype(np.float32), **kept}

    return Trained(
        export_boosted(model, x.shape[1], "probability"),
        lambda cases: model.predict_proba(cases[X])[:, 1],
        sample(test),
        sample(test[::3]),
        len(known),
        "LightGBM, 79 trees, on nine readings of one moment",
        ("An easy set: nearly any method finds these anomalies. No evidence for harder ones.",),
    )


def judge_shuttle(sample: Sample, scores: Array) -> list[Figure]:
    """How well anomalies come out on top."""
    truth, rule = sample["truth"], sample["rule"]
    name = "widest deviation"
    return [
        figure("AUC", auc, truth, scores, rule, name, bar=0.99),
        figure("average precision", average_precision, truth, scores, rule, name, bar=0.95),
    ]


def life_verdict(score: float) -> str:
    """What a planner reads."""
    return f"plan a shop visit: {score:.0f} cycles" if score < ALARM else f"{score:.0f} cycles"


RECIPE: Final = Recipe(
    "maintenance",
    "Predictive maintenance",
    "Cycles that a turbofan still runs, with a lower bound; anomalies of a radiator's readings.",
    "NASA C-MAPSS FD001 turbofan degradation (simulated; US government work, public domain; Saxena"
    " and others 2008), from a public repository by hash; Statlog Shuttle (UCI, CC BY 4.0), from"
    " the PyPI package river 0.26.1.",
    (
        Case(
            model="turbofan-life",
            question="How many cycles does this turbofan still run?",
            input=X,
            output="cycles_left",
            fields=RUL_FIELDS,
            judge=judge_life,
            train=train_life,
            verdict=life_verdict,
            unit="cycles, at most 125",
        ),
        Case(
            model="shuttle-anomaly",
            question="How likely are these radiator readings an anomaly?",
            input=X,
            output="probability",
            fields=tuple(f"f{number}" for number in range(1, 10)),
            judge=judge_shuttle,
            train=train_shuttle,
            verdict=lambda score: "anomaly" if score >= 0.5 else "normal",
            probability=True,
        ),
    ),
)
