"""A user's own file in, input rows out; what identifies a person is told apart and stays here.

The plain form is a table (.csv): a column for each field of the model, and any others, which are
taken for identifiers. A recipe whose field has a format of its own reads that instead.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from inferpool.protocol.errors import BadRequest, Refused
from inferpool.recipes.kit.case import TEXT, Case, Recipe
from inferpool.recipes.kit.data import Array, heldout

BYTES_MAX: Final = 64 << 20  # of a file
ROWS_MAX: Final = 10_000
MADE_UP: Final = {"name": "Erika Mustermann", "number": "K-4711-0815"}


@dataclass(frozen=True, slots=True)
class Taken:
    """One case of a file: the model's input [1, ...], and who it is about: name -> value."""

    row: Array
    identifiers: Mapping[str, str]


def choose(recipe: Recipe, path: Path, model: str | None) -> Case:
    """The case that reads this file. Raises `BadRequest(model_not_found)` naming what there is."""
    cases = [case for case in recipe.cases if model in (None, case.model)]
    found = [case for case in cases if path.suffix.lower() in suffixes(case)]
    if len(found) != 1:
        known = "; ".join(f"{c.model}: {' '.join(suffixes(c))}" for c in recipe.cases)
        why = "no case reads" if not found else "more than one case reads"
        raise BadRequest(f"{why} {path.name}: {known}; name one by --model", code="model_not_found")
    return found[0]


def suffixes(case: Case) -> tuple[str, ...]:
    """What names of files the case reads."""
    return case.suffixes if case.take is not None else (".csv",)


def take(case: Case, path: Path) -> list[Taken]:
    """The cases of a file. Raises `BadRequest` or `Refused` where it is not what it should be."""
    if path.stat().st_size > BYTES_MAX:
        raise Refused(f"{path.name} has more than {BYTES_MAX >> 20} MiB", code="bad_encoding")
    try:
        taken: list[Taken] = (case.take or _table(case))(path)
    except (ValueError, KeyError, UnicodeError) as error:
        raise BadRequest(f"{path.name}: {error}") from error
    if not 0 < len(taken) <= ROWS_MAX:
        raise BadRequest(f"{path.name} holds {len(taken)} cases; 1 to {ROWS_MAX} are read")
    return taken


def example(case: Case, folder: Path, count: int = 3) -> list[Path]:
    """Held-out cases as files of the kind that `take` reads, with made-up people in them."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = heldout(case.model)
    chosen = np.linspace(0, len(sample["truth"]) - 1, count).astype(int)
    if case.example is not None:
        made: list[Path] = case.example(sample, chosen, folder)
        return made
    path = folder / f"{case.model}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*MADE_UP, *case.fields])
        for number, index in enumerate(chosen):
            person = [MADE_UP["name"], f"{MADE_UP['number']}-{number}"]
            table.writerow([*person, *(f"{value:.9g}" for value in sample[case.input][index])])
    return [path]


def leaks(sent: bytes, identifiers: Mapping[str, str]) -> list[str]:
    """Names of the identifiers whose value stands in the bytes that leave; short values (below
    four characters) stand in anything and are not looked for."""
    low = sent.lower()
    return [
        name
        for name, value in identifiers.items()
        if len(value) >= 4 and value.lower().encode() in low
    ]


def _table(case: Case) -> Any:
    assert case.input != TEXT, "a case that reads text says how it reads a file"

    def read(path: Path) -> list[Taken]:
        table = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
        missing = _missing(case.fields, table[0]) if table else []
        if missing:
            raise ValueError(f"{len(missing)} columns are missing, the first {missing[0]!r}")
        return [
            Taken(
                np.array([[float(line[field]) for field in case.fields]], dtype=np.float32),
                {name: str(value) for name, value in line.items() if name not in case.fields},
            )
            for line in table
        ]

    return read


def _missing(fields: Sequence[str], line: Mapping[str, str]) -> list[str]:
    return [field for field in fields if field not in line]
