"""What customers say, for the recipe `crm`: is a review for or against, and at which price.

A small model of words answers first. Only what it is unsure of goes to a language model's vectors,
which cost more and see what words do not. Both are bought from the pool, and the receipts tell what
the cascade saves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.models.train import spam_onnx
from inferpool.protocol.units import format_usd
from inferpool.recipes.kit.calibration import choose_band, in_band
from inferpool.recipes.kit.card import limits
from inferpool.recipes.kit.case import TEXT, Case, Progress, Trained
from inferpool.recipes.kit.data import Array, Sample, first, heldout, published, read
from inferpool.recipes.kit.deciding import cost
from inferpool.recipes.kit.export import SEED, only_output
from inferpool.recipes.kit.metrics import Figure, accuracy, auc, figure
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.running import AGREE, SMALL_ROWS, text_kept
from inferpool.recipes.kit.scorer import BATCH, Answer
from inferpool.recipes.kit.split import by_hash, crossed, fold
from inferpool.recipes.kit.take import Taken
from inferpool.recipes.kit.use import Embedder, Meter, embedded_here, result

_FOLDER: Final = (
    "https://raw.githubusercontent.com/RenzoEspinoza/D213/a3ce592b2368a3afe171755e246724d30de26fc7/"
)
SETS: Final = (
    published(
        _FOLDER + "amazon_cells_labelled.txt",
        58_227,
        "c288a9529ca1fa2a75370aab02a179b458ece0d47efc3d928dee51188e6bc525",
    ),
    published(
        _FOLDER + "imdb_labelled.txt",
        85_274,
        "882a31da06ac40e7d997c25ec2d086207e5e875024a376e755948da313d579f1",
    ),
    published(
        _FOLDER + "yelp_labelled.txt",
        61_320,
        "c76468b7b5c6e56a0804d728345c5f84aa2142ddb214420f61cc9cfd4c00d2ea",
    ),
)
WORDS: Final = "review-words"
EMBEDDER: Final = "all-minilm-l6-v2"
STRENGTH: Final = 10.0
HEAD_STRENGTH: Final = 1.0
UNSURE_ERROR: Final = 0.06  # of the words' model outside of the band that goes on
REACH: Final = 2  # words after a negation that are marked
NEGATIONS: Final = frozenset(
    ("not", "no", "never", "nothing", "hardly", "dont", "doesnt", "didnt", "isnt", "wasnt", "arent",
     "wont", "cant", "couldnt", "wouldnt")
)  # fmt: skip
GOOD: Final = frozenset(
    ("good", "great", "love", "loved", "best", "excellent", "nice", "wonderful", "amazing", "works")
)
BAD: Final = frozenset(
    ("bad", "worst", "poor", "waste", "terrible", "disappointed", "awful", "boring", "slow")
)


def marked(text: str) -> str:
    """The model's input: lower-case words; those after a negation as words of their own."""
    found, left = [], 0
    for word in re.findall(r"[a-z]+", text.lower().replace("'", "")):
        found.append("no" + word if left else word)
        left = REACH if word in NEGATIONS else max(0, left - 1)
    return " ".join(found)


def sentences(texts: Sequence[str]) -> tuple[list[str], Array]:
    """Distinct reviews and whether each is for (1) or against (0), from the sets' files."""
    found: dict[str, int] = {}
    for text in texts:
        for line in text.splitlines():
            review, _, label = line.rpartition("\t")
            if marked(review):
                found.setdefault(" ".join(review.split()), int(label))
    return list(found), np.array(list(found.values()))


def train() -> Trained:
    """Fit both models on four folds by the hash of the review's words."""
    reviews, y = sentences([read(file) for file in SETS])
    words = np.array([marked(review) for review in reviews], dtype=object)
    known, test = by_hash(words.tolist())
    folds = np.array([fold(text) for text in words])

    def fitted(rows: Array) -> Any:
        return _pipeline().fit(words[rows].tolist(), y[rows])

    said = crossed(
        lambda rows: lambda held: fitted(rows).predict_proba(words[held].tolist())[:, 1],
        folds, known,
    )  # fmt: skip
    model, head = fitted(known), _logistic(HEAD_STRENGTH)
    head.fit(embedded_here(EMBEDDER, [reviews[i] for i in known]), y[known])
    sample = {
        TEXT: words[test].reshape(-1, 1),
        "review": np.array([reviews[i] for i in test], dtype=object).reshape(-1, 1),
        "truth": y[test],
        "rule": np.array([_rule(text) for text in words[test]]),
        "band": np.array(choose_band(y[known], said, UNSURE_ERROR), dtype=np.float32),
        "head": np.r_[head.coef_[0], head.intercept_].astype(np.float32),
        **text_kept(said),
    }
    return Trained(
        only_output(spam_onnx.export(model), "probability"),
        lambda cases: model.predict_proba(cases[TEXT].ravel().tolist())[:, 1],
        sample,
        sample,
        len(known),
        f"words counted once, TF-IDF, logistic regression, C = {STRENGTH:g}; words after a negation"
        " are words of their own",
        (
            "Single sentences in English that their collectors found clearly for or against, half"
            " of each: real reviews are longer, mixed and mostly for.",
            "Marking negations, the strengths and the band were chosen by cross-validation on the"
            " known folds; the held-out fold was looked at once.",
            f"The band goes to the vectors of `{EMBEDDER}`: outside of it at most"
            f" {UNSURE_ERROR:.0%} of the known reviews were told wrong.",
        ),
    )  # fmt: skip


