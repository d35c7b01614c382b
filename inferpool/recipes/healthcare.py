"""Healthcare: glucose half an hour ahead, and tumour cells with the doubtful ones left to a person.

Demonstrations of a way of working (calibration, referral, audit), not medical devices.
"""

from __future__ import annotations

import importlib
from typing import Final

import numpy as np

from inferpool.recipes.kit.calibration import choose_band
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, numbers, packaged, read, rounded
from inferpool.recipes.kit.export import SEED, boosted, export_boosted, export_sklearn
from inferpool.recipes.kit.metrics import Figure, auc, brier, f1, figure, mae, recall
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_hash, by_time, fold

GLUCOSE: Final = packaged(
    "pypi",
    "bokeh-sampledata",
    "2026.1",
    "bokeh_sampledata/_data/CGM.csv.gz",
    315_938,
    "91fdad8325541a4487d88cb59b2fc9f6ed821c7c01eaabed0606bbb7089be8de",
)
CELLS: Final = packaged(
    "pypi",
    "scikit-learn",
    "1.9.1",
    "sklearn/datasets/data/breast_cancer.csv",
    119_913,
    "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
)
STEP_MIN: Final = 5
AHEAD: Final = 6  # steps: half an hour
LAGS: Final = 12  # steps: one hour
LOW: Final = 70.0  # mg/dl, hypoglycaemia
GLUCOSE_FIELDS: Final = (
    "now",
    *(f"change over {STEP_MIN * lag} min" for lag in range(1, LAGS + 1)),
    "minute of the day, sine",
    "minute of the day, cosine",
)
GLUCOSE_EVERY: Final = 4
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
BAND_ERROR: Final = 0.005
FOLDS: Final = 5


def glucose_rows(table: dict[str, list[str]]) -> tuple[Array, Array, Array]:
    """Features, glucose half an hour later, and the minute; only where no reading is missing."""
    minutes = np.array(table["datetime"], dtype="datetime64[m]").astype(np.int64)
    values = numbers(table["glucose"])
    order = np.argsort(minutes, kind="stable")
    minutes, values = minutes[order], values[order]
    rows = np.arange(LAGS, len(values) - AHEAD)
    span = minutes[rows + AHEAD] - minutes[rows - LAGS]
    rows = rows[np.abs(span - STEP_MIN * (LAGS + AHEAD)) <= 2]
    now = values[rows]
    changes = [now - values[rows - lag] for lag in range(1, LAGS + 1)]
    angle = 2 * np.pi * (minutes[rows] % 1440) / 1440
    x = np.column_stack([now, *changes, np.sin(angle), np.cos(angle)])
    y = values[rows + AHEAD]
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y)
    return rounded(x[whole]), y[whole], minutes[rows][whole].astype(float)


