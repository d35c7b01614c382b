"""Predictive maintenance: how long a turbofan still runs, and whether a radiator behaves oddly.

Late is worse than early, so remaining life comes with a lower bound and is scored by NASA's own
asymmetric rule. Whole engines are held out: neighbouring cycles of one engine tell each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from inferpool.recipes.engines import RUL_FIELDS, cycles, engine_features, example, take
from inferpool.recipes.kit.calibration import choose_band, residual_quantiles
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import (
    Array,
    Sample,
    published,
    read,
)
from inferpool.recipes.kit.export import boosted, crossed_boosted, export_boosted
from inferpool.recipes.kit.metrics import Figure, figure, none_of, recall, rmse
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_group
from inferpool.recipes.radiator import judge_shuttle, train_shuttle

_FOLDER: Final = (
    "https://raw.githubusercontent.com/alireza-javanmardi/conformal-RUL-intervals/"
    "37e450ac8b656229d44aed3ac39dcf85ea11b86c/data/CMAPSS/"
)
TRAIN: Final = published(
    _FOLDER + "train_FD001.txt",
    3_515_356,
    "963b5e22825b34d8b21c69e1aeb4af3e647050eb672ee8834ba4b5d91d2de0f8",
)
TEST: Final = published(
    _FOLDER + "test_FD001.txt",
    2_228_855,
    "3cda7109ce17bafb5443f2ac926cfcf88154b941b8c4cf95eb55d1ddd6f52851",
)
TRUTH: Final = published(
    _FOLDER + "RUL_FD001.txt",
    429,
    "a19c8ec94931949d0485bdc35118206e9c81c4547b422efb9cf86f4ceddbceca",
)

CAP: Final = 125.0  # cycles; before that an engine shows no wear (the usual convention)
ALARM: Final = 30.0  # cycles left when a planner wants to know
FALSE: Final = 60.0  # an alarm with more cycles left was for nothing
COVERAGE: Final = 0.9
FOLDS: Final = 5
BAND_ERROR: Final = 0.02  # on the wrong side of `ALARM`
LOOKS_MIN: Final = 30  # at a life, to tell how early an alarm comes
EVERY: Final = 3  # looks at a whole life: each third cycle


def sections(sample: Sample, scores: Array) -> list[Mapping[str, Any]]:
    """For the report: an engine's life as it was and as it was foreseen."""
    unit = sample["life"].max()
    here = sample["life"] == unit
    age, low = sample["age"][here], np.maximum(0, scores[here] + float(sample["lower_offset"]))
    if here.sum() < LOOKS_MIN or unit == 0:
        return []
    ways = {"left in truth, at most 125": sample["truth"][here], "estimate": scores[here],
            "lower bound": low}  # fmt: skip
    return [
        {
            "title": "One held-out engine to its end",
            "text": f"Engine {unit}. An alarm needs two looks in a row below {ALARM:g} cycles.",
            "lines": {name: [*zip(age.tolist(), np.asarray(ys).tolist(), strict=True)]
                      for name, ys in ways.items()},
            "axes": ["cycles flown", "cycles left"],
        }
    ]  # fmt: skip


def nasa_score(truth: Array, value: Array) -> float:
    """NASA's rule of 2008, summed: an estimate that is too late costs more than one too early."""
    late = value - truth
    return float(np.where(late < 0, np.exp(-late / 13), np.exp(late / 10)).sum() - len(late))


