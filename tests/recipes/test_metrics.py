"""Figures against values worked out by hand and against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inferpool.recipes.kit import calibration, metrics

TRUTH = np.array([0, 0, 1, 1])
SCORE = np.array([0.1, 0.4, 0.35, 0.8])


def test_auc_by_hand() -> None:
    assert metrics.auc(TRUTH, SCORE) == 0.75  # of 4 pairs one is the wrong way round
    assert metrics.auc(TRUTH, np.ones(4)) == 0.5
    assert metrics.auc(TRUTH, -SCORE) == 0.25
    assert math.isnan(metrics.auc(np.ones(3), np.ones(3)))


def test_auc_is_the_share_of_ordered_pairs() -> None:
    random = np.random.default_rng(1)
    truth, score = random.integers(0, 2, 60), random.integers(0, 9, 60) / 9
    pairs = [(a > b) + (a == b) / 2 for a in score[truth == 1] for b in score[truth == 0]]
    assert metrics.auc(truth, score) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_average_precision_by_hand() -> None:
    # Found at places 1 and 3: (1/1 + 2/3) / 2.
    assert metrics.average_precision(TRUTH, SCORE) == pytest.approx((1 + 2 / 3) / 2)
    # All scores the same is one step: the base rate.
    assert metrics.average_precision(TRUTH, np.ones(4)) == 0.5


def test_f1_recall_accuracy() -> None:
    said = np.array([0, 1, 1, 1])
    assert metrics.f1(TRUTH, said) == pytest.approx(0.8)
    assert metrics.f1(TRUTH, np.zeros(4)) == 0
    assert metrics.recall(TRUTH, said) == 1
    assert metrics.accuracy(TRUTH, said) == 0.75
    assert metrics.macro_f1(TRUTH, said) == pytest.approx((0.8 + 2 / 3) / 2)


def test_errors_of_values() -> None:
    truth, value = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])
    assert metrics.mae(truth, value) == 1
    assert metrics.rmse(truth, value) == pytest.approx(math.sqrt(5 / 3))
    assert metrics.r2(truth, value) == pytest.approx(1 - 5 / 2)
    assert metrics.abs_error_percentile(50)(truth, value) == 1
    assert metrics.top_share_recall(0.5)(TRUTH, SCORE) == 0.5


def test_interval_of_a_mean_is_near_its_formula() -> None:
    random = np.random.default_rng(2)
    values = random.normal(5, 2, 400)
    low, high = metrics.interval(lambda t, s: float(s.mean()), values, values, resamples=1_000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)


def test_interval_over_groups_is_wider_where_cases_hang_together() -> None:
    groups = np.repeat(np.arange(20), 50)
    values = np.random.default_rng(3).normal(size=20)[groups]

    def mean(_: np.ndarray, said: np.ndarray) -> float:
        return float(said.mean())

    alone = metrics.interval(mean, values, values)
    together = metrics.interval(mean, values, values, groups=groups)
    assert together[1] - together[0] > 4 * (alone[1] - alone[0])


def test_figure_reaches_its_bar_on_the_right_side() -> None:
    good = metrics.figure(
        "e", metrics.mae, TRUTH, TRUTH, 1.0, "rule", bar=0.5, more_is_better=False
    )
    assert good.reached
    assert (good.value, good.n, good.baseline) == (0, 4, 1)
    assert not metrics.figure("f", metrics.f1, TRUTH, 1 - TRUTH, 0.0, "rule", bar=0.5).reached


def test_calibration_of_a_true_and_a_boasting_probability() -> None:
    random = np.random.default_rng(4)
    said = random.uniform(size=20_000)
    truth = (random.uniform(size=20_000) < said).astype(int)
    assert calibration.expected_error(calibration.bins(truth, said)) < 0.02
    sure = calibration.bins(truth, (said > 0.5) * 1.0)
    assert calibration.expected_error(sure) > 0.2
    assert sum(item.n for item in calibration.bins(truth, said)) == 20_000


def test_band_leaves_no_more_errors_than_promised() -> None:
    random = np.random.default_rng(5)
    said = random.uniform(size=5_000)
    truth = (random.uniform(size=5_000) < said).astype(int)
    low, high = calibration.choose_band(truth, said, error=0.1)
    found = calibration.band(truth, said, low, high)
    assert 0 < low < 0.5 < high < 1
    assert found.error <= 0.1 < found.error_all
    assert 0 < found.share < 1


def test_band_is_empty_where_the_model_is_good_enough() -> None:
    low, high = calibration.choose_band(TRUTH, TRUTH * 0.8 + 0.1, error=0.1)
    assert low == high
    assert not calibration.in_band(np.array([0.5]), low, high).any()


def test_band_is_everything_where_it_never_is() -> None:
    assert calibration.choose_band(TRUTH, 1.0 - TRUTH, error=0.1) == (0.0, 1.0)


@pytest.mark.parametrize(("label", "low", "high"), [(0, 0.0, 0.0973), (1, 0.9027, 1.0)])
def test_none_of_a_few_is_not_certainly_none_of_all(label: int, low: float, high: float) -> None:
    truth, said = np.ones(36, dtype=int), np.full(36, label)
    found = metrics.figure("recall", metrics.recall, truth, said, 0.5, "coin")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    alone = metrics.figure("mean", lambda _, s: float(s.mean()), truth, said, 0.5, "coin")
    assert alone.low == alone.high == label, "a mean is no share unless it is said to be one"


def test_a_share_of_half_keeps_its_resampled_interval() -> None:
    truth, said = np.ones(40, dtype=int), np.arange(40) % 2
    found = metrics.figure("recall", metrics.recall, truth, said, 0.5, "coin", share=True)
    low, high = metrics.interval(metrics.recall, truth, said)
    assert (found.low, found.high) == (low, high)
