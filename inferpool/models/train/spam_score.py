"""Scores of the spam model, and the simple rule that it has to beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from inferpool.models.spam_text import TOKEN_PATTERN

Labels = npt.NDArray[Any]
RULE_WORDS: Final = 20
RESAMPLES: Final = 2_000


@dataclass(frozen=True, slots=True)
class Scores:
    """On `n` mails: F1, precision, recall of spam; `false_positives` is the share of good mail."""

    n: int
    f1: float
    precision: float
    recall: float
    false_positives: float


def scores(truth: Labels, said: Labels) -> Scores:
    """Scores of 0/1 labels; 0 where a ratio has nothing to divide by."""
    assert truth.shape == said.shape == (len(truth),)
    hits = int(((truth == 1) & (said == 1)).sum())
    false = int(((truth == 0) & (said == 1)).sum())
    missed = int(((truth == 1) & (said == 0)).sum())
    good = int((truth == 0).sum())
    return Scores(
        n=len(truth),
        f1=2 * hits / max(1, 2 * hits + false + missed),
        precision=hits / max(1, hits + false),
        recall=hits / max(1, hits + missed),
        false_positives=false / max(1, good),
    )


def f1_interval(truth: Labels, said: Labels, seed: int) -> tuple[float, float]:
    """95 % interval of F1 by resampling the mails (percentile bootstrap)."""
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(truth), size=(RESAMPLES, len(truth)))
    values = [scores(truth[draw], said[draw]).f1 for draw in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def word_rule(texts: Sequence[str], truth: Labels) -> Callable[[Sequence[str]], Labels]:
    """The baseline: spam is what has enough of the words that most set spam apart.

    The words are those with the greatest difference in document frequency; how many of them are
    enough is what gives the best F1 on the same mails.
    """
    pattern = re.compile(TOKEN_PATTERN)
    found = [set(pattern.findall(text)) for text in texts]
    lean: Counter[str] = Counter()
    for words, label in zip(found, truth, strict=True):
        step = 1 / int((truth == label).sum())
        for word in words:
            lean[word] += step if label else -step  # type: ignore[assignment]
    signs = {word for word, gain in lean.most_common(RULE_WORDS) if gain > 0}
    hits = np.array([len(words & signs) for words in found])
    enough = max(range(1, RULE_WORDS + 1), key=lambda n: scores(truth, (hits >= n).astype(int)).f1)

    def rule(others: Sequence[str]) -> Labels:
        return np.array([int(len(signs & set(pattern.findall(t))) >= enough) for t in others])

    return rule
