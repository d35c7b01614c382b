"""Streams under a deadline, a node that is killed, and labels that come weeks later."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from inferpool.recipes import fraud_desk, registry
from inferpool.recipes.kit.case import X
from inferpool.recipes.kit.data import Array, Sample, heldout
from inferpool.recipes.kit.deciding import Decision, Desk, waiting
from inferpool.recipes.kit.ledger import COMPLAINT, REVIEW, Ledger
from inferpool.recipes.kit.live import Stream
from inferpool.recipes.kit.scorer import Answer, EngineScorer
from inferpool.recipes.kit.take import Taken

ROWS = np.arange(12, dtype=np.float32).reshape(-1, 1)


def doubled(row: Array) -> Sample:
    return {"y": 2 * row}


def served(stream: Stream) -> list[tuple[float, bool]]:
    with stream:
        return [(float(item.outputs["y"][0, 0]), item.local) for item in stream.serve(ROWS)]


def test_answers_come_in_order() -> None:
    assert served(Stream(doubled, doubled, 30.0)) == [(2.0 * i, False) for i in range(12)]


def test_what_is_late_is_answered_here() -> None:
    opened = threading.Event()

    def ask(row: Array) -> Sample:
        if row[0, 0] == 3:
            assert opened.wait(30)
        return doubled(row)

    def local(row: Array) -> Sample:
        opened.set()  # the pool may end now: its answer comes too late all the same
        return doubled(row)

    stream = Stream(ask, local, 0.2, workers=1)
    found = served(stream)
    assert [value for value, _ in found] == [2.0 * i for i in range(12)]
    assert found[3] == (6.0, True)


def test_what_fails_is_answered_here() -> None:
    def ask(row: Array) -> Sample:
        raise ConnectionError("gone")

    assert served(Stream(ask, doubled, 30.0)) == [(2.0 * i, True) for i in range(12)]


class Hanging:
    """A pool that answers the first cases, and the others only when all were decided without it."""

    name = "pool"

    def __init__(self, engine: EngineScorer, answers: int) -> None:
        self.engine, self.left, self.nobody_waits = engine, answers, threading.Event()

    def infer(self, model: str, name: str, rows: Array) -> Sample:
        self.left -= 1
        if self.left < 0:
            assert self.nobody_waits.wait(30)
        return self.engine.infer(model, name, rows)

    def told(
        self, model: str, name: str, rows: Sequence[Array], answers: Sequence[Sample]
    ) -> list[Answer]:
        return [replace(a, node="0x1") for a in self.engine.told(model, name, rows, answers)]


class Here(Hanging):
    """The engine of this process, that lets the pool go once it has decided so many cases."""

    def __init__(self, engine: EngineScorer, pool: Hanging, decides: int) -> None:
        super().__init__(engine, decides)
        self.pool = pool

    def infer(self, model: str, name: str, rows: Array) -> Sample:
        self.left -= 1
        if self.left <= 0:
            self.pool.nobody_waits.set()
        return self.engine.infer(model, name, rows)

    def told(
        self, model: str, name: str, rows: Sequence[Array], answers: Sequence[Sample]
    ) -> list[Answer]:
        return self.engine.told(model, name, rows, answers)


def test_a_late_decision_is_taken_here_and_counted(engine: EngineScorer, tmp_path: Path) -> None:
    case = replace(registry.load("crm").cases[0], deadline_s=2.0)
    sample, pool = heldout(case.model), Hanging(engine, 2)
    engine.infer(case.model, X, sample[X][:1])  # loaded
    desk = Desk(registry.load("crm"), case, pool, Here(engine, pool, 3), tmp_path)
    told: list[Decision] = []
    desk.decide([Taken(sample[X][i : i + 1], {}) for i in range(5)], sample, told.append)
    assert [item.late for item in told] == [False, False, True, True, True]
    assert [item.node for item in told] == ["0x1", "0x1", *["this process"] * 3]
    assert all(item.bitwise for item in told)
    assert waiting(case, told)["late"] == 3


def test_ledger_queues_learns_and_waits(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.sqlite") as ledger:
        for number, score in enumerate((0.9, 0.1, 0.7, 0.8)):
            ledger.decide(number, float(number), 7, score, alert=score > 0.5)
        assert ledger.queue(2) == [0, 3]
        ledger.learn(0, 4.0, 1, REVIEW)
        ledger.learn(0, 50.0, 0, COMPLAINT)  # the first word counts
        assert ledger.queue(5) == [3, 2]
        assert ledger.known_fraud(7, 4.0)
        assert not ledger.known_fraud(7, 4.5)
        assert not ledger.known_fraud(8, 0.0)
        labels, scores = ledger.matured(11.0, 10.0)
        assert (labels.tolist(), scores.tolist()) == ([1, 0], [0.9, 0.1])
        assert ledger.found() == {REVIEW: (1, 1)}
    with Ledger(tmp_path / "a.sqlite") as again:
        assert again.queue(5) == [3, 2]


def test_no_fraud_is_counted_twice_or_forgotten(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    count = 900
    truth = (random.uniform(size=count) < 0.05).astype(int)
    sample = {
        "day": np.sort(random.uniform(0, 120, count)),
        "truth": truth,
        "customer": random.integers(0, 50, count),
    }
    scores = np.clip(truth * 0.4 + random.uniform(size=count) * 0.5, 0, 1)
    for feedback in (False, True):
        found = fraud_desk.work(sample, scores, tmp_path / str(feedback), feedback=feedback)
        reviewed, said = found["found_by_review"], found["found_by_complaint"]
        assert reviewed + said + found["never_known"] == truth.sum()
        assert found["looked_at"] <= fraud_desk.CAPACITY * found["days"]
        assert reviewed > truth.sum() / 2