def train_life() -> Trained:
    """Fit on 80 engines, learn the lower bound by folds of them; 20 whole lives and the set's own
    100 test engines are held out."""
    rows = cycles(read(TRAIN))
    units = rows[:, 0]
    x = np.vstack([engine_features(rows[units == u]) for u in np.unique(units)])
    last = {u: rows[units == u][-1, 1] for u in np.unique(units)}
    left = np.array([last[u] for u in units]) - rows[:, 1]
    y = np.minimum(CAP, left)
    known, whole = by_group(units, np.unique(units)[::5])
    settings: dict[str, Any] = {"num_leaves": 15, "learning_rate": 0.06, "min_child_samples": 60}

    folds = units.astype(int) % FOLDS
    said = crossed_boosted("Regressor", x, y, folds, known, **settings)
    # A few cuts per engine, as in the test set; residuals of one engine hang together.
    cuts = _cuts(units[known], y[known])
    truths, guesses = y[known][cuts], said[cuts]
    offset = float(np.quantile(truths - guesses, 1 - COVERAGE))
    band = choose_band((truths >= ALARM).astype(int), guesses, BAND_ERROR, ALARM, (0, CAP))
    model = boosted("Regressor", x[known], y[known], **settings)
    tests = cycles(read(TEST))
    ends = [engine_features(tests[tests[:, 0] == u])[-1] for u in np.unique(tests[:, 0])]
    truth = np.array([float(line) for line in read(TRUTH).split()])
    ages = np.array([(tests[:, 0] == u).sum() for u in np.unique(tests[:, 0])])
    lives = whole[::EVERY]
    sample = {
        X: np.vstack([np.array(ends), x[lives]]),
        "truth": np.r_[np.minimum(CAP, truth), y[lives]],
        "left": np.r_[truth, left[lives]].astype(np.int32),
        "age": np.r_[ages, rows[lives, 1]].astype(np.int32),
        "life": np.r_[np.zeros(len(ends)), units[lives]].astype(np.int32),
        "mean_life": np.array(np.mean([last[u] for u in np.unique(units[known])])),
        "lower_offset": np.array(offset),
        "band": np.array(band, dtype=np.float32),
        "residual_quantiles": residual_quantiles(y[known], said),
        **numeric_kept(x[known], model.predict(x[known])),
    }
    return Trained(
        export_boosted(model, x.shape[1], "cycles_left"),
        lambda cases: model.predict(cases[X]),
        sample,
        sample,
        len(known),
        "LightGBM, 79 trees, on means and trends of 14 sensors",
        (
            "Simulated engines, one flight condition and one fault. A real fleet is harder.",
            "True remaining life is capped at 125 cycles, as is usual for this set.",
            f"The lower bound is the estimate {offset:+.1f} cycles: what {COVERAGE:.0%} of ten cuts"
            " of each known engine stayed above, each engine judged by a model of others.",
            f"Between {band[0]:.0f} and {band[1]:.0f} cycles an engineer decides: outside of it at"
            f" most {BAND_ERROR:.0%} of those cuts were on the wrong side of {ALARM:g} cycles.",
            "One cycle is one flight; the set does not say how long it takes, so false alarms are"
            " counted per 1,000 flights, not hours.",
        ),
    )


