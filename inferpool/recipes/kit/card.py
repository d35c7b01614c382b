"""What is written when a model was trained: its file, manifest, card, and held-out cases."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from inferpool.recipes.kit.case import TEXT, Case, Recipe, Trained
from inferpool.recipes.kit.data import MODELS, save_heldout
from inferpool.recipes.kit.metrics import Figure
from inferpool.recipes.kit.scorer import BATCH

FIELDS_MAX: Final = 60  # named in a card


def write(
    recipe: Recipe,
    case: Case,
    trained: Trained,
    figures: list[Figure],
    parity: float,
    folder: Path = MODELS,
) -> list[Path]:
    """Write everything under `folder` (the package's `models`); returns the paths."""
    data = folder / "data"
    weights, text = data / f"{case.model}.onnx", data / f"{case.model}-card.md"
    toml = folder / "catalogue" / f"{case.model}.toml"
    weights.write_bytes(trained.model)
    text.write_text(card(recipe, case, trained, figures, parity), "utf-8")
    toml.write_text(manifest(recipe, case, trained), "utf-8")
    return [weights, text, toml, save_heldout(case.model, trained.sample, data)]


def manifest(recipe: Recipe, case: Case, trained: Trained) -> str:
    """The model's manifest in TOML."""
    wide = len(case.fields)
    given = ("BYTES", "[-1, 1]") if case.input == TEXT else ("FP32", f"[-1, {wide}]")
    classes = int(trained.sample["classes"]) if "classes" in trained.sample else 1
    digest = hashlib.sha256(trained.model).hexdigest()
    return f"""# Made by `inferpool recipe train {recipe.name} --write`.
# See data/{case.model}-card.md.
name = "{case.model}"
task = "tensor"
engine = "onnx"
licence = "{case.licence}"
description = "{case.question}"
unit = "row"

[limits]
max_rows = {BATCH}

[class]
quant = "f32"

[[inputs]]
name = "{case.input}"
datatype = "{given[0]}"
shape = {given[1]}

[[outputs]]
name = "{case.output}"
datatype = "FP32"
shape = [-1, {classes}]

[[files]]
name = "{case.model}.onnx"
size = {len(trained.model)}
sha256 = "{digest}"
role = "weights"

[[files.sources]]
kind = "bundled"
path = "{case.model}.onnx"
"""


def limits(model: str) -> list[str]:
    """The known limits in a committed model card."""
    text = (MODELS / "data" / f"{model}-card.md").read_text("utf-8")
    _, _, found = text.partition("## Limits\n")
    return [line.removeprefix("* ") for line in found.splitlines() if line.startswith("* ")]


def card(recipe: Recipe, case: Case, trained: Trained, figures: list[Figure], parity: float) -> str:
    """The model card in Markdown, from the numbers of the run that made the model."""
    fields = ", ".join(case.fields[:FIELDS_MAX]) or "one cleaned text"
    if len(case.fields) > FIELDS_MAX:
        fields += f" and so on, {len(case.fields)} in all"
    rows = "\n".join(map(figure_row, figures))
    notes = "\n".join(f"* {note}" for note in trained.notes) or "* None beyond the data's own."
    return f"""# {case.model}

{case.question}

| | |
| --- | --- |
| input | `{case.input}`: {fields} |
| output | `{case.output}`{f", {case.unit}" if case.unit else ""} |
| method | {trained.method} |
| file | `{case.model}.onnx`, {len(trained.model):,} bytes, {case.licence} |
| made by | `inferpool recipe train {recipe.name} --write` (dependency group `train`) |

## Data

{recipe.data}

{trained.known} cases were known to the training, {len(trained.test["truth"])} were held out;
{len(trained.sample["truth"])} of those are committed as `{case.model}-heldout.npz`.

## Measured on all held-out cases

| figure | value (95 % interval) | n | baseline | wanted |
| --- | --- | --- | --- | --- |
{rows}

The ONNX file and the trained model differ by at most {parity:.2g} (relative to the outputs' span
where that is above 1) over all held-out cases, and in no verdict.

## Limits

{notes}
"""


def figure_row(figure: Figure) -> str:
    """A figure as a row of a Markdown table."""
    wanted = "-"
    if figure.bar is not None:
        wanted = f"{'>=' if figure.more_is_better else '<='} {figure.bar:.4g}"
    return (
        f"| {figure.name} | {figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f}) |"
        f" {figure.n} | {figure.baseline:.4f} ({figure.baseline_name}) | {wanted} |"
    )
