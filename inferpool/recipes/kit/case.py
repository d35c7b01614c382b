"""What a recipe is: one or more questions, each with a model, held-out cases, and a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.metrics import Figure

X: Final = "x"  # the input of every model that reads numbers, FP32 [-1, fields]
Progress = Callable[[str, int, int], None]  # model, done, of all
TEXT: Final = "text"  # the input of a model that reads text, BYTES [-1, 1]


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training run made.

    `predict` is the trained model itself, on the same inputs as the ONNX file: the parity gate
    compares both. `test` are all held-out cases, `sample` those that are committed.
    """

    model: bytes
    predict: Callable[[Sample], Array]
    test: Sample
    sample: Sample
    known: int
    method: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One question that a model answers.

    `output` names the tensor that holds the score; `judge` makes figures of the held-out cases and
    their scores. A sample has the model's input, `truth`, and what the judge's baselines need; for
    numbers also `typical` (the known cases' medians, for reasons), `drift_edges` and
    `drift_shares`; `band` where scores in between go to a person; `residual_quantiles` where a
    number's calibration is shown. A number at or above `threshold` is the event of its band.
    """

    model: str
    question: str
    input: str
    output: str
    fields: tuple[str, ...]
    judge: Callable[[Sample, Array], list[Figure]]
    train: Callable[[], Trained]
    verdict: Callable[[float], str]
    probability: bool = False
    unit: str = ""
    threshold: float = 0.5
    licence: str = "Apache-2.0"  # of the model's file
    bytes_max: int = 1_000_000  # of a model that is committed
    tolerance: float = 1e-4  # of the parity gate, relative to the outputs' span if above 1
    suffixes: tuple[str, ...] = ()  # of files that `take` reads; without it a table, .csv
    take: Callable[[Path], Any] | None = None
    example: Callable[[Sample, Array, Path], list[Path]] | None = None
    sections: Callable[[Sample, Array], Sequence[Mapping[str, Any]]] | None = None  # of the report
    deadline_s: float = 1.0  # then this process decides with the same model
    groups: Sequence[tuple[str, tuple[int, ...]]] = ()  # fields that a reason names together
    ranking: bool = False  # the judge gets every class's score, not only the best class
    watched: tuple[str, ...] = ()  # what the drift monitor looks at, where not at the fields
    watch: Callable[[Array], Array] | None = None  # those numbers of input rows


@dataclass(frozen=True, slots=True)
class Recipe:
    """A use that a practitioner would recognise. `play(pool, small, progress)` does what is more
    than one model's question, and returns its results as `kit.use.result` makes them."""

    name: str
    title: str
    summary: str
    data: str  # data sets and their licences
    cases: tuple[Case, ...]
    whole: bool = False  # also rehearsed: a node dies in the middle of the first case's stream
    play: Callable[[Any, bool, Progress], list[dict[str, Any]]] | None = None
    plays: tuple[str, ...] = ()  # further models that `play` asks a pool for

    def facts(self) -> dict[str, Any]:
        """For lists."""
        return {
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "data": self.data,
            "models": [*(case.model for case in self.cases), *self.plays],
        }


def scores_of(case: Case, outputs: Mapping[str, Array]) -> Array:
    """The score of each row: a probability, a value, or the class with most probability."""
    found = np.asarray(outputs[case.output])
    if found.ndim == 2 and found.shape[1] > 1:
        classes: Array = found.argmax(axis=1)
        return classes
    return found.reshape(-1)
