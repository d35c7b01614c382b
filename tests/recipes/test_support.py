"""Finding and citing, with vectors made by hand; the engines are tested with their routes."""

from __future__ import annotations

import numpy as np
import pytest

from inferpool.recipes import support


def test_every_question_names_a_passage() -> None:
    book = support.manual()
    assert len(book.questions) == 40
    assert len(set(book.titles)) == len(book.titles) >= 50
    assert all(0 <= right < len(book.titles) for _, right in book.questions)


def test_words_find_what_they_share() -> None:
    book = support.Manual(
        ("Fish", "Birds", "Stones"),
        ("Trout and carp swim.", "Sparrows are flying.", "Granite lies."),
        (("Which bird flies?", 1), ("Do carps swim?", 0)),
    )
    assert support.by_words(book).argmax(axis=1).tolist() == [1, 0]


def test_a_passage_is_as_near_as_its_nearest_part() -> None:
    parts = np.array([[1, 0], [0, 1], [0.6, 0.8]])
    near = support.nearness(np.array([[0, 1.0], [1.0, 0]]), parts, [0, 0, 1])
    assert near.tolist() == [[1.0, 0.8], [1.0, 0.6]]


def test_fusion_prefers_what_all_rank_high() -> None:
    a, b = np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[0.0, 2.0, 1.0, 3.0]])
    assert support.fused(a, b)[0][0] == 1
    assert support.fused(a).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ("The node claims each hour.", True),
        ("The node claims each 24 hours.", False),  # a number that nobody gave
        ("To withdraw you withdraw what you want to withdraw from.", False),  # the question again
        ("Bananas ripen in warm, sunny places.", False),
        ("", False),
    ],
)
def test_what_the_passage_does_not_say_is_not_borne_out(answer: str, good: bool) -> None:
    passage = "The node claims each hour and at once when a payer starts to withdraw."
    assert support.borne_out("How do I withdraw from what I want?", answer, passage) is good


def test_a_long_passage_is_cut_and_keeps_every_word() -> None:
    text = " ".join(f"w{i}" for i in range(150))
    parts = support.parts_of("T", text)
    assert len(parts) == 3
    assert " ".join(part.removeprefix("T. ") for part in parts) == text
    assert support.parts_of("T", "") == ["T. "]
