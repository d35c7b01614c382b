"""Whether today's cases are still those that the model learned from: PSI against kept quantiles.

The population stability index compares shares of cases in the known cases' quantile bins. Usual
reading: below 0.1 the same, above 0.2 another population: stop and look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import Array

ALARM: Final = 0.2
BINS: Final = 10
MIN_CASES: Final = 200  # fewer cases show a PSI of 0.1 and more by chance
_FLOOR: Final = 1e-3  # share of an empty bin


@dataclass(frozen=True, slots=True)
class Drift:
    """One field's index; `alarm` from `ALARM` on."""

    field: str
    psi: float
    alarm: bool


def reference(known: Array) -> tuple[Array, Array]:
    """Edges [fields, BINS - 1] and shares [fields, BINS] of the known cases [cases, fields].

    A field with few values has repeated edges, so some of its bins are empty.
    """
    edges = np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1], axis=0).T
    shares = np.array([_shares(known[:, i], edge) for i, edge in enumerate(edges)])
    return edges.astype(np.float32), shares.astype(np.float32)


def psi(shares: Array, now: Array) -> float:
    """The index of two distributions over the same bins."""
    a, b = np.maximum(shares, _FLOOR), np.maximum(now, _FLOOR)
    return float(((b - a) * np.log(b / a)).sum())


class Monitor:
    """Compares cases with the reference that was kept at training."""

    def __init__(self, fields: Sequence[str], edges: Array, shares: Array) -> None:
        assert len(fields) == len(edges) == len(shares)
        self.fields, self._edges, self._shares = tuple(fields), edges, shares

    def check(self, cases: Array) -> list[Drift]:
        """Every field's index, the worst first. Needs `MIN_CASES` cases to mean something."""
        found = [
            Drift(field, index := psi(share, _shares(cases[:, i], edge)), index >= ALARM)
            for i, (field, edge, share) in enumerate(
                zip(self.fields, self._edges, self._shares, strict=True)
            )
        ]
        return sorted(found, key=lambda drift: -drift.psi)


def shifted(cases: Array, column: int, deviations: float = 1.0) -> Array:
    """The cases with one field moved by so many of its standard deviations: a rehearsal."""
    moved = cases.copy()
    moved[:, column] += np.float32(deviations * max(float(cases[:, column].std()), 1.0))
    return moved


def _shares(values: Array, edges: Array) -> Array:
    place = np.searchsorted(edges, values.astype(np.float32), side="left")
    return np.bincount(place, minlength=len(edges) + 1) / max(1, len(values))
