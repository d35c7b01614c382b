"""Support chat: the right passage of a manual, and an answer in words that cites it.

The passages are this project's own manual. Three rankings are fused: by the words that question
and passage share, by the angle between the question's vector and the passage's, and by that to the
title's. A small language model answers from the first. What it says is shown only where the
passage bears it out; else the passage's own best sentence is the answer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import MODELS, Array
from inferpool.recipes.kit.metrics import accuracy, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.running import AGREE
from inferpool.recipes.kit.use import Embedder, Meter, Progress, Use, embedded_here, result

EMBEDDER: Final = "all-minilm-l6-v2"
WRITER: Final = "smollm2-135m-instruct"
TOP: Final = 3
PARTS_WORDS: Final = 60  # of a passage that are embedded together: the model reads short texts best
ANSWERS: Final = 6
SMALL_ANSWERS: Final = 2
SUPPORT: Final = 0.7  # of an answer's longer words that its passage must have
FUSION: Final = 10  # of reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009; there 60)
LEAST_WORDS: Final = 3  # that an answer has to add
DOUBT: Final = 0.35  # a nearest passage farther than this is none: a person answers
FOREIGN: Final = (
    "What is the capital of Portugal?",
    "How long do I boil an egg?",
    "Who won the match yesterday evening?",
    "Is it going to rain in Hamburg tomorrow?",
    "How do I prune an apple tree?",
)


@dataclass(frozen=True, slots=True)
class Manual:
    """The passages, and the questions with the passage that answers each."""

    titles: tuple[str, ...]
    texts: tuple[str, ...]
    questions: tuple[tuple[str, int], ...]


def manual() -> Manual:
    """The committed one."""
    folder = MODELS / "data"
    found = json.loads((folder / "support-passages.json").read_text("utf-8"))
    titles = tuple(item["title"] for item in found)
    asked = json.loads((folder / "support-questions.json").read_text("utf-8"))
    return Manual(
        titles,
        tuple(item["text"] for item in found),
        tuple((question, titles.index(title)) for question, title in asked),
    )


def terms(text: str) -> list[str]:
    """Lower-case words of three letters or more, without endings that hide a match."""
    return [
        re.sub(r"(ing|ed|es|s)$", "", word) for word in re.findall(r"[a-z0-9_]{3,}", text.lower())
    ]


def by_words(manual: Manual) -> Array:
    """Each question's score for each passage by BM25 (k1 1.5, b 0.75), the baseline."""
    bags = [Counter(terms(f"{t} {x}")) for t, x in zip(manual.titles, manual.texts, strict=True)]
    lengths = np.array([sum(bag.values()) for bag in bags])
    spread = Counter(word for bag in bags for word in bag)

    def score(question: str, bag: Counter[str], length: int) -> float:
        total = 0.0
        for word in set(terms(question)) & bag.keys():
            rare = math.log(1 + (len(bags) - spread[word] + 0.5) / (spread[word] + 0.5))
            norm = bag[word] + 1.5 * (0.25 + 0.75 * length / lengths.mean())
            total += rare * bag[word] * 2.5 / norm
        return total

    scores = [
        [score(question, bag, int(n)) for bag, n in zip(bags, lengths, strict=True)]
        for question, _ in manual.questions
    ]
    return np.array(scores)


def fused(*scores: Array) -> Array:
    """The order of the columns for each row, by reciprocal rank fusion of several scores."""
    total = np.zeros(scores[0].shape)
    for score in scores:
        ranks = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1, kind="stable")
        total += 1.0 / (FUSION + ranks)
    order: Array = np.argsort(-total, axis=1, kind="stable")
    return order


def parts_of(title: str, text: str) -> list[str]:
    """A passage in pieces of `PARTS_WORDS` words, each under its title."""
    words = text.split()
    steps = range(0, max(1, len(words)), PARTS_WORDS)
    return [f"{title}. {' '.join(words[at : at + PARTS_WORDS])}" for at in steps]


def nearness(questions: Array, parts: Array, owner: Sequence[int]) -> Array:
    """Cosines of questions and passages: a passage is as near as the nearest of its parts."""
    near = questions @ parts.T
    best = np.full((len(questions), max(owner) + 1), -1.0)
    for column, passage in enumerate(owner):
        best[:, passage] = np.maximum(best[:, passage], near[:, column])
    return best


def sentences(text: str) -> list[str]:
    """What an answer can quote."""
    found = re.split(r"(?<=[.!?:])\s+|\n+", text)
    return [item.strip() for item in found if len(item.split()) > 4]


def borne_out(question: str, answer: str, passage: str) -> bool:
    """Whether enough of what the answer adds to the question, and every number, is the passage's.

    Longer words only; words of the question prove nothing, and an answer that adds hardly any is
    none.
    """
    numbers = set(re.findall(r"\d+", answer)) <= set(re.findall(r"\d+", passage))
    return numbers and supported(answer, passage, question)


