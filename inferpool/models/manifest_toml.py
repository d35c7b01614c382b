"""From TOML to `Manifest`. Whatever is unknown, missing or of the wrong type is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final, Literal, cast, get_args
from urllib.parse import urlsplit

from inferpool.models.manifest import (
    DATATYPES,
    ENGINES,
    ROLES,
    BundledSource,
    File,
    HubSource,
    Limits,
    Manifest,
    PackageSource,
    Part,
    Source,
    Task,
    Tensor,
    Unit,
    format_problem,
)
from inferpool.models.toml_table import Table, refuse

# The sampler numbers that engines know; text-valued settings (sampler order) are the engine's.
SAMPLING: Final = frozenset(
    {
        "temperature",
        "dynatemp_range",
        "dynatemp_exponent",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "top_n_sigma",
        "xtc_probability",
        "xtc_threshold",
        "repeat_penalty",
        "repeat_last_n",
        "presence_penalty",
        "frequency_penalty",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    }
)
MAX_MANIFEST_BYTES: Final = 64 * 1024
MAX_FILE_BYTES: Final = 2**43
MAX_COUNT: Final = 2**31

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TENSOR_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PACKAGE: Final = {
    "pypi": re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,100}[A-Za-z0-9])?"),
    "npm": re.compile(r"(@[a-z0-9][a-z0-9._-]{0,100}/)?[a-z0-9][a-z0-9._-]{0,100}"),
}
# An exact version; a tag, a range, a path or a web address would be another thing each day.
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+!_-]{0,63}")
_NUMBER: Final = re.compile(r"\d+")


def parse_manifest(text: str, origin: str = "manifest") -> Manifest:
    """The manifest in `text`. Raises `Refused(bad_manifest)`, naming `origin`."""
    if len(text.encode()) > MAX_MANIFEST_BYTES:
        refuse(origin, f"is over {MAX_MANIFEST_BYTES} bytes")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        refuse(origin, f"is not TOML: {error}")
    return _manifest(Table(table, origin))


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises `Refused(bad_manifest)`; `OSError` when it cannot be read."""
    try:
        return parse_manifest(path.read_text("utf-8"), str(path))
    except UnicodeDecodeError as error:
        refuse(str(path), f"is not UTF-8: {error}")


def _manifest(table: Table) -> Manifest:
    engine = table.choice("engine", ENGINES)
    manifest = Manifest(
        name=table.match("name", _NAME),
        task=cast(Task, table.choice("task", frozenset(get_args(Task)))),
        engine=engine,
        licence=table.text("licence"),
        description=table.text("description"),
        unit=cast(Unit, table.choice("unit", frozenset(get_args(Unit)))),
        quant=_quant(table.table("class", required=True)),
        limits=_limits(table.table("limits")),
        template_overhead=table.whole("template_overhead", 10**6, 0),
        message_overhead=table.whole("message_overhead", 10**6, 0),
        files=table.rows("files", lambda row: _file(row, engine)),
        sampling=table.table("sampling").numbers(SAMPLING),
        inputs=table.rows("inputs", _tensor),
        outputs=table.rows("outputs", _tensor),
    )
    table.end()
    _check_whole(manifest, table)
    return manifest


def _check_whole(manifest: Manifest, table: Table) -> None:
    for key in ("files", "inputs", "outputs"):
        names = [row.name for row in getattr(manifest, key)]
        if len(set(names)) != len(names):
            table.refuse(key, "names the same thing twice")
    if manifest.files and not any(file.role == "weights" for file in manifest.files):
        table.refuse("files", "has no file of role 'weights'")
    if manifest.task == "tensor" and not (manifest.inputs and manifest.outputs):
        table.refuse("inputs", "and 'outputs' are needed for the task 'tensor'")
    limits = manifest.limits
    if manifest.task in ("chat", "completion"):
        if not 1 <= limits.default_max_output <= limits.max_output <= limits.context:
            table.refuse("limits", "needs 1 <= default_max_output <= max_output <= context")
    elif limits.max_rows < 1:
        table.refuse("limits", "needs max_rows of at least 1")


