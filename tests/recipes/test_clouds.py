"""The cloud mask on typical pixels, and a sky that does what a sky does."""

from __future__ import annotations

import numpy as np

from inferpool.recipes import clouds
from inferpool.recipes.kit import data
from inferpool.recipes.kit.case import X
from inferpool.recipes.kit.scorer import EngineScorer, infer_all

# Reflectance of the ten bands, as textbooks draw them: what any cloud mask has to tell apart.
TYPICAL = {
    "water": (0.11, 0.08, 0.04, 0.035, 0.025, 0.02, 0.008, 0.001, 0.01, 0.006),
    "meadow": (0.12, 0.09, 0.05, 0.11, 0.38, 0.40, 0.13, 0.001, 0.20, 0.10),
    "soil": (0.14, 0.13, 0.17, 0.19, 0.25, 0.27, 0.09, 0.001, 0.32, 0.27),
    "cloud": (0.55, 0.56, 0.58, 0.59, 0.62, 0.63, 0.35, 0.02, 0.50, 0.38),
    "high cloud": (0.45, 0.45, 0.46, 0.47, 0.50, 0.50, 0.40, 0.20, 0.25, 0.15),
}


def test_typical_pixels_are_told_apart(engine: EngineScorer) -> None:
    rows = np.array(list(TYPICAL.values()), dtype=np.float32)
    scores = infer_all(engine, "cloud-mask", X, rows)["probability"].ravel()
    said = {name for name, score in zip(TYPICAL, scores, strict=True) if score >= 0.4}
    assert said == {"cloud", "high cloud"}


def sky(kind: int, ground: float = 0.1, count: int = 400) -> np.ndarray:
    bare = np.full((count, len(clouds.BANDS)), ground)
    return clouds.seen(bare, np.full(count, kind), np.random.default_rng(kind))


def test_clouds_brighten_and_high_ones_show_in_the_cirrus_band() -> None:
    clear, thick, thin, cirrus = (np.median(sky(kind), axis=0) for kind in range(4))
    blue, high = clouds.BLUE, clouds.HIGH
    assert clear[blue] < thin[blue] < thick[blue]
    assert clear[high] < 0.003 < thin[high] < cirrus[high]
    assert thick[9] < thick[4], "clouds are darker in the short-wave infrared"


def test_a_thick_cloud_hides_the_ground_and_clear_air_does_not() -> None:
    red = 2
    dark, bright = (np.median(sky(0, ground)[:, red]) for ground in (0.05, 0.5))
    assert bright - dark > 0.3
    dark, bright = (np.median(sky(1, ground)[:, red]) for ground in (0.05, 0.5))
    assert bright - dark < 0.2


def test_committed_pixels_are_half_clear_and_of_every_kind_and_ground() -> None:
    sample = data.heldout("cloud-mask")
    assert 0.4 < (sample["kind"] == 0).mean() < 0.6
    assert set(sample["kind"].tolist()) == set(range(len(clouds.KINDS)))
    assert set(sample["ground"].tolist()) == set(range(len(clouds.GROUND)))
    assert ((sample["kind"] > 0) == sample["truth"]).all()
