"""Summaries in three bullets, or one sentence of a short text, without a number of their own.

A small language model of the pool writes a bullet for each third of the text. One with a number
that the text does not have, or with words that are mostly not the text's, is dropped and asked for
once more; then that third's first sentence is quoted. Each refusal is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.metrics import accuracy, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.running import AGREE
from inferpool.recipes.kit.use import Embedder, Meter, Progress, Use, embedded_here, result
from inferpool.recipes.support import EMBEDDER, WRITER, manual, sentences, supported

BULLETS: Final = 3
SHORT: Final = 50  # words; a text of fewer gets one sentence
SMALL_TEXTS: Final = 2
READ_CHARS: Final = 1_000  # of a third: what the model reads well
WORDS_MAX: Final = 40  # in a bullet
TOKENS_MAX: Final = 60
SENTENCES_MIN: Final = 3  # of a text that is worth a summary
TRIES: Final = 2
NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
SPELT: Final = {
    word: str(value)
    for value, word in enumerate(
        (
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ),
        start=2,
    )
}  # "one" is a pronoun as often as a number


def numbers(text: str) -> set[str]:
    """The numbers in it, written out or not; 1,000 is 1000 and 2.50 is 2.5."""
    found = set()
    for item in NUMBER.findall(text):
        plain = item.replace(",", "")
        found.add(plain.rstrip("0").rstrip(".") if "." in plain else plain)
    return found | {SPELT[word] for word in re.findall(r"[a-z]+", text.lower()) if word in SPELT}


def prose(text: str) -> list[str]:
    """Its sentences, without code and tables."""
    plain = re.sub(r"```.*?(```|$)", " ", text, flags=re.DOTALL)
    return sentences("\n".join(line for line in plain.splitlines() if not line.startswith("|")))


def thirds(text: str) -> list[list[str]]:
    """The text's sentences in as many runs as there will be bullets."""
    found = prose(text)
    wanted = 1 if len(text.split()) < SHORT else BULLETS
    return [run.tolist() for run in np.array_split(np.array(found, dtype=object), wanted)]


def first_sentence(answer: str) -> str:
    """What the model wrote, up to where its first sentence ends, without a mark before it."""
    line = next((line for line in answer.splitlines() if line.strip()), "")
    line = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line)
    line = re.sub(r"^The text (?:says|states)(?: that)?:?\s*", "", line).strip('"')
    return re.split(r"(?<=[.!?])\s", line.strip())[0]


@dataclass(slots=True)
class Tally:
    """What became of the bullets."""

    written: int = 0
    invented: int = 0  # with a number that is not the text's
    unsupported: int = 0  # with words that are mostly not the text's, or too long
    kept: int = 0
    quoted: int = 0


@dataclass(slots=True)
class Writer:
    """Asks the pool and keeps only what the text bears out."""

    api: Any
    meter: Meter
    tally: Tally

    def summary(self, text: str) -> list[str]:
        """Bullets of which each number occurs in the text."""
        return [self._bullet(" ".join(run), text) or run[0] for run in thirds(text) if run]

    def _bullet(self, part: str, text: str) -> str:
        """One of the model's own, or '' where the text must be quoted."""
        for turn in range(TRIES):
            said = first_sentence(self._ask(part, turn))
            self.tally.written += 1
            if not numbers(said) <= numbers(text):
                self.tally.invented += 1
            elif len(said.split()) > WORDS_MAX or not supported(said, text):
                self.tally.unsupported += 1
            else:
                self.tally.kept += 1
                return said
        self.tally.quoted += 1
        return ""

    def _ask(self, part: str, turn: int) -> str:
        ask = self.api.chat.completions.with_raw_response.create
        answer = self.meter.call(
            lambda: ask(
                model=WRITER,
                messages=[
                    {
                        "role": "user",
                        "content": f"Text: {part[:READ_CHARS]}\n\nSay in one short sentence what"
                        " the text says. Use only the text's own words.",
                    }
                ],
                max_tokens=TOKENS_MAX,
                temperature=0.7 * turn,
                seed=1 + turn,
            )
        )
        return str(answer.choices[0].message.content)


