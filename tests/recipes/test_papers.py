"""ROUGE by hand, and sentences as they are printed."""

from __future__ import annotations

import pytest

from inferpool.recipes.papers import joined, rouge, rouge_1, rouge_l


def test_rouge_by_hand() -> None:
    wanted, written = "the cat sat on the mat", "on the mat the cat slept"
    assert rouge_1(written, wanted) == pytest.approx(2 * 5 / 12)  # all but "sat" and "slept"
    assert rouge_l(written, wanted) == pytest.approx(2 * 3 / 12)  # "on the mat"
    assert rouge([written], [wanted], rouge_l).tolist() == [rouge_l(written, wanted)]


def test_a_word_counts_as_often_as_the_rarer_has_it_and_nothing_shared_is_nothing() -> None:
    assert rouge_1("the the the", "the cat") == pytest.approx(2 * 1 / 5)
    assert rouge_1("", "the cat") == rouge_l("a dog", "the cat") == 0.0
    assert rouge_1("The CAT.", "the cat") == rouge_l("The CAT.", "the cat") == 1.0


def test_marks_stand_where_they_are_printed() -> None:
    given = "However , MT ( translation ) systems do n't reach 95 % of it ."
    assert joined(given) == "However, MT (translation) systems don't reach 95% of it."
