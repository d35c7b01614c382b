"""Figures with their number of cases and a 95 % bootstrap interval, in numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import Array

RESAMPLES: Final = 1_000
SEED: Final = 20260101

Metric = Callable[[Array, Array], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number about a model beside the same number of a simple rule.

    `low` and `high` bound 95 % of `n` resampled cases (or groups of cases). `bar` is what the
    model has to reach; `more_is_better` says on which side of it.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    baseline: float
    baseline_name: str
    bar: float | None = None
    more_is_better: bool = True

    @property
    def reached(self) -> bool:
        """Whether the value is on the right side of the bar."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.more_is_better else self.value <= self.bar


def figure(
    name: str,
    metric: Metric,
    truth: Array,
    said: Array,
    baseline: float | Array,
    baseline_name: str,
    *,
    bar: float | None = None,
    more_is_better: bool = True,
    groups: Array | None = None,
    share: bool = False,
) -> Figure:
    """The figure of a metric; a baseline given as an array is scored by the same metric.

    `share`: the metric is a share of the cases; accuracy, recall and F1 are taken for one. Of a
    share of none or all, resampling would say that it is certain.
    """
    low, high = interval(metric, truth, said, groups=groups)
    rule = metric(truth, baseline) if isinstance(baseline, np.ndarray) else float(baseline)
    value, n = metric(truth, said), len(truth) if groups is None else len(np.unique(groups))
    if low == high and value in (0.0, 1.0) and (share or metric in (accuracy, recall, f1)):
        asked = int((truth == 1).sum()) if metric in (recall, f1) else n
        apart = none_of(min(n, max(1, asked)))
        low, high = (0.0, apart) if value == 0 else (1 - apart, 1.0)
    return Figure(name, value, low, high, n, rule, baseline_name, bar, more_is_better)


def interval(
    metric: Metric,
    truth: Array,
    said: Array,
    *,
    groups: Array | None = None,
    resamples: int | None = None,
    seed: int = SEED,
) -> tuple[float, float]:
    """95 % percentile bootstrap over cases, or over whole groups: days and patients hang together.

    Resamples that have no value (one class only) are left out; NaN where none has one.
    """
    random = np.random.default_rng(seed)
    members = _members(groups) if groups is not None else None
    count = len(truth) if members is None else len(members)
    values = []
    for _ in range(resamples or RESAMPLES):
        drawn = random.integers(0, count, count)
        rows = drawn if members is None else np.concatenate([members[item] for item in drawn])
        values.append(metric(truth[rows], said[rows]))
    found = np.array(values)[np.isfinite(values)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def none_of(cases: int) -> float:
    """The greatest share that is not refuted at 97.5 % by none of so many cases (Clopper and
    Pearson 1934)."""
    return float(1 - 0.025 ** (1 / cases))


def _members(groups: Array) -> list[Array]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def accuracy(truth: Array, said: Array) -> float:
    """Share of equal labels."""
    return float((truth == said).mean())


def f1(truth: Array, said: Array) -> float:
    """Harmonic mean of precision and recall of label 1; 0 without any hit."""
    hits = float(((truth == 1) & (said == 1)).sum())
    wrong = float((truth != said).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def macro_f1(truth: Array, said: Array) -> float:
    """Mean of F1 over the classes that occur in the truth."""
    return float(np.mean([f1(truth == label, said == label) for label in np.unique(truth)]))


def recall(truth: Array, said: Array) -> float:
    """Share of the cases of label 1 that were found; NaN without any."""
    return float((said[truth == 1] == 1).mean()) if (truth == 1).any() else float("nan")


def auc(truth: Array, score: Array) -> float:
    """Chance that a positive scores above a negative, ties half; NaN with one class only."""
    positive = truth == 1
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def average_precision(truth: Array, score: Array) -> float:
    """Mean of precision over the steps of recall; equal scores are one step."""
    if not (truth == 1).any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(order) - 1]
    found = np.cumsum(truth[order] == 1)[last]
    steps = np.diff(np.r_[0, found]) / found[-1]
    return float((steps * found / (last + 1)).sum())


def brier(truth: Array, probability: Array) -> float:
    """Mean squared error of a probability."""
    return float(((probability - truth) ** 2).mean())


def mae(truth: Array, value: Array) -> float:
    """Mean absolute error, in the unit of the truth."""
    return float(np.abs(value - truth).mean())


def rmse(truth: Array, value: Array) -> float:
    """Root of the mean squared error, in the unit of the truth."""
    return float(np.sqrt(((value - truth) ** 2).mean()))


def r2(truth: Array, value: Array) -> float:
    """Share of the truth's variance that is explained."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((value - truth) ** 2).sum()) / spread if spread else float("nan")


def top_share_recall(share: float) -> Metric:
    """Recall of label 1 among the highest-scored share of the cases: what reviewers can look at."""

    def metric(truth: Array, score: Array) -> float:
        top = np.argsort(-score, kind="stable")[: max(1, round(share * len(score)))]
        positives = int((truth == 1).sum())
        return float((truth[top] == 1).sum() / positives) if positives else float("nan")

    return metric


def abs_error_percentile(percent: float) -> Metric:
    """The absolute error that so many per cent of the cases stay below."""

    def metric(truth: Array, value: Array) -> float:
        return float(np.percentile(np.abs(value - truth), percent))

    return metric
