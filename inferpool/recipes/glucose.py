"""Glucose half an hour ahead, for the recipe `healthcare`: and when to measure by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.calibration import choose_band, residual_quantiles
from inferpool.recipes.kit.case import Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, numbers, packaged, read, rounded
from inferpool.recipes.kit.export import (
    boosted,
    crossed_boosted,
    export_boosted,
)
from inferpool.recipes.kit.metrics import Figure, auc, figure, mae
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_time

GLUCOSE: Final = packaged(
    "pypi",
    "bokeh-sampledata",
    "2026.1",
    "bokeh_sampledata/_data/CGM.csv.gz",
    315_938,
    "91fdad8325541a4487d88cb59b2fc9f6ed821c7c01eaabed0606bbb7089be8de",
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
GLUCOSE_BAND_ERROR: Final = 0.01


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