def _quant(table: Table) -> str:
    quant = table.match("quant", _NAME)
    table.end()
    return quant


def _limits(table: Table) -> Limits:
    limits = Limits(*(table.whole(name, MAX_COUNT, 0) for name in Limits.__slots__))
    table.end()
    return limits


def _tensor(table: Table) -> Tensor:
    name = table.match("name", _TENSOR_NAME)
    datatype = table.choice("datatype", DATATYPES)
    shape = table.items("shape", 8)
    if not shape:
        table.refuse("shape", "must have at least one dimension")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not (size == -1 or size > 0):
            table.refuse("shape", "must hold whole numbers above zero, or -1 for any length")
    table.end()
    return Tensor(name, datatype, tuple(cast(list[int], shape)))


def _file(table: Table, engine: str) -> File:
    name = _path(table, "name")
    problem = format_problem(name, engine)
    if problem:
        table.refuse("name", problem)
    file = File(
        name=name,
        size=table.whole("size", MAX_FILE_BYTES, least=1),
        sha256=table.match("sha256", _SHA256),
        role=table.choice("role", ROLES, "weights"),
        sources=table.rows("sources", _source),
    )
    table.end()
    return file


def _source(table: Table) -> Source:
    kind = table.choice("kind", frozenset({"hub", "pypi", "npm", "bundled"}))
    source: Source
    if kind == "hub":
        source = HubSource(_url(table))
    elif kind == "bundled":
        source = BundledSource(_path(table, "path"))
    else:
        source = _package(table, cast(Literal["pypi", "npm"], kind))
    table.end()
    return source


def _package(table: Table, kind: Literal["pypi", "npm"]) -> PackageSource:
    package = table.text("package") if table.has("package") else None
    version = table.text("version") if table.has("version") else None
    joined = table.has("parts")
    rows = table.items("parts", 1000) if joined else [{"member": table.text("member")}]
    # A part is a member of the source's own package, or a table that names another package.
    tables = [{"member": row} if isinstance(row, str) else row for row in rows]
    parts = [_part(Table(row, table.where), kind, (package, version)) for row in tables]
    return PackageSource(kind, _by_number(table, parts) if joined else tuple(parts))


def _part(row: Table, kind: str, default: tuple[str | None, str | None]) -> Part:
    part = Part(
        package=row.match("package", _PACKAGE[kind], default[0]),
        version=row.match("version", _VERSION, default[1]),
        member=_path(row, "member"),
    )
    row.end()
    return part


def _by_number(table: Table, parts: list[Part]) -> tuple[Part, ...]:
    # In the order of strings part10 comes before part2, and such a file may even load.
    for names in ([part.member for part in parts], [part.package for part in parts]):
        found = [_NUMBER.findall(name) for name in names]
        numbers = [int(digits[-1]) for digits in found if digits]
        if parts and len(set(numbers)) == len(parts) == max(numbers) - min(numbers) + 1:
            return tuple(part for _, part in sorted(zip(numbers, parts, strict=True), key=_first))
    table.refuse("parts", "must be numbered in their members' or packages' names, without a gap")


def _first(pair: tuple[int, Part]) -> int:
    return pair[0]


def _path(table: Table, key: str) -> str:
    """A relative path with forward slashes that stays inside its folder."""
    value = table.text(key)
    steps = value.split("/")
    if any(step in ("", ".", "..") for step in steps) or "\\" in value or ":" in steps[0]:
        table.refuse(key, f"has the value {value!r}, which is not a plain relative path")
    if not value.isprintable():
        table.refuse(key, "has a character that cannot be printed")
    return value


def _url(table: Table) -> str:
    url = table.text("url")
    split = urlsplit(url)
    if split.scheme != "https" or not split.hostname or split.username or not url.isascii():
        table.refuse("url", "must be a plain https address without a user name")
    return url
