"""Whether a probability means what it says, and the band of scores that a person should decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferpool.recipes.kit.data import Array


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


def expected_error(truth: Array, probability: Array, count: int = 10) -> float:
    """Expected calibration error: the mean gap between said and happened, weighted by cases."""
    total = len(truth)
    return sum(b.n / total * abs(b.said - b.happened) for b in bins(truth, probability, count))


def choose_band(
    truth: Array, probability: Array, error: float, threshold: float = 0.5
) -> tuple[float, float]:
    """The narrowest band around the threshold that leaves at most this error rate outside.

    To be chosen on known cases, never on the held-out ones.
    """
    distance = np.abs(probability - threshold)
    wrong = (probability >= threshold) != (truth == 1)
    order = np.argsort(-distance, kind="stable")
    rates = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    # Only where the next case is nearer: cases at one distance go the same way.
    ends = np.r_[np.diff(distance[order]) < 0, True]
    good = np.flatnonzero((rates <= error) & ends)
    if not len(good):
        return 0.0, 1.0
    if good[-1] == len(order) - 1:
        return threshold, threshold  # good enough without anybody's help
    width = float(distance[order[good[-1] + 1]])
    return max(0.0, threshold - width), min(1.0, threshold + width)


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
