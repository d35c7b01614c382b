"""What is measured on pictures; the model is tested with its route."""

from __future__ import annotations

import numpy as np
import pytest

from inferpool.engines.png import grey_png
from inferpool.recipes.images import pixels, rank_correlation, roughness


def test_pixels_are_read_as_they_were_written() -> None:
    heights = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (pixels(grey_png(8, 6, heights.tobytes())) == heights).all()


def test_a_plain_is_smooth_and_a_slope_is_as_rough_as_its_steps() -> None:
    assert roughness(np.full((4, 4), 7, dtype=np.uint8)) == 0
    assert roughness(np.arange(0, 200, 50, dtype=np.uint8).repeat(3).reshape(4, 3)) == 50


def test_rank_correlation_sees_order_and_nothing_else() -> None:
    a = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a, np.ones(6)))
