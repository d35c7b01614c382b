"""Whether a probability means what it says, and the band of scores that a person should decide.

A model that says a number is asked the same through its residuals on known cases: does the truth
stay below "the number and a tenth of the residuals" in a tenth of the cases?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import Array

LEVELS: Final = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases of similar probability: their mean, how often the label was 1, how many."""

    said: float
    happened: float
    n: int


@dataclass(frozen=True, slots=True)
class Band:
    """Scores from `low` to `high` go to a person; below and above the model decides.

    `share` of the cases inside; `error` is the model's error rate outside, `error_all` on all.
    """

    low: float
    high: float
    share: float
    error: float
    error_all: float
    n: int


def bins(truth: Array, probability: Array, count: int = 10) -> list[Bin]:
    """Bins with equally many cases, in order of probability; equal probabilities stay together."""
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, count + 1)[1:-1]))
    place = np.searchsorted(edges, probability, side="left")
    return [
        Bin(float(probability[place == i].mean()), float(truth[place == i].mean()), int(n))
        for i in range(len(edges) + 1)
        if (n := (place == i).sum())
    ]


def expected_error(found: list[Bin]) -> float:
    """Expected calibration error: the mean gap between said and happened, weighted by cases."""
    total = sum(item.n for item in found)
    return sum(item.n / total * abs(item.said - item.happened) for item in found)


def residual_quantiles(truth: Array, value: Array) -> Array:
    """Of known cases, each said by a model of others: what `coverage` holds a model to."""
    found: Array = np.quantile(truth - value, LEVELS).astype(np.float32)
    return found


def coverage(truth: Array, value: Array, quantiles: Array) -> list[Bin]:
    """For each of `LEVELS` the share of truths up to the value and that level's residual."""
    return [
        Bin(level, float((truth <= value + gap).mean()), len(truth))
        for level, gap in zip(LEVELS, quantiles.tolist(), strict=True)
    ]


def choose_band(
    truth: Array,
    probability: Array,
    error: float,
    threshold: float = 0.5,
    span: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """The narrowest band around the threshold that leaves at most this error rate outside.

    To be chosen on known cases, never on the held-out ones. `span`: all that can be said.
    """
    distance = np.abs(probability - threshold)
    wrong = (probability >= threshold) != (truth == 1)
    order = np.argsort(-distance, kind="stable")
    rates = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    # Only where the next case is nearer: cases at one distance go the same way.
    ends = np.r_[np.diff(distance[order]) < 0, True]
    good = np.flatnonzero((rates <= error) & ends)
    if not len(good):
        return span
    if good[-1] == len(order) - 1:
        return threshold, threshold  # good enough without anybody's help
    width = float(distance[order[good[-1] + 1]])
    return max(span[0], threshold - width), min(span[1], threshold + width)


def band(truth: Array, probability: Array, low: float, high: float, threshold: float = 0.5) -> Band:
    """What a band does to these cases."""
    inside = in_band(probability, low, high)
    wrong = (probability >= threshold) != (truth == 1)
    outside = float(wrong[~inside].mean()) if (~inside).any() else 0.0
    return Band(low, high, float(inside.mean()), outside, float(wrong.mean()), len(truth))


def in_band(probability: Array, low: float, high: float) -> Array:
    """Which cases a person decides; an empty band (`low` equal to `high`) has none."""
    inside: Array = (probability >= low) & (probability <= high) & (low < high)
    return inside
