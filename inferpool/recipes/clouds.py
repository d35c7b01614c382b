"""Cloud mask for `environment`: how likely a Sentinel-2 pixel is cloud, from ten of its bands.

The model is that of s2cloudless, written anew as ONNX. No picture with clouds marked by hand
came with a free licence, so it is tested on measured spectra of the ground as seen through a
simple atmosphere, half of them under a cloud of known thickness that is painted over them.
"""

from __future__ import annotations

import importlib
import re
from typing import Final

import numpy as np

from inferpool.recipes.kit.case import Case, Trained, X
from inferpool.recipes.kit.data import Array, Sample, columns, fetched, packaged, read
from inferpool.recipes.kit.export import SEED
from inferpool.recipes.kit.forest import export_forest
from inferpool.recipes.kit.metrics import Figure, auc, figure, recall
from inferpool.recipes.kit.running import numeric_kept
from inferpool.recipes.kit.split import fold

MODEL: Final = packaged(
    "pypi",
    "s2cloudless",
    "1.7.3",
    "s2cloudless/models/pixel_s2_cloud_detector_lightGBM_v0.1.txt",
    10_975_392,
    "0f92b6822cc0ad42982f55bab9b1688329e119451ad9a9e0a56384b9f37bc61d",
)
NAMES: Final = packaged(
    "pypi",
    "earthlib",
    "1.1.0",
    "earthlib/data/spectra.csv",
    723_925,
    "3ab19c85d72827373a41d6bed4f46809dc639664208c09997b1fe9b055478968",
)
SPECTRA: Final = packaged(
    "pypi",
    "earthlib",
    "1.1.0",
    "earthlib/data/spectra.sli",
    5_227_920,
    "fcbc14e973fa28fba7daeeb510894987e02c304ca2fca83f11808d185fbfbd9a",
)
HEADER: Final = packaged(
    "pypi",
    "earthlib",
    "1.1.0",
    "earthlib/data/spectra.sli.hdr",
    149_640,
    "27db225d30a437129b638611f0c424fe0a4f5492d300a00289b0f450cb09ef3d",
)
BANDS: Final = {  # middle and width, nm
    "B01 aerosol": (443, 21),
    "B02 blue": (492, 66),
    "B04 red": (665, 31),
    "B05 red edge": (704, 15),
    "B08 near infrared": (833, 106),
    "B8A near infrared, narrow": (865, 21),
    "B09 water vapour": (945, 20),
    "B10 cirrus": (1374, 31),
    "B11 short-wave infrared 1.6": (1614, 91),
    "B12 short-wave infrared 2.2": (2202, 175),
}
BLUE, VAPOUR, HIGH = 1, 6, 7
THRESHOLD: Final = 0.4  # its authors' own
RULE: Final = (0.2, 0.012)  # reflectance of blue and of the cirrus band that a rule calls cloud
KINDS: Final = ("clear", "thick cloud", "thin cloud", "cirrus")
THICKNESS: Final = ((8, 60), (1.5, 6), (0.3, 2))  # optical, of those that are no clear sky
GROUND: Final = ("soil and sand", "plants", "roofs and roads", "dead wood and char")


# -- the ground and the sky over it --------------------------------------------------------------


def ground() -> tuple[Array, Array, list[str]]:
    """Reflectance in each band [spectra, bands], what each spectrum is (of `GROUND`), its name."""
    listed = re.search(r"\nwavelength = \{([^}]*)\}", read(HEADER))
    assert listed is not None
    nm = 1_000 * np.array([float(cell) for cell in listed[1].split(",")])
    values = np.frombuffer(fetched(SPECTRA).read_bytes(), dtype="<f4").reshape(-1, len(nm))
    found = []
    for middle, width in BANDS.values():
        near = np.abs(nm - middle)
        inside = near <= max(width / 2, near.min())
        found.append(values[:, inside].mean(axis=1))
    table = columns(read(NAMES))
    kinds = {"bare": 0, "vegetation": 1, "built": 2, "npv": 3, "burned": 3}
    what = np.array([kinds[cell] for cell in table["LEVEL_2"]])
    return np.column_stack(found).clip(0, 1), what, table["NAME"]


def seen(bare: Array, kinds: Array, random: np.random.Generator) -> Array:
    """Reflectance at the top of the atmosphere [pixels, bands] over this ground.

    Air: Rayleigh's single scattering with the optical thickness of Hansen and Travis (1974), dust
    by Angstrom's law, water vapour only where it matters most, in B09 and B10. Cloud: the
    two-stream albedo of a layer that absorbs nothing (Bohren 1987), darker in the short-wave
    infrared, and the darker the more ice.
    """
    count = len(bare)
    um = np.array([middle for middle, _ in BANDS.values()]) / 1_000
    sun = np.cos(np.radians(random.uniform(20, 60, (count, 1))))
    air = 0.008569 * um**-4 * (1 + 0.0113 * um**-2 + 0.00013 * um**-4)
    dust = random.uniform(0.02, 0.2, (count, 1)) * um**-1.3
    path = (0.75 * (1 + sun**2) * air + 0.2 * dust) / (4 * sun)
    through = np.exp(-(0.5 * air + 0.16 * dust) * (1 / sun + 1))
    vapour = random.uniform(0.2, 0.6, count)
    below = through.copy()
    path[:, HIGH] *= 0.1  # dust lies below the vapour
    path[:, VAPOUR] *= vapour
    below[:, VAPOUR] *= vapour
    below[:, HIGH] *= random.uniform(0, 0.004, count)
    white, left = _cloud(kinds, count, random)
    above = through.copy()
    high = np.where(kinds == 3, random.uniform(0.7, 0.95, count), random.uniform(0, 0.3, count))
    above[:, VAPOUR] *= vapour + (1 - vapour) * np.maximum(high, 0.4)
    above[:, HIGH] *= high
    made = path + above * white + below * left**2 * bare / (1 - white * bare)
    # A pixel is stored in steps of 0.0001, with some noise of the instrument.
    rounded: Array = np.round(made + random.normal(0, 0.0008, made.shape), 4).clip(0.0001, 1.6)
    return rounded.astype(np.float32)