def train_glucose() -> Trained:
    """Fit on the first 70 % of the time; what comes an hour later and after is held out."""
    x, y, minutes = glucose_rows(columns(read(GLUCOSE)))
    known, test = by_time(minutes, 0.7, gap=60)
    model = boosted("Regressor", x[known], y[known], num_leaves=15, min_child_samples=100)
    kept = numeric_kept(x[known], model.predict(x[known]))

    def sample(rows: Array) -> Sample:
        return {
            X: x[rows],
            "truth": y[rows],
            "day": (minutes[rows] // 1440).astype(np.int32),
            **kept,
        }

    return Trained(
        export_boosted(model, x.shape[1], "glucose"),
        lambda cases: model.predict(cases[X]),
        sample(test),
        sample(test[::GLUCOSE_EVERY]),
        len(known),
        "LightGBM, 79 trees, on the readings of the last hour",
        (
            "One patient: it says nothing of another. Whole days are resampled for the intervals.",
            "Meals and insulin do not go in.",
        ),
    )


def judge_glucose(sample: Sample, scores: Array) -> list[Figure]:
    """Error, and how well a fall below 70 mg/dl is seen, against the value of now."""
    truth, now, day = sample["truth"], sample[X][:, 0].astype(float), sample["day"]
    low = (truth < LOW).astype(int)
    return [
        figure("MAE, mg/dl", mae, truth, scores, now, "value of now", bar=0.9 * mae(truth, now),
               more_is_better=False, groups=day),
        figure("AUC, below 70 in 30 min", auc, low, -scores, -now, "value of now", bar=0.90,
               groups=day),
    ]  # fmt: skip


def cells(text: str) -> tuple[Array, Array, list[str]]:
    """Measures, label (1: malignant), and each patient's line."""
    lines = text.splitlines()[1:]
    rows = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    return rounded(rows[:, :-1], 6), (rows[:, -1] == 0).astype(int), lines


def train_cells() -> Trained:
    """Fit on four folds by the hash of the patient's line."""
    pipeline = importlib.import_module("sklearn.pipeline").make_pipeline
    scaler = importlib.import_module("sklearn.preprocessing").StandardScaler
    logistic = importlib.import_module("sklearn.linear_model").LogisticRegression
    x, y, lines = cells(read(CELLS))
    known, test = by_hash(lines)
    folds = np.array([fold(line) for line in lines])

    def fitted(rows: Array) -> object:
        model = pipeline(scaler(), logistic(C=0.3, max_iter=2_000, random_state=SEED))
        found: object = model.fit(x[rows], y[rows])
        return found

    crossed = np.zeros(len(x))
    for number in range(FOLDS - 1):
        here = known[folds[known] == number]
        said = fitted(known[folds[known] != number]).predict_proba(x[here])  # type: ignore[attr-defined]
        crossed[here] = said[:, 1]
    model = fitted(known)
    sample = {
        X: x[test],
        "truth": y[test],
        "rule_cut": np.array(_best_cut(x[known, 0], y[known])),
        "base": np.array(y[known].mean()),
        "band": np.array(choose_band(y[known], crossed[known], BAND_ERROR), dtype=np.float32),
        **numeric_kept(x[known], crossed[known]),
    }
    return Trained(
        export_sklearn(model, x.shape[1], "probability"),
        lambda cases: model.predict_proba(cases[X])[:, 1],  # type: ignore[attr-defined]
        sample,
        sample,
        len(known),
        "logistic regression on 30 measures of cell nuclei",
        (
            "569 patients of one hospital, 1993; measures taken by hand-guided software.",
            "The band was chosen on cross-validated scores of the known patients, for at most"
            f" {BAND_ERROR:.1%} errors outside of it.",
        ),
    )


def _best_cut(values: Array, labels: Array) -> float:
    cuts = np.unique(values)
    return float(max(cuts, key=lambda cut: f1(labels, (values >= cut).astype(int))))


def judge_cells(sample: Sample, scores: Array) -> list[Figure]:
    """Ranking, sensitivity, specificity and calibration against the mean radius alone."""
    truth, radius = sample["truth"], sample[X][:, 0].astype(float)
    said, rule = (scores >= 0.5).astype(int), (radius >= sample["rule_cut"]).astype(int)
    flat = np.full(len(truth), float(sample["base"]))
    return [
        figure("AUC", auc, truth, scores, radius, "mean radius", bar=0.98),
        figure("sensitivity", recall, truth, said, rule, "mean radius"),
        figure("specificity", recall, 1 - truth, 1 - said, 1 - rule, "mean radius"),
        figure("Brier score", brier, truth, scores, flat, "base rate", more_is_better=False),
    ]


RECIPE: Final = Recipe(
    "healthcare",
    "Healthcare",
    "Glucose half an hour ahead; tumour cells, calibrated, with a band that goes to a person.",
    "One patient's continuous glucose monitor (public domain), from the PyPI package"
    " bokeh-sampledata 2026.1; Breast Cancer Wisconsin Diagnostic (UCI, CC BY 4.0, Wolberg, Street"
    " and Mangasarian), from the PyPI package scikit-learn 1.9.1.",
    (
        Case(
            model="glucose-ahead",
            question="How high will this patient's glucose be in 30 minutes?",
            input=X,
            output="glucose",
            fields=GLUCOSE_FIELDS,
            judge=judge_glucose,
            train=train_glucose,
            verdict=lambda score: f"{'warn' if score < LOW + 10 else 'fine'}: {score:.0f} mg/dl",
            unit="mg/dl",
        ),
        Case(
            model="tumour-cells",
            question="How likely are these cells malignant?",
            input=X,
            output="probability",
            fields=CELL_FIELDS,
            judge=judge_cells,
            train=train_cells,
            verdict=lambda score: "malignant" if score >= 0.5 else "benign",
            probability=True,
        ),
    ),
)