def play(pool: PoolScorer, small: bool, progress: Progress) -> list[dict[str, Any]]:
    """Summarise each passage of the manual, then look for the passages by their summaries."""
    book, api, meter, tally = manual(), pool.openai(), Meter(), Tally()
    worth = [i for i, text in enumerate(book.texts) if len(prose(text)) >= SENTENCES_MIN]
    count = SMALL_TEXTS if small else len(worth)
    chosen = np.array(worth)[np.linspace(0, len(worth) - 1, count).astype(int)]
    texts = [book.texts[i] for i in chosen]
    writer, made = Writer(api, meter, tally), []
    for done, text in enumerate(texts, 1):
        made.append(writer.summary(text))
        progress(WRITER, done, count)
    leads = [prose(text)[: len(items)] for text, items in zip(texts, made, strict=True)]
    joined, plain = [" ".join(items) for items in made], [" ".join(items) for items in leads]
    places = {int(place): number for number, place in enumerate(chosen)}
    asked = [(q, places[right]) for q, right in book.questions if right in places]
    reader = Embedder(api, EMBEDDER, Meter(), progress)
    vectors = reader.embed([*joined, *plain, *texts, *(question for question, _ in asked)])
    mine, rule, whole = vectors[:count], vectors[count : 2 * count], vectors[2 * count : 3 * count]
    questions, truth = vectors[3 * count :], np.array([right for _, right in asked])
    left = sum(not numbers(s) <= numbers(t) for s, t in zip(joined, texts, strict=True))
    apart = float(np.abs(embedded_here(EMBEDDER, joined) - mine).max())
    name = "first sentences"
    first_written = np.r_[np.zeros(tally.invented), np.ones(tally.written - tally.invented)]
    figures = [
        figure("bullets as first written, numbers all the text's", _mean, first_written,
               first_written, 1.0, name),
        figure("summaries shown with an invented number", _mean, np.zeros(count),
               np.r_[np.ones(left), np.zeros(count - left)], 0.0, name, bar=0.0,
               more_is_better=False, share=True),
        figure("cosine to the text", _mean, np.zeros(count), _cosine(mine, whole),
               _cosine(rule, whole), name),
        figure("length, share of the text's words", _mean, np.zeros(count), _share(joined, texts),
               _share(plain, texts), name, more_is_better=False),
    ]  # fmt: skip
    if asked:
        figures.insert(
            2,
            figure("passage found by its summary", accuracy, truth, _nearest(questions, mine),
                   _nearest(questions, rule), name),
        )  # fmt: skip
    limits = (
        f"{WRITER} is very small: more than half of what it writes is dropped, and by these figures"
        " its summaries are no better than the text's first sentences. What is shown here is the"
        " guard; a larger model of the pool takes the same place.",
        "That each number occurs in the text does not say that it stands with the right thing.",
        "Whether words are borne out is a matter of words here, not of meaning.",
        "The texts are this project's own manual, and 40 questions about it judge the summaries.",
    )
    question = "What does this text say, in three bullets?"
    sections = [_counts(tally, count), _examples(book.titles, chosen, made)]
    return [
        result(WRITER, question, count, figures, apart, meter, sections, limits, tolerance=AGREE)
    ]


def _mean(_: Array, values: Array) -> float:
    return float(values.mean())


def _cosine(one: Array, other: Array) -> Array:
    found: Array = (one * other).sum(axis=1)
    return found


def _share(short: Sequence[str], texts: Sequence[str]) -> Array:
    return np.array([len(s.split()) / len(t.split()) for s, t in zip(short, texts, strict=True)])


def _nearest(questions: Array, passages: Array) -> Array:
    found: Array = (questions @ passages.T).argmax(axis=1)
    return found


def _counts(tally: Tally, count: int) -> dict[str, Any]:
    return {
        "title": "What became of the bullets",
        "text": f"{count} texts; a bullet that was dropped was asked for once more, then quoted.",
        "head": ["bullets", "n"],
        "rows": [
            ["written by the model", str(tally.written)],
            ["dropped: a number that the text does not have", str(tally.invented)],
            ["dropped: words that the text does not bear out", str(tally.unsupported)],
            ["shown", str(tally.kept)],
            ["quoted from the text instead", str(tally.quoted)],
        ],
    }


def _examples(
    titles: Sequence[str], chosen: Array, made: Sequence[Sequence[str]]
) -> dict[str, Any]:
    steps = np.linspace(0, len(made) - 1, min(6, len(made))).astype(int)
    return {
        "title": "Some of them",
        "text": "A summary is the model's where it could be kept, else the text's own sentence.",
        "head": ["text", "summary"],
        "rows": [[titles[chosen[i]], " • ".join(made[i])] for i in steps],
    }


RECIPE: Final = Use(
    "summarise",
    "Summaries",
    "Three bullets or one sentence; a number that is not the text's is never shown.",
    "The manual of this project (Apache-2.0), and 40 questions about it.",
    (EMBEDDER, WRITER),
    play,
)
