"""What a shop's customer buys next, for the recipe `crm`: from what was bought, by factors.

PureSVD (Cremonesi, Koren and Turrin, RecSys 2010) on who bought what, each item weighted by the
root of its buyers; what sold lately counts more. Items bought before are never offered again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from inferpool.recipes.kit.case import Case, Trained, X
from inferpool.recipes.kit.data import MODELS, Array, Sample, read
from inferpool.recipes.kit.export import graph
from inferpool.recipes.kit.metrics import Figure, figure
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.take import Taken
from inferpool.recipes.orders import RETAIL

ITEMS: Final[Mapping[str, str]] = json.loads(
    (MODELS / "data" / "next-purchase-items.json").read_text("utf-8")
)  # number of the item -> its name, in the order of the model's fields
BUYERS_MIN: Final = 50  # of an item, before the cut
DAYS: Final = 60  # held out, and how far back "lately" goes
FACTORS: Final = 64
LATELY: Final = 3.0  # how much more the best seller of the last days counts
SEEN: Final = 10.0  # taken from the score of what was bought before
WATCHED: Final = ("items bought", "share of the 100 most bought")


def lines(text: str) -> tuple[Array, Array, Array]:
    """Customer, item and day of each line that was paid for and is no postage or fee."""
    rows = csv.reader(io.StringIO(text))
    next(rows)
    found = [
        (int(float(customer)), code.upper(), datetime.strptime(moment[:10].split()[0], "%m/%d/%Y"))
        for _, code, _, quantity, moment, price, customer, _ in rows
        if customer and float(quantity) > 0 and float(price) > 0 and code[:5].isdigit()
    ]
    customers, codes, days = zip(*found, strict=True)
    return np.array(customers), np.array(codes), np.array([day.toordinal() for day in days])


def bought(customers: Array, codes: Array, days: Array, after: int, until: int) -> Array:
    """Who bought what in these days: 0 and 1, [all customers, ITEMS]."""
    place = {code: number for number, code in enumerate(ITEMS)}
    who, rows = np.unique(customers, return_inverse=True)
    found = np.zeros((len(who), len(ITEMS)), dtype=np.uint8)
    columns = np.array([place.get(code, -1) for code in codes.tolist()])
    here = (days > after) & (days <= until) & (columns >= 0)
    found[rows[here], columns[here]] = 1
    return found


def watched(rows: Array) -> Array:
    """What the drift monitor looks at: how much was bought, and how common it is."""
    count = rows.sum(axis=1)
    top = rows[:, np.argsort(-popularity(), kind="stable")[:100]].sum(axis=1)
    return np.column_stack([count, top / np.maximum(1, count)]).astype(np.float32)


@cache
def popularity() -> Array:
    """Buyers of each item up to the cut, committed beside the items' names."""
    found = json.loads((MODELS / "data" / "next-purchase-buyers.json").read_text("utf-8"))
    return np.array(found, dtype=np.float64)


