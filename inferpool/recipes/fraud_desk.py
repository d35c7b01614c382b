"""The fraud recipe's working days: alerts within what reviewers can look at, and what they learn.

The stream runs in the orders' own time. Reviewers look at a fixed number of alerts a day; what they
miss is known by a complaint weeks later. What is learned comes back in two ways: the threshold
follows the queue's room, and a subject with a known fraud is looked at again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.ledger import COMPLAINT, REVIEW, Ledger
from inferpool.recipes.kit.metrics import average_precision

CAPACITY: Final = 3  # looks a day
COMPLAINT_DAYS: Final = 45
WATCH_DAYS: Final = 30
WINDOW_DAYS: Final = 30  # the threshold follows the last month's scores
FIRST_THRESHOLD: Final = 0.2
ORDERS_MIN: Final = 1_000  # fewer say nothing about working days


def work(sample: Sample, scores: Array, path: Path, *, feedback: bool) -> dict[str, Any]:
    """Run all days of the sample through a ledger at `path`."""
    days, truth, subjects = sample["day"], sample["truth"], sample["customer"]
    threshold = FIRST_THRESHOLD
    curve: list[tuple[float, float]] = []
    with Ledger(path) as ledger:
        for today in range(int(days.max()) + 1):
            for number in np.flatnonzero((days >= today) & (days < today + 1)).tolist():
                subject = int(subjects[number])
                watched = feedback and ledger.known_fraud(subject, today - WATCH_DAYS)
                alert = watched or scores[number] >= threshold
                ledger.decide(number, float(days[number]), subject, float(scores[number]),
                              alert=bool(alert))  # fmt: skip
            due = (days >= today - COMPLAINT_DAYS) & (days < today - COMPLAINT_DAYS + 1)
            for number in np.flatnonzero(due & (truth == 1)).tolist():
                ledger.learn(number, today, 1, COMPLAINT)
            for number in ledger.queue(CAPACITY):
                ledger.learn(number, today, int(truth[number]), REVIEW)
            if feedback and today % 7 == 6:
                threshold = _threshold(ledger.scores(today - WINDOW_DAYS))
            curve.append((float(today), float(ledger.found().get(REVIEW, (0, 0))[1])))
        matured = average_precision(*ledger.matured(float(days.max()), COMPLAINT_DAYS))
        found = ledger.found()
    looked, hits = found.get(REVIEW, (0, 0))
    late = found.get(COMPLAINT, (0, 0))[1]
    return {
        "days": int(days.max()) + 1,
        "orders": len(truth),
        "looked_at": looked,
        "found_by_review": hits,
        "found_by_complaint": late,
        "never_known": int(truth.sum()) - hits - late,
        "precision_of_queue": hits / max(1, looked),
        "curve": curve,
        "average_precision_matured": matured,
    }


def _threshold(recent: Array) -> float:
    """Where the last month's scores would have filled the reviewers' days, not more."""
    if not len(recent):
        return FIRST_THRESHOLD
    share = min(1.0, CAPACITY * WINDOW_DAYS / len(recent))
    return float(np.quantile(recent, 1 - share))


def sections(sample: Sample, scores: Array) -> list[Mapping[str, Any]]:
    """For the report: the same days with and without what was learned."""
    if len(scores) < ORDERS_MIN:
        return []
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            name: work(sample, scores, Path(folder) / f"{feedback}.sqlite", feedback=feedback)
            for name, feedback in (("fixed threshold", False), ("with feedback", True))
        }
    keys = ("looked_at", "found_by_review", "found_by_complaint", "never_known")
    rows = [
        [name, *(str(way[key]) for key in keys), f"{way['precision_of_queue']:.1%}"]
        for name, way in ways.items()
    ]
    first = ways["with feedback"]
    return [
        {
            "title": "Alert queue and reviews",
            "text": f"{first['orders']} orders over {first['days']} days; reviewers look at up to"
            f" {CAPACITY} alerts a day, a fraud that they miss is known by a complaint after"
            f" {COMPLAINT_DAYS} days. Average precision on the labels known by the last day, of"
            f" orders old enough: {first['average_precision_matured']:.3f}.",
            "head": ["", "looked at", "found by review", "by complaint", "not yet known",
                     "frauds per look"],
            "rows": rows,
            "lines": {name: way["curve"] for name, way in ways.items()},
            "axes": ["day", "frauds found by review"],
        },
    ]  # fmt: skip
