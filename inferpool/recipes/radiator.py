"""Anomalies of a radiator's readings, for the recipe `maintenance`."""

from __future__ import annotations

from typing import Final

import numpy as np

from inferpool.recipes.kit.calibration import choose_band
from inferpool.recipes.kit.case import Trained, X
from inferpool.recipes.kit.data import (
    Array,
    Sample,
    columns,
    numbers,
    packaged,
    read,
    rounded,
)
from inferpool.recipes.kit.export import boosted, crossed_boosted, export_boosted
from inferpool.recipes.kit.metrics import Figure, auc, average_precision, figure
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_time

SHUTTLE: Final = packaged(
    "pypi",
    "river",
    "0.26.1",
    "river/datasets/shuttle.csv.gz",
    346_275,
    "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59",
)
FOLDS: Final = 5
SHUTTLE_BAND_ERROR: Final = 0.0001


def train_shuttle() -> Trained:
    """Fit on the first 70 % of the stream; what comes after is held out."""
    table = columns(read(SHUTTLE))
    fields = [name for name in table if name != "anomaly"]
    x = rounded(np.column_stack([numbers(table[name]) for name in fields]))
    y = numbers(table["anomaly"]).astype(int)
    known, test = by_time(np.arange(len(x), dtype=float), 0.7)
    model = boosted("Classifier", x[known], y[known], num_leaves=15)
    folds = np.arange(len(x)) * FOLDS // len(known)  # stretches of the known time
    said = crossed_boosted("Classifier", x, y, folds, known, num_leaves=15)
    band = np.array(choose_band(y[known], said, SHUTTLE_BAND_ERROR), dtype=np.float32)
    middle = np.median(x[known], axis=0)
    spread = np.maximum(1.0, np.percentile(np.abs(x[known] - middle), 75, axis=0))
    rule = (np.abs(x - middle) / spread).max(axis=1)

    def sample(rows: Array) -> Sample:
        kept = numeric_kept(x[known], model.predict_proba(x[known])[:, 1])
        return {X: x[rows], "truth": y[rows], "rule": rule[rows].astype(np.float32),
                "band": band, **kept}  # fmt: skip

    return Trained(
        export_boosted(model, x.shape[1], "probability"),
        lambda cases: model.predict_proba(cases[X])[:, 1],
        sample(test),
        sample(test[::3]),
        len(known),
        "LightGBM, 79 trees, on nine readings of one moment",
        (
            "An easy set: nearly any method finds these anomalies. No evidence for harder ones.",
            "The band was chosen on scores by models of other fifths of the known time, for at most"
            f" {SHUTTLE_BAND_ERROR:.2%} errors outside of it.",
        ),
    )


def judge_shuttle(sample: Sample, scores: Array) -> list[Figure]:
    """How well anomalies come out on top."""
    truth, rule = sample["truth"], sample["rule"]
    name = "widest deviation"
    return [
        figure("AUC", auc, truth, scores, rule, name, bar=0.99),
        figure("average precision", average_precision, truth, scores, rule, name, bar=0.95),
    ]