def supported(answer: str, passage: str, question: str = "") -> bool:
    """As `borne_out`, without the numbers."""
    said = {word for word in terms(answer) if len(word) > 3} - set(terms(question))
    known = set(terms(passage))
    return len(said) >= LEAST_WORDS and len(said & known) >= SUPPORT * len(said)


def play(pool: PoolScorer, small: bool, progress: Progress) -> list[dict[str, Any]]:
    """Find the passage for every question, then answer some of them."""
    book, meter = manual(), Meter()
    api = pool.openai()

    parts = [parts_of(t, x) for t, x in zip(book.titles, book.texts, strict=True)]
    owner = [i for i, group in enumerate(parts) for _ in group]
    reader = Embedder(api, EMBEDDER, meter, progress)
    asked = [question for question, _ in book.questions]
    vectors = reader.embed([*asked, *FOREIGN])
    near = nearness(vectors, reader.embed([part for group in parts for part in group]), owner)
    titles = vectors @ reader.embed(book.titles).T
    words, count = by_words(book), len(asked)
    order = fused(words, near[:count], titles[:count])
    truth = np.array([right for _, right in book.questions])
    hits = (order[:, :TOP] == truth[:, None]).any(axis=1)
    words_first = np.argsort(-words, axis=1, kind="stable")
    words_hits = (words_first[:, :TOP] == truth[:, None]).any(axis=1)
    figures = [
        figure("right passage first", accuracy, truth, order[:, 0], words_first[:, 0], "BM25"),
        figure(
            f"right passage among the first {TOP}", accuracy, np.ones(count), hits.astype(float),
            words_hits.astype(float), "BM25",
        ),
    ]  # fmt: skip
    sections = [
        _doubts(near.max(axis=1), order[:, 0], truth),
        _answers(api, book, order, small, progress),
    ]
    limits = (
        "The questions were written by those who wrote the manual, and the three rankings were"
        " chosen on the same questions; users ask otherwise.",
        f"{WRITER} is very small: most of what it says is not borne out, and the passage's own"
        " sentence is shown instead.",
        "Whether an answer is borne out is a matter of words here, not of meaning.",
    )
    question = "Which passage of the manual answers this?"
    apart = float(np.abs(embedded_here(EMBEDDER, asked) - vectors[:count]).max())
    return [
        result(EMBEDDER, question, count, figures, apart, meter, sections, limits, tolerance=AGREE)
    ]


def _doubts(near: Array, first: Array, truth: Array) -> dict[str, Any]:
    known, foreign = near[: len(truth)], near[len(truth) :]
    sure = known >= DOUBT
    return {
        "title": "What goes to a person",
        "text": f"A question whose nearest passage has a cosine below {DOUBT} is not answered."
        " Foreign questions have nothing to do with the manual.",
        "head": ["questions", "n", "to a person", "wrong of the others"],
        "rows": [
            [
                "about the manual",
                str(len(truth)),
                str(int((~sure).sum())),
                str(int((first[sure] != truth[sure]).sum())),
            ],
            ["foreign", str(len(foreign)), str(int((foreign < DOUBT).sum())), "-"],
        ],
    }


def _answers(
    api: Any, book: Manual, order: Array, small: bool, progress: Progress
) -> dict[str, Any]:
    rows, borne, count = [], 0, SMALL_ANSWERS if small else ANSWERS
    steps = np.linspace(0, len(book.questions) - 1, count).astype(int)
    for done, number in enumerate(steps, 1):
        question, place = book.questions[number][0], int(order[number][0])
        text = book.texts[place]
        said = _write(api, question, text)
        good = borne_out(question, said, text)
        borne += good
        quote = max(
            sentences(text) or [text], key=lambda s: len(set(terms(s)) & set(terms(question)))
        )
        rows.append([question, f"{said if good else quote} [{book.titles[place]}]", _who(good)])
        progress(WRITER, done, count)
    return {
        "title": "Answers",
        "text": f"{borne} of {count} answers of {WRITER} are borne out by their passage; for the"
        " others the passage's nearest sentence is quoted.",
        "head": ["question", "answer, with its source", "by"],
        "rows": rows,
    }


def _who(good: bool) -> str:
    return WRITER if good else "the manual"


def _write(api: Any, question: str, passage: str) -> str:
    answer = api.chat.completions.create(
        model=WRITER,
        messages=[
            {
                "role": "system",
                "content": "Answer in one sentence, only with what the text says.",
            },
            {"role": "user", "content": f"Text: {passage[:1000]}\n\nQuestion: {question}"},
        ],
        max_tokens=60,
        temperature=0.0,
        seed=1,
    )
    return str(answer.choices[0].message.content).strip().splitlines()[0]


RECIPE: Final = Use(
    "support",
    "Support chat",
    "Finds the passage of a manual that answers a question, and answers with its source.",
    "The manual of this project (Apache-2.0), and 40 questions about it.",
    (EMBEDDER, WRITER),
    play,
)
