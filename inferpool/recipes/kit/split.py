"""Which cases a model may learn from: by time, by group (machine, patient), by hash. Never random.

A random split of machine or time data lets the model meet its own neighbours and looks far too
good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from inferpool.recipes.kit.data import Array


def by_time(times: Array, known: float, gap: float = 0.0) -> tuple[Array, Array]:
    """Indices of the first share of the time span's rows, and of those `gap` or more after them.

    `gap` is in the unit of `times`: as long as a label looks ahead, so that no label is shared.
    """
    assert 0 < known < 1
    order = np.argsort(times, kind="stable")
    cut = int(known * len(order))
    border = times[order[cut - 1]] + gap
    return order[:cut], order[cut:][times[order[cut:]] > border]


def by_group(groups: Array, heldout: Array) -> tuple[Array, Array]:
    """Indices of the rows whose group is not held out, and of those whose group is."""
    held = np.isin(groups, heldout)
    return np.flatnonzero(~held), np.flatnonzero(held)


def fold(key: str, folds: int = 5) -> int:
    """The fold of a case by its own content: the same case is always on the same side."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % folds


def by_hash(keys: Sequence[str], test: int = 4, folds: int = 5) -> tuple[Array, Array]:
    """Indices of the rows outside of fold `test`, and of those in it."""
    found = np.array([fold(key, folds) for key in keys])
    return np.flatnonzero(found != test), np.flatnonzero(found == test)


def crossed(fit: Callable[[Array], Callable[[Array], Array]], folds: Array, known: Array) -> Array:
    """Each known case's score by a model of the other folds' known cases.

    `fit` takes the indices to learn from and returns what scores the cases of given indices.
    """
    said = np.zeros(len(known))
    for number in np.unique(folds[known]):
        held = folds[known] == number
        said[held] = fit(known[~held])(known[held])
    return said
