"""Two models of markets for the recipe `finance`: a fast option price and the next week's risk.

Neither says where a price goes.
"""

from __future__ import annotations

import importlib
from math import erf
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.case import Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, numbers, packaged, read
from inferpool.recipes.kit.export import SEED, export_sklearn
from inferpool.recipes.kit.metrics import Figure, abs_error_percentile, figure, mae, r2
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_time

SP500: Final = packaged(
    "pypi",
    "arch",
    "8.0",
    "arch/data/sp500/sp500.csv.gz",
    102_735,
    "1e028cbb9c400cc018c816ccc439b33c919387e726c3ed5ca2c05c82746059de",
)
OPTION_FIELDS: Final = ("spot over strike", "years", "volatility", "interest")
OPTION_RANGES: Final = ((0.7, 1.4), (0.05, 2.0), (0.1, 0.6), (0.0, 0.06))
RISK_FIELDS: Final = ("log variance, 1 day", "log variance, 5 days", "log variance, 22 days")
WEEK: Final = 5
TARGET: Final = 0.10  # yearly volatility


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


def ranges(table: dict[str, list[str]]) -> tuple[Array, Array]:
    """Parkinson's variance of each day from its high and low, and the day's log return."""
    high, low, close = (numbers(table[name]) for name in ("High", "Low", "Adj Close"))
    variance = np.maximum(np.log(high / low) ** 2 / (4 * np.log(2)), 1e-7)
    return variance, np.diff(np.log(close), prepend=np.log(close[0]))


def train_risk() -> Trained:
    """HAR: a linear model of the variances of a day, a week and a month; 1999-2012 are known."""
    linear = importlib.import_module("sklearn.linear_model").LinearRegression
    pipeline = importlib.import_module("sklearn.pipeline").make_pipeline
    variance, returns = ranges(columns(read(SP500)))
    days = np.arange(22, len(variance) - WEEK)
    means = [np.array([variance[d - w + 1 : d + 1].mean() for d in days]) for w in (1, 5, 22)]
    x = np.log(np.column_stack(means)).astype(np.float32)
    y = np.log([variance[d + 1 : d + 1 + WEEK].mean() for d in days])
    known, test = by_time(days.astype(float), 0.7, gap=WEEK)
    model = pipeline(linear()).fit(x[known], y[known])
    sample = {
        X: x[test],
        "truth": y[test],
        "month": (days[test] // 21).astype(np.int32),
        "next_return": returns[days[test] + 1],
        **numeric_kept(x[known], model.predict(x[known])),
        "known_mean": np.array(variance[days[known]].mean()),
        "scale": np.array(np.var(returns[days[known]]) / variance[days[known]].mean()),
    }
    return Trained(
        export_sklearn(model, x.shape[1], "log_variance"),
        lambda cases: model.predict(cases[X]),
        sample,
        sample,
        len(known),
        "ordinary least squares on three log variances (HAR, Corsi 2009)",
        (
            "One index, 1999 to 2018, variance from daily highs and lows.",
            "For sizing risk. It does not say where a price goes.",
        ),
    )


def judge_risk(sample: Sample, scores: Array) -> list[Figure]:
    """Fit of the next week's log variance, and a back-test: how near a portfolio's risk stays to
    its target when each day's size follows the forecast."""
    truth, week, month = sample["truth"], sample[X][:, 1].astype(float), sample["month"]
    yearly = np.sqrt(252 * np.exp(scores) * sample["scale"])
    fixed = np.sqrt(252 * float(sample["known_mean"]) * float(sample["scale"]))
    sized = _months(month, sample["next_return"] * np.minimum(2.0, TARGET / yearly))
    held = _months(month, sample["next_return"] * TARGET / fixed)
    fit = figure("R2, log variance", r2, truth, scores, week, "last week's", bar=0.40, groups=month)
    if not len(sized):  # a small run holds no whole month
        return [fit]
    target = np.full(len(sized), TARGET)
    gap = figure(
        "months' gap to 10 % risk", mae, target, sized, held, "fixed size", more_is_better=False
    )
    return [fit, gap]


def _months(month: Array, returns: Array) -> Array:
    """Each whole month's volatility, yearly."""
    parts = [returns[month == number] for number in np.unique(month)]
    return np.array([part.std() * np.sqrt(252) for part in parts if len(part) > 10])
