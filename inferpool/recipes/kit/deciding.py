"""Single decisions: bought one by one, explained, written to a file each, and made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.protocol.units import format_usd
from inferpool.recipes.kit import audit
from inferpool.recipes.kit.case import Case, Recipe, scores_of
from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.live import Served, stream_of
from inferpool.recipes.kit.reasons import reasons
from inferpool.recipes.kit.scorer import Answer, Scorer
from inferpool.recipes.kit.take import Taken

_PICO: Final = 10**12


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision as it is shown; `file` is its audit record, `left_out` what stayed here.

    `late`: the pool was not there in time, so this process decided, after `ms` in all.
    """

    case: str
    score: float
    verdict: str
    why: str
    node: str
    charge_pico_usd: int
    replayed: bool
    bitwise: bool
    file: str
    left_out: tuple[str, ...]
    signed: bool | None
    about_this: bool | None
    late: bool
    ms: float


@dataclass(frozen=True, slots=True)
class Desk:
    """Who asks: the recipe's case, where answers are bought, and the engine that checks them."""

    recipe: Recipe
    case: Case
    scorer: Scorer
    engine: Scorer
    folder: Path

    def decide(
        self,
        taken: Sequence[Taken],
        sample: Sample,
        tell: Callable[[Decision], None] = lambda decision: None,
    ) -> tuple[list[Decision], list[dict[str, Any]], list[Answer]]:
        """Decide at most `TOLD_MAX` cases, each within the case's deadline: this process decides
        what the pool is late for. Decisions, their audit records, and who answered."""
        served: list[Served] = []
        times_ms = []
        rows = np.concatenate([item.row for item in taken])
        deadline_s = self.case.deadline_s
        # One at a time: a node may compute what comes together in one batch, and then not every
        # answer is bit for bit that of the row alone.
        with stream_of(self.case, self.scorer, self.engine, deadline_s, 1) as stream:
            for found in stream.serve(rows):
                served.append(found)
                times_ms.append(time.time_ns() // 1_000_000)
        told = self._told(rows, served)
        shown, records = [], []
        for item, answer, by, time_ms in zip(taken, told, served, times_ms, strict=True):
            decision, record = self._record(item, answer, by, time_ms, sample)
            tell(decision)
            shown.append(decision)
            records.append(record)
        return shown, records, told

    def _told(self, rows: Array, served: Sequence[Served]) -> list[Answer]:
        """Who decided: nodes with their receipts, or this process."""
        found: dict[int, Answer] = {}
        for here, scorer in ((False, self.scorer), (True, self.engine)):
            chosen = [i for i, by in enumerate(served) if by.local is here]
            if not chosen:
                continue
            told = scorer.told(
                self.case.model,
                self.case.input,
                [rows[i : i + 1] for i in chosen],
                [served[i].outputs for i in chosen],
            )
            found |= dict(zip(chosen, told, strict=True))
        return [found[i] for i in range(len(served))]

    def _record(
        self, item: Taken, answer: Answer, by: Served, time_ms: int, sample: Sample
    ) -> tuple[Decision, dict[str, Any]]:
        case, left_out = self.case, tuple(item.identifiers)
        score = float(scores_of(case, answer.outputs)[0])
        why = reasons(self.engine, case, item.row[0], sample.get("typical"))
        verdict = verdict_of(case, sample, score)
        record = audit.record(
            self.recipe.name, case.model, case.input, item.row, answer, score, verdict, why,
            time_ms, left_out,
        )  # fmt: skip
        path = audit.write(record, self.folder / case.model)
        again = audit.replay(record, self.engine)
        words = ", ".join(f"{reason.field} {reason.effect:+.3g}" for reason in why[:3])
        decision = Decision(
            case.model, score, verdict, words, answer.node, charge(answer), again.same,
            again.bitwise, path.name, left_out, again.signed, again.about_this, by.local,
            round(by.ms, 1),
        )  # fmt: skip
        return decision, record


def verdict_of(case: Case, sample: Sample, score: float) -> str:
    """The case's own verdict, or a person's where the score lies in the band."""
    if "band" in sample:
        low, high = map(float, sample["band"])
        if low < high and low <= score <= high:
            return "refer to a person"
    return case.verdict(score)


def charge(answer: Answer) -> int:
    """What the answer cost, in pico-USD; 0 where nobody was paid."""
    return int(answer.receipt["receipt"]["chargePico"]) if answer.receipt else 0


def waiting(case: Case, decisions: Sequence[Decision]) -> dict[str, Any]:
    """How long the decisions took, and how many this process took for a late pool."""
    return {
        "deadline_ms": 1000 * case.deadline_s,
        "n": len(decisions),
        "late": sum(decision.late for decision in decisions),
        "slowest_ms": max(decision.ms for decision in decisions),
    }


def cost(told: Sequence[Answer]) -> dict[str, Any]:
    """What so many decisions cost, and a thousand of them."""
    charged = sum(map(charge, told))
    per_thousand = charged * 1000 // max(1, len(told))
    return {
        "decisions": len(told),
        "charged_pico_usd": charged,
        "usd_per_1000_decisions": per_thousand / _PICO,
        "per_1000_decisions": format_usd(per_thousand),
    }


def spread(rows: Array, scores: Array, count: int) -> list[Taken]:
    """So many of the rows, from the lowest score to the highest; they are about nobody."""
    order = np.argsort(scores, kind="stable")
    chosen = order[np.linspace(0, len(rows) - 1, count).astype(int)]
    return [Taken(rows[index][None], {}) for index in chosen]