def _pipeline() -> Any:
    from sklearn.feature_extraction.text import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        TfidfVectorizer,
    )
    from sklearn.pipeline import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        make_pipeline,
    )

    # As in the model `spam`: other settings are exported to wrong numbers without an error.
    words = TfidfVectorizer(lowercase=False, binary=True, token_pattern="[a-z$!]{2,}")  # noqa: S106
    return make_pipeline(words, _logistic(STRENGTH))


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        LogisticRegression,
    )

    return LogisticRegression(C=strength, max_iter=2_000, random_state=SEED)


def _rule(text: str) -> float:
    words = set(text.split())
    return float(len(words & GOOD) - len(words & BAD))


def judge(sample: Sample, scores: Array) -> list[Figure]:
    """How well reviews for come out on top."""
    truth, rule, name = sample["truth"], sample["rule"], "good and bad words"
    said, ruled = (scores >= 0.5).astype(int), (rule > 0).astype(int)
    return [
        figure("AUC", auc, truth, scores, rule, name, bar=0.88),
        figure("accuracy", accuracy, truth, said, ruled, name),
    ]


def play(pool: PoolScorer, small: bool, progress: Progress) -> list[dict[str, Any]]:
    """The same reviews three ways: words alone, vectors alone, and vectors only where unsure."""
    sample = first(heldout(WORDS), SMALL_ROWS if small else None)
    truth, reviews = sample["truth"], [str(text) for text in sample["review"].ravel()]
    cheap, told = _words(pool, sample[TEXT], progress)
    dear, some = Meter(), Meter()
    api = pool.openai()
    vectors = Embedder(api, EMBEDDER, dear, progress).embed(reviews)
    low, high = map(float, sample["band"])
    unsure = np.flatnonzero(in_band(cheap, low, high))
    asked = [reviews[i] for i in unsure]
    again = Embedder(api, EMBEDDER, some, progress).embed(asked)
    by_vectors, both = _headed(sample["head"], vectors), cheap.copy()
    both[unsure] = _headed(sample["head"], again)
    paid_words = int(cost(told)["charged_pico_usd"])
    ways = (
        ("words alone", cheap, paid_words),
        ("vectors alone", by_vectors, dear.charged_pico_usd),
        ("words, then vectors where unsure", both, paid_words + some.charged_pico_usd),
    )
    saved = 1 - ways[2][2] / max(1, ways[1][2])
    table = {
        "title": "Cheap first",
        "text": f"{len(unsure)} of {len(truth)} reviews scored from {low:.2f} to {high:.2f} by"
        f" words and went on. By the receipts the cascade costs {saved:.0%} less than vectors for"
        " all.",
        "head": ["way", "AUC (95 % interval)", "right", "1,000 reviews cost"],
        "rows": [_row(name, truth, said, paid) for name, said, paid in ways],
    }
    figures = [
        figure("AUC of the cascade", auc, truth, both, cheap, "words alone", bar=0.88),
        figure("right by the cascade", accuracy, truth, (both >= 0.5).astype(int),
               (cheap >= 0.5).astype(int), "words alone"),
        figure("lost to vectors alone, AUC", _loss, truth, np.column_stack([by_vectors, both]), 0.0,
               "nothing", more_is_better=False),
    ]  # fmt: skip
    apart = float(np.abs(embedded_here(EMBEDDER, asked) - again).max(initial=0.0))
    question = "Is this review for or against, and who has to read it?"
    notes = limits(WORDS)
    return [
        result(EMBEDDER, question, len(truth), figures, apart, some, [table], notes,
               tolerance=AGREE)
    ]  # fmt: skip


def _words(pool: PoolScorer, texts: Array, progress: Progress) -> tuple[Array, list[Answer]]:
    """Every review's probability by words, and the paid answers that gave it."""
    batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    answers = []
    for batch in batches:
        answers.append(pool.infer(WORDS, TEXT, batch))
        progress(WORDS, len(answers) * BATCH, len(texts))
    told = pool.told(WORDS, TEXT, batches, answers)
    return np.concatenate([a["probability"].reshape(-1) for a in answers]).astype(float), told


def _headed(head: Array, vectors: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-(vectors @ head[:-1] + head[-1])))
    return found


def _loss(truth: Array, both: Array) -> float:
    return auc(truth, both[:, 0]) - auc(truth, both[:, 1])


def _row(name: str, truth: Array, said: Array, paid_pico_usd: int) -> list[str]:
    found = figure("", auc, truth, said, 0.5, "")
    right = float(((said >= 0.5) == (truth == 1)).mean())
    price = format_usd(1000 * paid_pico_usd // len(truth))
    return [name, f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})", f"{right:.1%}", price]


def take(path: Path) -> list[Taken]:
    """Reviews (.txt), one a line. Nobody is named apart from the text, and names in it go out."""
    found = [marked(line) for line in path.read_text("utf-8").splitlines()]
    return [Taken(np.array([[text]], dtype=object), {}) for text in found if text]


def example(sample: Sample, chosen: Array, folder: Path) -> list[Path]:
    """Held-out reviews."""
    path = folder / "reviews.txt"
    path.write_text("\n".join(sample["review"][chosen].ravel().tolist()) + "\n", "utf-8")
    return [path]


CASE: Final = Case(
    model=WORDS,
    question="Is this review for?",
    input=TEXT,
    output="probability",
    fields=(),
    judge=judge,
    train=train,
    verdict=lambda score: "for" if score >= 0.5 else "against",
    probability=True,
    suffixes=(".txt",),
    take=take,
    example=example,
)
