"""Logs of turbofans, for the recipe `maintenance`: read, made up, what is known at each cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from inferpool.recipes.kit.case import X
from inferpool.recipes.kit.data import (
    Array,
    Sample,
    rounded,
)
from inferpool.recipes.kit.take import Taken

# The sensors of FD001 that change at all; column in the file, name in NASA's documentation.
SENSORS: Final = {
    6: "T24",
    7: "T30",
    8: "T50",
    11: "P30",
    12: "Nf",
    13: "Nc",
    15: "Ps30",
    16: "phi",
    17: "NRf",
    18: "NRc",
    19: "BPR",
    21: "htBleed",
    24: "W31",
    25: "W32",
}
WINDOWS: Final = (5, 20)  # cycles
RUL_FIELDS: Final = tuple(
    f"{name} {what}"
    for name in SENSORS.values()
    for what in ("mean of 5", "mean of 20", "change over 20")
)


def cycles(text: str) -> Array:
    """The rows of a C-MAPSS file: unit, cycle, three settings, 21 sensors."""
    return np.array([[float(cell) for cell in line.split()] for line in text.splitlines() if line])


def engine_features(rows: Array) -> Array:
    """For each cycle of one engine, from itself and the cycles before it: means and trend."""
    found = []
    for column in SENSORS:
        values = rows[:, column]
        total = np.concatenate([[0.0], np.cumsum(values)])
        ends = np.arange(1, len(values) + 1)
        short, long = (
            (total[ends] - total[np.maximum(0, ends - width)]) / np.minimum(ends, width)
            for width in WINDOWS
        )
        before = short[np.maximum(0, ends - 1 - WINDOWS[1])]
        found += [short, long, short - before]
    return rounded(np.column_stack(found))


def take(path: Path) -> list[Taken]:
    """A log in the form of C-MAPSS (.txt, 26 columns a cycle): each engine's last cycle, with what
    the cycles before tell. The engine's number stays here."""
    rows = cycles(path.read_text("utf-8"))
    if rows.ndim != 2 or rows.shape[1] != 26:
        raise ValueError("a line has a unit, a cycle, 3 settings and 21 sensors")
    return [
        Taken(engine_features(rows[rows[:, 0] == unit])[-1:], {"unit": f"{unit:g}"})
        for unit in np.unique(rows[:, 0])
    ]


def example(sample: Sample, chosen: Array, folder: Path) -> list[Path]:
    """Logs of made-up engines: their sensors stand still at what held-out rows say they were."""
    path, lines = folder / "engines.txt", []
    for number, index in enumerate(chosen):
        means = dict(zip(SENSORS, sample[X][index][1::3].tolist(), strict=True))
        for cycle in range(1, 31):
            cells = [f"{means.get(column, 0):.4f}" for column in range(5, 26)]
            lines.append(" ".join([str(number + 1), str(cycle), "0", "0", "100", *cells]))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return [path]
