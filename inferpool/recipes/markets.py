"""Two models of markets for the recipe `finance`: a fast option price and the next week's risk.

Neither says where a price goes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from math import erf
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.case import Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, numbers, packaged, read
from inferpool.recipes.kit.export import SEED, export_sklearn
from inferpool.recipes.kit.metrics import Figure, abs_error_percentile, figure, mae, r2
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_time

OIL: Final = packaged(
    "pypi",
    "arch",
    "8.0",
    "arch/data/wti/wti.csv.gz",
    39_069,
    "b83498894138a65cdc14a67fc1716aa90b3cfda274f976bd3692cc3f1500084d",
)
OPTION_FIELDS: Final = ("spot over strike", "years", "volatility", "interest")
OPTION_RANGES: Final = ((0.7, 1.4), (0.05, 2.0), (0.1, 0.6), (0.0, 0.06))
RISK_FIELDS: Final = ("log variance, 5 days", "log variance, 22 days", "log variance, 66 days")
WINDOWS: Final = (5, 22, 66)  # trading days: a week, a month, a quarter
WEEK: Final = 5
TARGET: Final = 0.10  # yearly volatility
COST: Final = 0.0005  # of what is traded
LEAST: Final = 1e-6  # daily variance: a week without a move has no logarithm


def call_price(x: Array) -> Array:
    """Black-Scholes price of a call as a share of the spot; columns as `OPTION_FIELDS`."""
    money, years, vol, rate = x.astype(np.float64).T
    spread = vol * np.sqrt(years)
    one = (np.log(money) + (rate + vol**2 / 2) * years) / spread
    normal = np.vectorize(lambda z: 0.5 * (1 + erf(z / 2**0.5)))
    price: Array = normal(one) - np.exp(-rate * years) / money * normal(one - spread)
    return price


def options(count: int, seed: int) -> Array:
    """Calls drawn evenly from the ranges."""
    low, high = np.array(OPTION_RANGES).T
    drawn = np.random.default_rng(seed).uniform(low, high, (count, len(low)))
    return drawn.astype(np.float32)


def train_option() -> Trained:
    """Fit a small network to the exact formula; test on other draws."""
    network = importlib.import_module("sklearn.neural_network").MLPRegressor
    scaler = importlib.import_module("sklearn.preprocessing").StandardScaler
    x, test = options(60_000, SEED), options(10_000, SEED + 1)
    settings: dict[str, Any] = {
        "max_iter": 60,
        "batch_size": 256,
        "tol": 0.0,
        "n_iter_no_change": 60,
    }
    model = importlib.import_module("sklearn.pipeline").make_pipeline(
        scaler(),
        network(hidden_layer_sizes=(64, 64), activation="tanh", random_state=SEED, **settings),
    )
    model.fit(x, call_price(x))
    kept = numeric_kept(x, model.predict(x))
    return Trained(
        export_sklearn(model, x.shape[1], "price"),
        lambda cases: model.predict(cases[X]),
        {X: test, "truth": call_price(test), **kept},
        {X: test[:4_000], "truth": call_price(test[:4_000]), **kept},
        len(x),
        "a network of two layers of 64, fitted to the exact formula",
        ("Made data: the formula is exact, so the error is the network's alone. It shows how slow"
         " pricing is replaced; for this formula nobody needs it. Useless outside its ranges.",),
    )  # fmt: skip


def judge_option(sample: Sample, scores: Array) -> list[Figure]:
    """Errors in per cent of the spot, against a formula that fits on a napkin."""
    money, years, vol, rate = sample[X].astype(float).T
    inner = 1 - np.exp(-rate * years) / money
    napkin = np.maximum(np.maximum(inner, 0), inner / 2 + 0.4 * vol * np.sqrt(years))
    truth, name = 100 * sample["truth"], "napkin formula"
    kwargs: dict[str, Any] = {"more_is_better": False}
    worst = abs_error_percentile(99)
    return [
        figure("error, 99th percentile, % of spot", worst, truth, 100 * scores, 100 * napkin, name,
               bar=1.0, **kwargs),
        figure("error, median, % of spot", abs_error_percentile(50), truth, 100 * scores,
               100 * napkin, name, **kwargs),
    ]  # fmt: skip


def oil_returns(table: dict[str, list[str]]) -> Array:
    """The log return of each trading day; days without a price are left out."""
    prices = numbers([cell for cell in table["DCOILWTICO"] if cell not in ("", ".")])
    return np.diff(np.log(prices))


def train_risk() -> Trained:
    """HAR: a linear model of the variances of a week, a month and a quarter; 1986-2009 known."""
    linear = importlib.import_module("sklearn.linear_model").LinearRegression
    pipeline = importlib.import_module("sklearn.pipeline").make_pipeline
    returns = oil_returns(columns(read(OIL)))
    variance = returns**2
    days = np.arange(max(WINDOWS), len(variance) - WEEK)

    def mean(first: int, last: int) -> Array:
        return np.maximum(LEAST, [variance[d + first : d + last + 1].mean() for d in days])

    x = np.log(np.column_stack([mean(1 - width, 0) for width in WINDOWS])).astype(np.float32)
    y = np.log(mean(1, WEEK))
    known, test = by_time(days.astype(float), 0.7, gap=WEEK)
    model = pipeline(linear()).fit(x[known], y[known])
    fixed = float(variance[days[known]].mean())
    sample = {
        X: x[test],
        "truth": y[test],
        "month": (days[test] // 21).astype(np.int32),
        "next_return": returns[days[test] + 1],
        **numeric_kept(x[known], model.predict(x[known])),
        "known_mean": np.array(fixed),
        # A mean of logarithms lies below the logarithm of the mean: by this factor, on known days.
        "scale": np.array(fixed / np.exp(model.predict(x[known])).mean()),
    }
    return Trained(
        export_sklearn(model, x.shape[1], "log_variance"),
        lambda cases: model.predict(cases[X]),
        sample,
        sample,
        len(known),
        "ordinary least squares on three log variances (HAR, Corsi 2009)",
        (
            "One price, crude oil, 1986 to 2018; a day's variance is its squared return, which is"
            " noisy: R2 of a week's log variance cannot be high.",
            "For sizing risk. It does not say where a price goes, and the back-test's return is"
            " luck: what counts there is how near the risk stays to its target.",
        ),
    )


def judge_risk(sample: Sample, scores: Array) -> list[Figure]:
    """Fit of the next week's log variance, and a back-test: how near a portfolio's risk stays to
    its target when each day's size follows the forecast, and what the trading costs."""
    truth, last, month = sample["truth"], sample[X][:, 1].astype(float), sample["month"]
    fit = figure("R2, log variance", r2, truth, scores, last, "last month's", bar=0.30,
                 groups=month)  # fmt: skip
    size = np.minimum(2.0, TARGET / np.sqrt(252 * np.exp(scores) * sample["scale"]))
    fixed = np.full(len(size), TARGET / np.sqrt(252 * float(sample["known_mean"])))
    paid = COST * np.abs(np.diff(size, prepend=size[0]))
    sized = _months(month, sample["next_return"] * size - paid)
    held = _months(month, sample["next_return"] * fixed)
    if not len(sized):  # a small run holds no whole month
        return [fit]
    target = np.full(len(sized), TARGET)
    return [
        fit,
        figure("months' gap to 10 % risk", mae, target, sized, held, "fixed size",
               more_is_better=False),
        figure("cost of trading, % a year", lambda _, cost: 252 * 100 * float(cost.mean()),
               paid, paid, 0.0, "fixed size", more_is_better=False, groups=month),
    ]  # fmt: skip


def risk_months(sample: Sample, scores: Array) -> list[Mapping[str, Any]]:
    """For the report: each held-out month's risk, sized by the forecast and of fixed size."""
    size = np.minimum(2.0, TARGET / np.sqrt(252 * np.exp(scores) * sample["scale"]))
    fixed = TARGET / np.sqrt(252 * float(sample["known_mean"]))
    ways = {
        "sized by the forecast": _months(sample["month"], sample["next_return"] * size),
        "fixed size": _months(sample["month"], sample["next_return"] * fixed),
    }
    if not len(ways["fixed size"]):
        return []
    return [
        {
            "title": "Back-test of a portfolio's risk",
            "text": f"Volatility of each month, a year; the target is {TARGET:.0%}. It is about"
            " the risk: nothing here says where the price goes.",
            "lines": {
                name: [(float(i), 100 * float(y)) for i, y in enumerate(ys)]
                for name, ys in ways.items()
            },
            "axes": ["held-out month", "% a year"],
        }
    ]


def _months(month: Array, returns: Array) -> Array:
    """Each whole month's volatility, yearly."""
    parts = [returns[month == number] for number in np.unique(month)]
    return np.array([part.std() * np.sqrt(252) for part in parts if len(part) > 10])
