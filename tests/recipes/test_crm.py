"""Offers and reviews: what counts as a hit, and what a negation does to a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from inferpool.recipes import purchases, reviews
from inferpool.recipes.kit.data import heldout
from inferpool.recipes.kit.scorer import EngineScorer

TABLE = """Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country
1,{0},a,6,12/1/2009 7:45,2.5,13085,UK
1,{1},b,6,12/1/2009 7:45,2.5,13085,UK
2,{0},a,-6,12/2/2009 7:45,2.5,13086,UK
3,POST,postage,1,12/2/2009 7:45,2.5,13086,UK
4,{1},b,1,12/9/2009 7:45,2.5,13086,UK
5,{1},b,1,12/9/2009 7:45,2.5,,UK
"""


def test_returns_fees_and_the_unknown_are_no_purchases() -> None:
    one, other = list(purchases.ITEMS)[:2]
    who, codes, days = purchases.lines(TABLE.format(one, other))
    assert who.tolist() == [13085, 13085, 13086]
    before = purchases.bought(who, codes, days, 0, int(days[0]))
    assert before[:, :2].tolist() == [[1, 1], [0, 0]]
    after = purchases.bought(who, codes, days, int(days[0]), int(days[-1]))
    assert after[:, :2].tolist() == [[0, 0], [0, 1]]
    assert after.sum() == 1


def test_a_hit_is_one_of_the_first_offers() -> None:
    scores, new = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), np.array([[0, 1, 1], [1, 0, 0]])
    assert purchases.hits(scores, new, 1).tolist() == [0, 0]
    assert purchases.hits(scores, new, 2).tolist() == [1, 0]
    assert purchases.found_share(scores, new, 2).tolist() == [0.5, 0]


def test_nothing_is_offered_that_was_bought(engine: EngineScorer, tmp_path: Path) -> None:
    case, sample = purchases.CASE, heldout("next-purchase")
    (path,) = purchases.example(sample, np.array([0, 5, 9]), tmp_path)
    for item in purchases.take(path):
        assert item.identifiers["name"] == "Erika Mustermann"
        best = int(engine.infer(case.model, case.input, item.row)["scores"][0].argmax())
        assert item.row[0, best] == 0
        assert case.verdict(best).removeprefix("offer ") in purchases.ITEMS.values()
    path.write_text(json.dumps({"items": ["no such item"]}))
    assert purchases.take(path)[0].row.sum() == 0


def test_words_after_a_negation_are_others() -> None:
    assert reviews.marked("It doesn't work at ALL, good phone!") == (
        "it doesnt nowork noat all good phone"
    )
    assert reviews.marked("not not good") == "not nonot nogood"
    assert reviews.marked("?!") == ""


def test_reviews_are_told_once_and_with_their_label() -> None:
    texts = ["Good  phone.\t1\nBad\t0\n...\t1\n", "Good phone.\t1\n"]
    found, labels = reviews.sentences(texts)
    assert (found, labels.tolist()) == (["Good phone.", "Bad"], [1, 0])
