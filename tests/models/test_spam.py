"""The committed spam model on the committed mails, and the text that it reads."""

from __future__ import annotations

import base64
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from inferpool.models import catalogue
from inferpool.models.spam_text import MAX_CHARS, clean, subject_and_body
from inferpool.models.train.spam import HELDOUT_MAILS, TEST_FOLD, distinct, fold
from inferpool.models.train.spam_onnx import run
from inferpool.models.train.spam_score import f1_interval, scores, word_rule

DATA = Path(catalogue.__file__).parent / "data"


@pytest.fixture(scope="module")
def heldout() -> tuple[list[str], np.ndarray]:
    lines = lzma.decompress((DATA / "spam-heldout.jsonl.xz").read_bytes()).splitlines()
    mails = [json.loads(line) for line in lines]
    return [mail["text"] for mail in mails], np.array([mail["label"] for mail in mails])


@pytest.fixture(scope="module")
def model() -> bytes:
    return (DATA / "spam.onnx").read_bytes()


def test_f1_on_the_heldout_mails(model: bytes, heldout: tuple[list[str], np.ndarray]) -> None:
    texts, truth = heldout
    probability, label = run(model, texts)
    result = scores(truth, label)
    assert result.n == HELDOUT_MAILS
    assert result.f1 >= 0.97
    assert ((probability > 0.5) == label).all()
    assert f"{result.f1:.4f}" in (DATA / "spam-card.md").read_text("utf-8")


def test_heldout_mails_are_of_the_test_fold(heldout: tuple[list[str], np.ndarray]) -> None:
    texts, truth = heldout
    assert {fold(text) for text in texts} == {TEST_FOLD}
    assert len(set(texts)) == len(texts)
    assert 0.2 < truth.mean() < 0.4
    # Cleaning what is clean changes nothing: the mails are as the model was trained on.
    assert all(clean("", text) == text for text in texts)


def test_model_matches_its_manifest(model: bytes) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    spam = catalogue.load("spam")
    names = {"BYTES": "tensor(string)", "FP32": "tensor(float)", "INT64": "tensor(int64)"}
    for said, found in (
        (spam.inputs, session.get_inputs()),
        (spam.outputs, session.get_outputs()),
    ):
        assert [(t.name, names[t.datatype], len(t.shape)) for t in said] == [
            (node.name, node.type, len(node.shape)) for node in found
        ]
    probability, label = session.run(None, {"text": np.array([["a"], ["b"]], dtype=object)})
    assert probability.shape == (2, 1)
    assert label.shape == (2,)


def test_committed_files_are_small(model: bytes) -> None:
    assert len(model) < 1_200_000
    assert (DATA / "spam-heldout.jsonl.xz").stat().st_size < 400_000


def test_plain_words_are_told_apart(model: bytes) -> None:
    texts = [
        clean("You WON $$$", "Click here for your FREE guaranteed money!! http://win.example"),
        clean("Re: patch for the build", "I applied the patch; the compiler still complains."),
    ]
    assert run(model, texts)[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("subject", "body", "text"),
    [
        ("Hello", "World", "hello world"),
        ("", "", ""),
        ("", "1 2 ,.", "numref numref"),
        ("FREE!!", "$$$ 1,000.00", "free!! $$$ numref"),
        ("", "write to Some.One+tag@mail.example.org now", "write to mailref now"),
        ("", "see https://www.shop.example/a?b=1", "see urlref urlref shop example a b numref"),
        ("", "<b>via</b><!-- x -->gra &amp; more", "htmlref via htmlref gra more"),
        ("", "<style>p {color: red}</style>text", "text"),
        ("\u00c9t\u00e9", "\u4f60\u597d", "foreign t foreign foreign"),
        ("\x00\ud800", "a < b", "foreign a b"),
    ],
)
def test_clean(subject: str, body: str, text: str) -> None:
    assert clean(subject, body) == text


def test_clean_is_bounded() -> None:
    assert len(clean("s", "word " * 100_000)) <= MAX_CHARS
    # Each opening without an end could cost a search of all that follows.
    for hostile in ("<!--", "<style", "<a", "x" * 64, "a@", "&"):
        assert len(clean("", hostile * 100_000)) <= MAX_CHARS


def test_subject_and_body_reads_all_text_parts() -> None:
    packed = base64.b64encode("Grüße".encode()).decode()
    raw = (
        "From: x@example.org\nX-Secret: header\nSubject: =?utf-8?q?f=C3=BCr?= you\n"
        'Content-Type: multipart/mixed; boundary="b"\n\n'
        "--b\nContent-Type: text/plain\n\nfirst\n"
        "--b\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
        f"{packed}\n"
        "--b\nContent-Type: image/png\n\npixels\n--b--\n"
    )
    subject, body = subject_and_body(raw)
    assert subject == "für you"
    assert body == "first\nGrüße"


@pytest.mark.parametrize("charset", ["no-such-charset", "hex"])
def test_unknown_charset_is_read_as_bytes(charset: str) -> None:
    raw = f"Subject: =?{charset}?q?x?=\nContent-Type: text/plain; charset={charset}\n\nbody"
    assert subject_and_body(raw)[1] == "body"


def test_folds_are_by_text_and_equally_large() -> None:
    folds = [fold(f"mail {number}") for number in range(5000)]
    assert folds == [fold(f"mail {number}") for number in range(5000)]
    assert set(folds) == set(range(5))
    assert all(abs(folds.count(number) - 1000) < 120 for number in range(5))


def test_distinct_counts_a_text_once_and_drops_the_undecided() -> None:
    rows = [("easy-ham-1", "one"), ("easy-ham-2", "ONE"), ("spam-1", "two"), ("hard-ham-1", "two")]
    rows += [("spam-2", "three"), ("spam-2", "")]
    files = [json.dumps({"group": g, "text": f"Subject: {t}\n\n"}).encode() for g, t in rows]
    assert [(mail.text, mail.label) for mail in distinct(files)] == [("one", 0), ("three", 1)]


def test_scores_by_hand() -> None:
    result = scores(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0]))
    assert result.f1 == pytest.approx(2 / 3)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == pytest.approx(2 / 3)
    assert result.false_positives == 0.5
    assert scores(np.array([0, 1]), np.array([0, 0])).f1 == 0


def test_interval_holds_the_value() -> None:
    truth = np.array([1, 0] * 100)
    said = truth.copy()
    said[:20] = 1
    low, high = f1_interval(truth, said, seed=1)
    assert low < scores(truth, said).f1 < high
    assert 0.02 < high - low < 0.15


def test_word_rule_finds_the_telling_words() -> None:
    texts = ["free money", "free offer", "the patch", "the build"]
    rule = word_rule(texts, np.array([1, 1, 0, 0]))
    assert rule(["free lunch", "the end"]).tolist() == [1, 0]
