"""Abstracts of papers with an expert's summary, for the recipe `summarise`, and ROUGE.

ACLSum (Takeshita and others 2024): three sentences a paper, on its challenge, its approach and its
outcome. ROUGE (Lin 2004) counts the runs of words that two texts share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from inferpool.recipes.kit.data import Array, packaged, read

PAPERS: Final = packaged(
    "pypi",
    "aclsum",
    "0.1.2",
    "aclsum/dataset/test.jsonl",
    770_130,
    "491ee57a8bb2bc65af4c7c1cfe5a114dc140b093fc24c242a21785ea4ed9786f",
)


@dataclass(frozen=True, slots=True)
class Paper:
    """`abstract`: one sentence a line; `expert`: three sentences."""

    title: str
    abstract: str
    expert: str


def papers(count: int) -> list[Paper]:
    """So many of the test part's hundred papers, spread evenly. Raises as `pull`."""
    lines = read(PAPERS).splitlines()
    chosen = np.linspace(0, len(lines) - 1, count).astype(int)
    return [_paper(lines[number]) for number in chosen]


def _paper(line: str) -> Paper:
    found = orjson.loads(line)
    abstract = "\n".join(map(joined, found["sentences"]["abstract"]))
    return Paper(found["title"], abstract, " ".join(found["summary"].values()))


def joined(words: str) -> str:
    """A sentence of the set, whose marks stand apart, as it is printed."""
    close = re.sub(r"\s+([.,;:!?)\]%]|'s\b|n't\b)", r"\1", words)
    return re.sub(r"([(\[])\s+", r"\1", close).strip()


def rouge(written: Sequence[str], wanted: Sequence[str], by: Callable[[str, str], float]) -> Array:
    """One score for each pair of texts."""
    return np.array([by(a, b) for a, b in zip(written, wanted, strict=True)])


def rouge_1(written: str, wanted: str) -> float:
    """F1 of the words that both have, each as often as the rarer of the two has it."""
    a, b = Counter(_words(written)), Counter(_words(wanted))
    return _f1((a & b).total(), a.total(), b.total())


def rouge_l(written: str, wanted: str) -> float:
    """F1 of the longest run of words that both have in the same order, others in between."""
    a, b = _words(written), _words(wanted)
    row = [0] * (len(b) + 1)
    for word in a:
        above = 0
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], above + 1 if word == other else max(row[j], row[j - 1])
    return _f1(row[-1], len(a), len(b))


def _f1(shared: int, written: int, wanted: int) -> float:
    return 2 * shared / (written + wanted) if shared else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