def _cloud(kinds: Array, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """What each pixel's cloud throws back and lets through [pixels, bands]; 0 and 1 without."""
    thick = np.zeros(count)
    for kind, (low, high) in enumerate(THICKNESS, 1):
        here = kinds == kind
        thick[here] = np.exp(random.uniform(np.log(low), np.log(high), int(here.sum())))
    albedo = 0.15 * thick / (2 + 0.15 * thick)
    white = np.repeat(albedo[:, None], len(BANDS), axis=1)
    ice = (kinds == 3) | (random.random(count) < 0.3)
    for band, (water, frozen) in ((8, (0.85, 0.55)), (9, (0.7, 0.4))):
        white[:, band] *= np.where(ice, frozen, water)
    return white, 1 - albedo[:, None]


# -- the model -----------------------------------------------------------------------------------


def train() -> Trained:
    """Write the published model as ONNX; every spectrum once, two fifths of them for the monitor
    and the reasons, the others for the figures."""
    text = read(MODEL)
    model = importlib.import_module("lightgbm").Booster(model_str=text)
    bare, what, names = ground()
    random = np.random.default_rng(SEED)
    kinds = np.where(random.random(len(bare)) < 0.5, 0, random.integers(1, 4, len(bare)))
    pixels = seen(bare, kinds, random)
    folds = np.array([fold(name) for name in names])
    known, test = np.flatnonzero(folds < 2), np.flatnonzero(folds >= 2)
    sample = {
        X: pixels[test],
        "truth": (kinds[test] > 0).astype(np.int8),
        "kind": kinds[test].astype(np.int8),
        "ground": what[test].astype(np.int8),
        **numeric_kept(pixels[known], model.predict(pixels[known])),
    }
    return Trained(
        export_forest(text, len(BANDS), "probability"),
        lambda cases: model.predict(cases[X].astype(np.float64)),
        sample,
        sample,
        0,
        "s2cloudless 1.7.3, model v0.1: LightGBM, 170 trees of 770 leaves, unchanged",
        (
            "No labelled picture: no scene with clouds marked by hand was found in a package or"
            " under a free licence, so nothing here says how the model does on real scenes. The"
            " ground is measured (plants: simulated by PROSAIL), air and cloud are painted over it"
            " by a simple formula. Read the figures as a test that the model sees cloud where"
            " cloud was put, and how often bare ground looks like cloud to it.",
            "On this test the rule of two bands ranks pixels better than the model: the painted"
            " cirrus band is as clean as the formula makes it, which no real one is. Bare ground"
            " fools the rule far more often.",
            "Nothing was trained or tuned here; the threshold 0.4 is its authors'.",
            "Single pixels: its authors also average the probability over neighbours and widen the"
            " mask. Snow, water, smoke and the shadows of clouds are not in the test.",
            "The file `cloud-mask.onnx` is an adaptation (the same trees in another format) of the"
            " model of s2cloudless, Copyright Sinergise and the s2cloudless contributors, and is"
            " under CC BY-SA 4.0 as that is; the rest of the project is not.",
        ),
    )


def rule(pixels: Array) -> Array:
    """What needs no model: how far blue or the cirrus band is above what a rule calls cloud."""
    found: Array = np.maximum(pixels[:, BLUE] / RULE[0], pixels[:, HIGH] / RULE[1])
    return found.astype(np.float64)


def judge(sample: Sample, scores: Array) -> list[Figure]:
    """Ranking, each kind of cloud found, and clear ground of each kind that is called cloud."""
    truth, kind, plain = sample["truth"], sample["kind"], rule(sample[X])
    said, ruled = (scores >= THRESHOLD).astype(int), (plain >= 1).astype(int)
    name = "bright in blue or in B10"
    found = [figure("AUC", auc, truth, scores, plain, name, bar=0.90)]
    for number, what in enumerate(KINDS[1:], 1):
        here = kind == number
        found.append(
            figure(f"found, {what}", recall, truth[here], said[here], ruled[here], name,
                   bar=0.95 if number == 1 else None)
        )  # fmt: skip
    for number, what in enumerate(GROUND):
        here = (kind == 0) & (sample["ground"] == number)
        found.append(
            figure(f"clear called cloud, {what}", recall, 1 - truth[here], said[here], ruled[here],
                   name, more_is_better=False)
        )  # fmt: skip
    return found


CASE: Final = Case(
    model="cloud-mask",
    question="How likely is this Sentinel-2 pixel cloud?",
    input=X,
    output="probability",
    fields=tuple(BANDS),
    judge=judge,
    train=train,
    verdict=lambda score: "cloud" if score >= THRESHOLD else "clear",
    probability=True,
    threshold=THRESHOLD,
    licence="CC-BY-SA-4.0",
    bytes_max=4_000_000,
)
