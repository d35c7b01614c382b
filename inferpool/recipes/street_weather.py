"""Fog, night and a covered lens, for `inferpool.recipes.street`: what the monitor looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import Array

WATCHED: Final = ("brightness", "contrast", "sharpness")
WEATHERS: Final[dict[str, Callable[[Array], Array]]] = {
    "fog": lambda grey: 0.35 * grey + 0.65 * 210,
    "night": lambda grey: 0.2 * grey,
    "a covered lens": lambda grey: 0 * grey + 20,
}


def watched(picture: Array) -> Array:
    """What the monitor looks at [3], before anybody is looked for."""
    grey = picture[::4, ::4].mean(axis=2)
    sharp = np.abs(np.diff(grey, axis=1)).mean()
    return np.array([grey.mean(), grey.std(), sharp], dtype=np.float32)


def spoilt(picture: Array, weather: str) -> Array:
    """The picture in a weather of `WEATHERS`."""
    made: Array = WEATHERS[weather](picture.astype(np.float32)).clip(0, 255).astype(np.uint8)
    return made
