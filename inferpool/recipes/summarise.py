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
from inferpool.recipes.kit.metrics import Figure, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.running import AGREE
from inferpool.recipes.kit.use import Embedder, Meter, Progress, Use, embedded_here, result
from inferpool.recipes.papers import Paper, papers, rouge, rouge_1, rouge_l
from inferpool.recipes.support import EMBEDDER, WRITER, sentences, supported

BULLETS: Final = 3
SHORT: Final = 50  # words; a text of fewer gets one sentence
TEXTS: Final = 30
SMALL_TEXTS: Final = 2
READ_CHARS: Final = 1_000  # of a third: what the model reads well
WORDS_MAX: Final = 40  # in a bullet
TOKENS_MAX: Final = 60
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
    """Summarise each paper's abstract, and hold it to the expert's summary."""
    api, meter, tally = pool.openai(), Meter(), Tally()
    chosen = papers(SMALL_TEXTS if small else TEXTS)
    writer, made, count = Writer(api, meter, tally), list[list[str]](), len(chosen)
    for done, paper in enumerate(chosen, 1):
        made.append(writer.summary(paper.abstract))
        progress(WRITER, done, count)
    texts, wanted = [item.abstract for item in chosen], [item.expert for item in chosen]
    mine = [" ".join(items) for items in made]
    lead = [" ".join(prose(t)[: len(items)]) for t, items in zip(texts, made, strict=True)]
    vectors = Embedder(api, EMBEDDER, Meter(), progress).embed([*mine, *lead, *wanted])
    ours, rule, expert = (vectors[n * count : (n + 1) * count] for n in range(3))
    left = sum(not numbers(s) <= numbers(t) for s, t in zip(mine, texts, strict=True))
    apart = float(np.abs(embedded_here(EMBEDDER, mine) - ours).max())
    name, nothing = "first sentences", np.zeros(count)
    as_written = np.r_[np.zeros(tally.invented), np.ones(tally.written - tally.invented)]

    def like(what: str, said: Array, plain: Array) -> Figure:
        return figure(f"{what} to the expert's", _mean, nothing, said, float(plain.mean()), name)

    figures = [
        figure("bullets as first written, numbers all the text's", _mean, as_written, as_written,
               1.0, name, share=True),
        figure("summaries shown with an invented number", _mean, nothing,
               np.r_[np.ones(left), np.zeros(count - left)], 0.0, name, bar=0.0,
               more_is_better=False, share=True),
        like("ROUGE-1", rouge(mine, wanted, rouge_1), rouge(lead, wanted, rouge_1)),
        like("ROUGE-L", rouge(mine, wanted, rouge_l), rouge(lead, wanted, rouge_l)),
        like("cosine", (ours * expert).sum(axis=1), (rule * expert).sum(axis=1)),
        figure("length, share of the text's words", _mean, nothing, _share(mine, texts),
               float(_share(lead, texts).mean()), name, more_is_better=False),
    ]  # fmt: skip
    limits = (
        f"{WRITER} is very small: much of what it writes is dropped. Where its figures are no"
        " better than those of the first sentences, the guard is what this recipe shows; a larger"
        " model of the pool takes the same place.",
        "That each number occurs in the text does not say that it stands with the right thing.",
        "Whether words are borne out is a matter of words here, not of meaning; so is ROUGE.",
        "Abstracts are short, and summaries of what sums up already; the experts also read the"
        " papers' introductions and conclusions.",
    )
    question = "What does this text say, in three bullets?"
    sections = [_counts(tally, count), _examples(chosen, made)]
    return [
        result(WRITER, question, count, figures, apart, meter, sections, limits, tolerance=AGREE)
    ]


def _mean(_: Array, values: Array) -> float:
    return float(values.mean())


def _share(short: Sequence[str], texts: Sequence[str]) -> Array:
    return np.array([len(s.split()) / len(t.split()) for s, t in zip(short, texts, strict=True)])


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


def _examples(chosen: Sequence[Paper], made: Sequence[Sequence[str]]) -> dict[str, Any]:
    steps = np.linspace(0, len(made) - 1, min(6, len(made))).astype(int)
    return {
        "title": "Some of them",
        "text": "A summary is the model's where it could be kept, else the text's own sentence.",
        "head": ["paper", "summary", "the expert's"],
        "rows": [[chosen[i].title, " • ".join(made[i]), chosen[i].expert] for i in steps],
    }


RECIPE: Final = Use(
    "summarise",
    "Summaries",
    "Three bullets or one sentence; a number that is not the text's is never shown.",
    "Abstracts of the ACL Anthology with summaries by experts: ACLSum (Takeshita, Green, Reinig and"
    " others 2024), from the PyPI package aclsum 0.1.2 (MIT); the papers are under CC BY 4.0, older"
    " ones under CC BY-NC-SA 3.0, and are fetched, not passed on.",
    (EMBEDDER, WRITER),
    play,
)
