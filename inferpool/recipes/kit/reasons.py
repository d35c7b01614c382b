"""Why a score is what it is: one field at a time is set to its typical value and scored again.

It works for any model behind any pool, costs one row for each field, and says what the model did,
not what is true of the world. Fields that move together share their effect in no particular way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from inferpool.recipes.kit.audit import Reason
from inferpool.recipes.kit.case import TEXT, Case
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.scorer import Scorer, infer_all

SHOWN: Final = 4
_WORDS: Final = 40


def reasons(scorer: Scorer, case: Case, row: Array, typical: Array | None) -> list[Reason]:
    """The fields (or words) that move the score most; an effect above 0 raised it."""
    if case.input == TEXT:
        return _words(scorer, case, str(row[0]))
    if typical is None:
        return []
    groups = case.groups or [(name, (column,)) for column, name in enumerate(case.fields)]
    others = np.repeat(row[None], len(groups) + 1, axis=0)
    for number, (_, columns) in enumerate(groups, 1):
        others[number, list(columns)] = typical[list(columns)]
    effects = _effects(scorer, case, others)
    named = [
        Reason(name, f"{row[list(columns)].mean():g}", effect)
        for (name, columns), effect in zip(groups, effects, strict=True)
    ]
    return _strongest(named)


def _words(scorer: Scorer, case: Case, text: str) -> list[Reason]:
    words = list(dict.fromkeys(text.split()))[:_WORDS]
    without = [" ".join(w for w in text.split() if w != word) for word in words]
    texts = np.array([text, *without], dtype=object).reshape(-1, 1)
    effects = _effects(scorer, case, texts)
    return _strongest([Reason(w, "present", e) for w, e in zip(words, effects, strict=True)])


def _effects(scorer: Scorer, case: Case, rows: Array) -> list[float]:
    """How much lower (or higher) each other row scores than the first."""
    outputs = infer_all(scorer, case.model, case.input, rows)[case.output]
    column = int(outputs[0].argmax()) if outputs.ndim == 2 and outputs.shape[1] > 1 else 0
    scores = outputs.reshape(len(rows), -1)[:, column]
    return [float(scores[0] - score) for score in scores[1:]]


def _strongest(found: Sequence[Reason]) -> list[Reason]:
    ordered = sorted(found, key=lambda reason: -abs(reason.effect))
    return [reason for reason in ordered[:SHOWN] if reason.effect]