def train() -> Trained:
    """Fit on all but the last 60 days; who bought something new in them is held out."""
    table = lines(read(RETAIL))
    last = int(table[2].max())
    cut = last - DAYS
    known, new = bought(*table, 0, cut), bought(*table, cut, last)
    new[known > 0] = 0
    recent = bought(*table, cut - DAYS, cut).sum(axis=0)
    root = np.sqrt(np.maximum(1.0, known.sum(axis=0)))
    weighted = known / root
    _, vectors = np.linalg.eigh(weighted.T @ weighted)
    factors = vectors[:, ::-1][:, :FACTORS].astype(np.float32)
    out = (root * (1 + LATELY * recent / recent.max())).astype(np.float32)
    inward = (1 / root).astype(np.float32)

    def predict(sample: Sample) -> Array:
        rows = sample[X].astype(np.float64)
        said: Array = (rows * inward) @ factors.astype(np.float64) @ factors.T * out - SEEN * rows
        return said

    model = graph(
        [
            ("Mul", [X, "inward"], "weighted", {}),
            ("MatMul", ["weighted", "factors"], "taste", {}),
            ("Transpose", ["factors"], "items", {"perm": [1, 0]}),
            ("MatMul", ["taste", "items"], "liked", {}),
            ("Mul", ["liked", "out"], "offered", {}),
            ("Mul", [X, "seen"], "had", {}),
            ("Sub", ["offered", "had"], "scores", {}),
        ],
        {"inward": inward, "factors": factors, "out": out,
         "seen": np.array([SEEN], dtype=np.float32)},
        len(ITEMS), "scores", len(ITEMS),
    )  # fmt: skip
    buyers = np.flatnonzero(new.any(axis=1) & known.any(axis=1))
    others = known[known.any(axis=1)]

    def sample(rows: Array) -> Sample:
        best = predict({X: others}).argmax(axis=1)
        return {
            X: known[rows],
            "new": new[rows],
            "truth": new[rows].sum(axis=1).astype(np.int32),
            "lately": recent.astype(np.int32),
            "classes": np.array(len(ITEMS)),
            **numeric_kept(watched(others), best),
            "typical": np.zeros(len(ITEMS), dtype=np.float32),
        }

    test = sample(buyers)
    return Trained(
        model,
        predict,
        {**test, X: test[X].astype(np.float32)},
        test,
        int(known.any(axis=1).sum()),
        f"PureSVD with {FACTORS} factors on {len(ITEMS)} items, recent sales weighted",
        (
            "One shop of gifts in Britain, 2009 to 2011, with many wholesale customers.",
            "Factors, weights and the least number of buyers were chosen on the 60 days before the"
            " cut; the held-out days were looked at once.",
            "Who came back in the held-out days had bought more than others before, and the drift"
            " monitor says so.",
            "That a customer buys what is offered here does not say that the offer made them buy:"
            " measure that with a group that is offered something else.",
        ),
    )


def hits(scores: Array, new: Array, count: int = 10) -> Array:
    """For each customer whether one of the first so many offers was bought (0 or 1)."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    found: Array = np.take_along_axis(new, top, axis=1).max(axis=1).astype(np.float64)
    return found


def found_share(scores: Array, new: Array, count: int) -> Array:
    """For each customer the share of what was newly bought that is among the first offers."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    share: Array = np.take_along_axis(new, top, axis=1).sum(axis=1) / new.sum(axis=1)
    return share


def judge(sample: Sample, scores: Array) -> list[Figure]:
    """Offers that were bought, against what sold best in the last days before the cut."""
    new, truth = sample["new"], sample["truth"]
    rule = sample["lately"] - 1e6 * sample[X].astype(np.float64)
    mine, plain = hits(scores, new), hits(rule, new)
    name = "best sellers of the last 60 days"

    def mean(_: Array, values: Array) -> float:
        return float(values.mean())

    return [
        figure("hit@10", mean, truth, mine, plain, name, bar=float(plain.mean())),
        figure("hit@10 above the rule's, same customers", mean, truth, mine - plain, 0.0, "no gain",
               bar=0.0),
        figure("recall@20", mean, truth, found_share(scores, new, 20),
               found_share(rule, new, 20), name),
    ]  # fmt: skip


def take(path: Path) -> list[Taken]:
    """Customers (.jsonl), one JSON object a line: `{"items": ["85123A", ...]}`; anything else in it
    stays here. Unknown items are left out."""
    taken, place = [], {code: number for number, code in enumerate(ITEMS)}
    for line in filter(None, path.read_text("utf-8").splitlines()):
        customer = json.loads(line)
        row = np.zeros((1, len(ITEMS)), dtype=np.float32)
        row[0, [place[code] for code in customer.pop("items") if code in place]] = 1
        taken.append(Taken(row, {name: str(value) for name, value in customer.items()}))
    return taken


def example(sample: Sample, chosen: Array, folder: Path) -> list[Path]:
    """Held-out customers under made-up names."""
    path, codes = folder / "customers.jsonl", np.array(list(ITEMS))
    rows = [
        {"name": "Erika Mustermann", "customer": f"K-4711-{n}",
         "items": codes[sample[X][index] > 0].tolist()}
        for n, index in enumerate(chosen)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return [path]


CASE: Final = Case(
    model="next-purchase",
    question="What will this customer buy next that was not bought before?",
    input=X,
    output="scores",
    fields=tuple(f"{code} {name}" for code, name in ITEMS.items()),
    judge=judge,
    train=train,
    verdict=lambda score: f"offer {list(ITEMS.values())[int(score)]}",
    ranking=True,
    suffixes=(".jsonl",),
    take=take,
    example=example,
    watched=WATCHED,
    watch=watched,
)
