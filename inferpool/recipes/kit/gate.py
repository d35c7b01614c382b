"""The parity gate: an export counts only if it computes what the trained model computes.

Three converters are silently wrong on settings that look harmless, and a wrong model still answers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from inferpool.protocol.errors import Refused
from inferpool.recipes.kit.case import Case, Trained
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.scorer import EngineScorer, infer_all


def parity(case: Case, trained: Trained) -> float:
    """The greatest difference over all held-out cases, relative to the outputs' span above 1.

    Raises `Refused(bad_manifest)` above the case's tolerance, when one verdict flips, or when the
    file is too large.
    """
    if len(trained.model) > case.bytes_max:
        raise Refused(f"{case.model}: {len(trained.model)} bytes is too much", code="bad_manifest")
    said = np.asarray(trained.predict(trained.test), dtype=np.float64)
    with tempfile.TemporaryDirectory() as folder, EngineScorer() as scorer:
        path = Path(folder) / f"{case.model}.onnx"
        path.write_bytes(trained.model)
        scorer.add(case.model, path)
        outputs = infer_all(scorer, case.model, case.input, trained.test[case.input])
    return compare(case, said, np.asarray(outputs[case.output], dtype=np.float64))


def compare(case: Case, said: Array, exported: Array) -> float:
    """As `parity`, on the two outputs."""
    exported = exported.reshape(said.shape)
    span = max(1.0, float(np.ptp(said)))
    gap = float(np.abs(said - exported).max()) / span
    flips = _flips(case, said, exported)
    if not gap <= case.tolerance or flips:
        raise Refused(
            f"{case.model}: the export differs from the trained model by {gap:.3g} (at most"
            f" {case.tolerance:g}), {flips} flipped verdicts of {len(said)}",
            code="bad_manifest",
        )
    return gap


def _flips(case: Case, said: Array, exported: Array) -> int:
    if said.ndim == 2 and said.shape[1] > 1:
        return int((said.argmax(axis=1) != exported.argmax(axis=1)).sum())
    if not case.probability:
        return 0
    return int(((said >= case.threshold) != (exported >= case.threshold)).sum())
