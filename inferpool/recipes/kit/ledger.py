"""Decisions whose truth comes later: an alert queue, reviews, and labels that arrive weeks on.

One SQLite file. A score is only judged by cases old enough that a complaint would have come:
younger ones look honest because nobody has complained yet.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, Self

import numpy as np

from inferpool.recipes.kit.data import Array

REVIEW, COMPLAINT = "review", "complaint"
_SCHEMA: Final = """
create table if not exists decision (
    number integer primary key, day real not null, subject integer not null, score real not null,
    alert integer not null);
create table if not exists outcome (
    number integer primary key references decision, day real not null, label integer not null,
    source text not null);
create index if not exists decision_subject on decision (subject, day);
"""


class Ledger:
    """Decisions and outcomes. A day is a number; a subject is whom the case is about."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.commit()
        self._db.close()

    def decide(self, number: int, day: float, subject: int, score: float, *, alert: bool) -> None:
        """A case was scored."""
        row = (number, day, subject, score, alert)
        self._db.execute("insert into decision values (?, ?, ?, ?, ?)", row)

    def learn(self, number: int, day: float, label: int, source: str) -> None:
        """The truth about a case became known; the first word counts."""
        row = (number, day, label, source)
        self._db.execute("insert or ignore into outcome values (?, ?, ?, ?)", row)

    def queue(self, capacity: int) -> list[int]:
        """Cases to look at: alerts without an outcome, the highest score first."""
        query = """select number from decision left join outcome using (number)
            where alert and outcome.number is null order by score desc, number limit ?"""
        return [number for (number,) in self._db.execute(query, (capacity,))]

    def known_fraud(self, subject: int, since: float) -> bool:
        """Whether a fraud about this subject became known on or after a day."""
        query = """select 1 from outcome join decision using (number)
            where subject = ? and label = 1 and outcome.day >= ? limit 1"""
        return self._db.execute(query, (subject, since)).fetchone() is not None

    def scores(self, since: float) -> Array:
        """Scores of the cases from this day on."""
        query = "select score from decision where day >= ?"
        return np.array([score for (score,) in self._db.execute(query, (since,))])

    def matured(self, day: float, age: float) -> tuple[Array, Array]:
        """Labels and scores of the cases at least `age` days old; no word by then means honest."""
        query = """select coalesce(label, 0), score from decision left join outcome using (number)
            where decision.day <= ?"""
        rows = self._db.execute(query, (day - age,)).fetchall()
        return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])

    def found(self) -> dict[str, tuple[int, int]]:
        """For each source: outcomes, and those that were fraud."""
        query = "select source, count(*), sum(label) from outcome group by source"
        return {source: (count, fraud) for source, count, fraud in self._db.execute(query)}
