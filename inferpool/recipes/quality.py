"""Quality control: which fault a camera saw on a steel plate, and when to ask a person."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from inferpool.recipes import textures
from inferpool.recipes.kit.case import Case, Recipe, Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, published, read, rounded
from inferpool.recipes.kit.export import boosted
from inferpool.recipes.kit.forest import export_forest
from inferpool.recipes.kit.metrics import Figure, accuracy, figure, macro_f1
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import by_hash, fold

STEEL: Final = published(
    "https://raw.githubusercontent.com/semeniutaa/manufacturing_datasets/"
    "62360a76cbf6b76fb88b8a345d9de58577053a86/data/steel_plates_faults.csv",
    310_483,
    "f7c11a0b8fe7650536e8a0a9b1a75a2293cf93daafa39704a851ae2e0427bd3a",
)
# Where the fault lies on the plate is left out: the position must not decide what it is.
LEFT_OUT: Final = ("Fault", "Y_Minimum", "Y_Maximum", "TypeOfSteel_A400")
FAULTS: Final = (
    "Bumps",
    "Dirtiness",
    "K_Scatch",
    "Other_Faults",
    "Pastry",
    "Stains",
    "Z_Scratch",
)
FIELDS: Final = (
    "X_Minimum",
    "X_Maximum",
    "Pixels_Areas",
    "X_Perimeter",
    "Y_Perimeter",
    "Sum_of_Luminosity",
    "Minimum_of_Luminosity",
    "Maximum_of_Luminosity",
    "Length_of_Conveyer",
    "TypeOfSteel_A300",
    "Steel_Plate_Thickness",
    "Edges_Index",
    "Empty_Index",
    "Square_Index",
    "Outside_X_Index",
    "Edges_X_Index",
    "Edges_Y_Index",
    "Outside_Global_Index",
    "LogOfAreas",
    "Log_X_Index",
    "Log_Y_Index",
    "Orientation_Index",
    "Luminosity_Index",
    "SigmoidOfAreas",
)

SETTINGS: Final[dict[str, Any]] = {"num_leaves": 15, "min_child_samples": 10}
SURE_ACCURACY: Final = 0.85


def features(table: dict[str, list[str]]) -> Array:
    """The model's input from the columns of the data set."""
    logical = {"True": 1.0, "False": 0.0}
    cells = [[logical.get(c) for c in table[name]] for name in FIELDS]
    values = [
        [float(c) if known is None else known for c, known in zip(table[name], row, strict=True)]
        for name, row in zip(FIELDS, cells, strict=True)
    ]
    return rounded(np.array(values).T, 4)


def train() -> Trained:
    """Fit on four folds by the hash of the fields."""
    table = columns(read(STEEL))
    x = features(table)
    y = np.searchsorted(FAULTS, table["Fault"])
    assert set(table["Fault"]) == set(FAULTS)
    keys = [row.tobytes().hex() for row in x]
    known, test = by_hash(keys)
    model = boosted("Classifier", x[known], y[known], **SETTINGS)
    said = np.zeros((len(known), len(FAULTS)))
    folds = np.array([fold(key) for key in keys])[known]
    for number in np.unique(folds):
        held = folds == number
        draft = boosted("Classifier", x[known[~held]], y[known[~held]], **SETTINGS)
        said[held] = draft.predict_proba(x[known[held]])
    right = said.argmax(axis=1) == y[known]
    order = np.argsort(-said.max(axis=1), kind="stable")
    rates = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    sure = said.max(axis=1)[order[np.flatnonzero(rates >= SURE_ACCURACY)[-1]]]
    spread = x[known].std(axis=0) + 1e-6
    scaled = x / spread
    centres = np.array([scaled[known][y[known] == k].mean(axis=0) for k in range(len(FAULTS))])
    nearest = ((scaled[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1)
    sample = {
        X: x[test],
        "truth": y[test],
        "rule": nearest[test],
        "sure": np.array(sure),
        "classes": np.array(len(FAULTS)),
        **numeric_kept(x[known], model.predict(x[known])),
    }
    return Trained(
        export_forest(model.booster_.model_to_string(), x.shape[1], "probabilities"),
        lambda cases: model.predict_proba(cases[X]),
        sample,
        sample,
        len(known),
        "LightGBM, 79 rounds of 7 trees, on 24 measures of a fault's outline and brightness",
        (
            "Measures made by others from pictures that are not published; no picture goes in.",
            f"Cross-validated on the known folds the model is right in {right.mean():.3f}"
            f" ({len(known)} faults; 0.02 either way). Other ways, tried there alone, gave 0.756 to"
            " 0.784: fifteen settings, twelve more ratios of the measures, extremely randomised"
            " trees, random forests, and means of them. The place along the coil gave 0.785, but"
            " tells the coil. 0.80 on all faults is not what these measures support; on those that"
            " it is sure of, the model is above.",
            f"Where its best class has a probability below {sure:.2f} a person should look: the"
            f" known folds' others are right in {SURE_ACCURACY:.0%}.",
            "The class of other faults is a mixture, and most errors are in it.",
            "Which plates came from one coil is not known, so coils may be on both sides.",
        ),
    )


def judge(sample: Sample, scores: Array) -> list[Figure]:
    """Shares of right faults: on all, without the class of other faults, and where it is sure."""
    truth, rule = sample["truth"], sample["rule"]
    sure, scores = scores.max(axis=1) >= sample["sure"], scores.argmax(axis=1)
    named = truth != FAULTS.index("Other_Faults")
    name = "nearest class mean"
    return [
        figure("accuracy", accuracy, truth, scores, rule, name, bar=0.75),
        figure("macro F1", macro_f1, truth, scores, rule, name),
        figure("accuracy, named faults", accuracy, truth[named], scores[named], rule[named], name),
        figure(
            "accuracy, sure ones", accuracy, truth[sure], scores[sure], rule[sure], name, bar=0.80
        ),
        figure("share of sure ones", lambda _, s: float(s.mean()), truth, sure, 1.0, "all"),
    ]


RECIPE: Final = Recipe(
    "quality",
    "Quality control",
    "The fault on a steel plate from measures of its outline; defects in pictures of a surface.",
    "Steel Plates Faults (UCI, CC BY 4.0, Buscema, Terzi and Tastle), from a public repository by"
    " hash; photographs of a brick wall and of gravel (CC0), from the PyPI package scikit-image"
    " 0.26.0, with painted defects.",
    (
        Case(
            model="steel-faults",
            question="Which fault is on this steel plate?",
            input=X,
            output="probabilities",
            fields=FIELDS,
            judge=judge,
            train=train,
            verdict=lambda score: FAULTS[int(score)],
            ranking=True,
        ),
        textures.CASE,
    ),
)