def _cuts(units: Array, left: Array) -> Array:
    """Ten rows for each engine, spread over its life as the test set's ends are."""
    chosen: list[int] = []
    for unit in np.unique(units):
        rows = np.flatnonzero(units == unit)
        late = rows[left[rows] < CAP]
        chosen += np.linspace(rows[len(rows) // 3], late[-5], 10).astype(int).tolist()
    return np.array(chosen)


def judge_life(sample: Sample, scores: Array) -> list[Figure]:
    """Errors in cycles, NASA's score per engine, the lower bound, and alarms over whole lives."""
    cut = sample["life"] == 0
    truth, said = sample["truth"][cut], scores[cut]
    rule = np.clip(sample["mean_life"] - sample["age"], 0, CAP)
    lower = np.maximum(0, said + sample["lower_offset"])
    name = "mean life minus age"

    def per_engine(a: Array, b: Array) -> float:
        return nasa_score(a, b) / len(a)

    soon = (truth < ALARM).astype(int)
    lives = ~cut
    return [
        figure("RMSE, cycles", rmse, truth, said, rule[cut], name, bar=15.0, more_is_better=False),
        figure("NASA score per engine", per_engine, truth, said, rule[cut], name,
               more_is_better=False),
        figure("found with under 30 cycles left", recall, soon, (said < ALARM).astype(int),
               (rule[cut] < ALARM).astype(int), name),
        figure("true life above the lower bound", lambda t, b: float((t >= b).mean()), truth, lower,
               float((truth >= said).mean()), "the estimate itself", bar=0.85),
        *_alarm_figures(sample, lives, scores, rule, name),
    ]  # fmt: skip


def _alarm_figures(
    sample: Sample, lives: Array, scores: Array, rule: Array, name: str
) -> list[Figure]:
    """How early the alarm comes on engines run to failure, and how often it is false."""
    unit, left = sample["life"][lives], sample["left"][lives]
    if len(unit) < LOOKS_MIN * len(np.unique(unit)):  # a small run holds bits of lives
        return []
    lead, false = alarms(unit, left, scores[lives])
    lead_rule, false_rule = alarms(unit, left, rule[lives])
    flights = EVERY * np.array([(unit == u).sum() for u in np.unique(unit)])

    def rate(count: Array, flown: Array) -> float:
        return 1000 * float(flown.sum()) / float(count.sum())

    falsely = figure("false alarms per 1,000 flights", rate, flights, false, false_rule, name,
                     more_is_better=False)  # fmt: skip
    return [
        figure("lead time of the alarm, cycles", lambda _, s: float(np.median(s)), lead, lead,
               lead_rule, name, bar=10.0),
        figure("engines warned 10 cycles ahead", lambda _, s: float((s >= 10).mean()), lead, lead,
               lead_rule, name, share=True),
        replace(falsely, high=max(falsely.high, 1000 * none_of(int(flights.sum())))),
    ]  # fmt: skip


def alarms(unit: Array, left: Array, said: Array) -> tuple[Array, Array]:
    """For each engine, rows in order: cycles left at the first true alarm (0: none came), and the
    alarms that began while more than `FALSE` cycles were left.

    An alarm needs two looks in a row below `ALARM`.
    """
    lead, false = [], []
    for number in np.unique(unit):
        here = unit == number
        below = said[here] < ALARM
        raised = below & np.r_[False, below[:-1]]
        begun = raised & ~np.r_[False, raised[:-1]]
        early = left[here] > FALSE
        false.append(int((begun & early).sum()))
        lead.append(int(left[here][raised & ~early].max(initial=0)))
    return np.array(lead), np.array(false)


def life_verdict(score: float) -> str:
    """What a planner reads."""
    return f"plan a shop visit: {score:.0f} cycles" if score < ALARM else f"{score:.0f} cycles"


RECIPE: Final = Recipe(
    "maintenance",
    "Predictive maintenance",
    "Cycles that a turbofan still runs, with a lower bound; anomalies of a radiator's readings.",
    "NASA C-MAPSS FD001 turbofan degradation (simulated; US government work, public domain; Saxena"
    " and others 2008), from a public repository by hash; Statlog Shuttle (UCI, CC BY 4.0), from"
    " the PyPI package river 0.26.1.",
    (
        Case(
            model="turbofan-life",
            question="How many cycles does this turbofan still run?",
            input=X,
            output="cycles_left",
            fields=RUL_FIELDS,
            judge=judge_life,
            train=train_life,
            verdict=life_verdict,
            unit="cycles, at most 125",
            threshold=ALARM,
            suffixes=(".txt",),
            take=take,
            example=example,
            sections=sections,
        ),
        Case(
            model="shuttle-anomaly",
            question="How likely are these radiator readings an anomaly?",
            input=X,
            output="probability",
            fields=tuple(f"f{number}" for number in range(1, 10)),
            judge=judge_shuttle,
            train=train_shuttle,
            verdict=lambda score: "anomaly" if score >= 0.5 else "normal",
            probability=True,
        ),
    ),
    whole=True,
)
