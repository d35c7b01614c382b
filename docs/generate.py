"""Writes the generated parts of the documentation: `python docs/generate.py [--check]`.

What the code knows (codes, keys, options, limits) comes from the code; what it cannot know (what to
do, why) comes from `texts.toml`. Each part lies between two markers of its page, and everything
outside them is left alone. A key without a text, or a text without a key, is an error.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import typer

from inferpool.cli.main import app
from inferpool.config import SECTIONS
from inferpool.protocol import limits
from inferpool.protocol.errors import CODES

DOCS: Final = Path(__file__).resolve().parent
REFERENCE: Final = DOCS / "reference"
LIMITS_FILE: Final = Path(limits.__file__)


def texts(section: str, keys: Iterator[str] | list[str]) -> Mapping[str, str]:
    """The hand-written texts of one section, one for each key."""
    found: dict[str, str] = tomllib.loads((DOCS / "texts.toml").read_text("utf-8"))[section]
    wanted = list(keys)
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    if missing or extra:
        raise SystemExit(
            f"docs/texts.toml [{section}]: no text for {missing or 'none'}, no use for"
            f" {extra or 'none'}"
        )
    return found


def cell(text: object) -> str:
    """A text as a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


# -- errors -------------------------------------------------------------------------------------


def errors() -> str:
    """Every error code, by status."""
    remedies = texts("errors", list(CODES))
    lines = ["| status | code | type | means | what to do |", "| --- | --- | --- | --- | --- |"]
    by_status = sorted(CODES.items(), key=lambda item: (item[1][0], item[0]))
    for code, (status, kind, means) in by_status:
        remedy = cell(remedies[code])
        lines.append(f"| {status} | `{code}` | `{kind}` | {cell(means)} | {remedy} |")
    return "\n".join(lines)


# -- configuration ------------------------------------------------------------------------------


def default_of(value: object) -> str:
    """A default as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def configuration_keys() -> dict[str, object]:
    """Every key with its default."""
    return {
        f"{section}.{item.name}": getattr(kind(), item.name)
        for section, kind in SECTIONS.items()
        for item in fields(kind)
    }


def configuration() -> str:
    """Every key, by section."""
    keys = configuration_keys()
    meanings = texts("configuration", list(keys))
    lines = []
    for section in SECTIONS:
        lines += [f"### `[{section}]`", "", "| key | default | environment | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for key, value in keys.items():
            if key.startswith(f"{section}."):
                variable = "INFERPOOL_" + key.replace(".", "_").upper()
                lines.append(
                    f"| `{key}` | `{default_of(value)}` | `{variable}` | {cell(meanings[key])} |"
                )
        lines.append("")
    return "\n".join(lines).rstrip()


# -- command line -------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of the help."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for part, child in getattr(command, "commands", {}).items():
            yield from below(f"{name} {part}", child)

    yield from below("inferpool", typer.main.get_command(app))


def command_help(name: str, command: Any) -> list[str]:
    """One command's section."""
    first, _, rest = (command.help or "").partition("\n\n")
    lines = [f"## `{name}`", "", " ".join(first.split())]
    if rest.strip():
        kept = [line.strip() for line in rest.strip().splitlines() if line.strip()]
        lines += ["", "```text", *kept, "```"]
    children = getattr(command, "commands", {})
    if children:
        lines += ["", "Commands: " + ", ".join(f"`{child}`" for child in sorted(children)) + "."]
    options = [item for item in command.params if not getattr(item, "hidden", False)]
    if options:
        lines += ["", "| option | default | meaning |", "| --- | --- | --- |"]
        lines += [_option(item) for item in options]
    return [*lines, ""]


def _option(item: Any) -> str:
    if item.param_type_name == "argument":
        name, default = f"`{item.name.upper()}`", ""
    else:
        name = ", ".join(f"`{part}`" for part in [*item.opts, *item.secondary_opts])
        default = "" if item.default in (None, False) else f"`{item.default}`"
    return f"| {name} | {default} | {cell(item.help or '')} |"


def cli() -> str:
    """Every command."""
    lines: list[str] = []
    for name, command in commands():
        lines += command_help(name, command)
    return "\n".join(lines).rstrip()


# -- limits -------------------------------------------------------------------------------------


def limit_values() -> dict[str, int | float]:
    """Every constant of `protocol/limits.py`, in its order."""
    tree = ast.parse(LIMITS_FILE.read_text("utf-8"))
    names = [
        node.target.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return {name: getattr(limits, name) for name in names}


_UNITS: Final = {"_MS": "ms", "_S": "s"}


def _unit(name: str) -> str:
    if name in ("BODY_CHAT_MAX", "BODY_TENSOR_MAX", "ANSWER_MAX", "PAYMENT_HEADER_MAX"):
        return "bytes"
    if name in ("OFFER_MAX", "RECEIPT_MAX", "TEXT_MAX"):
        return "bytes"
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def limit_table() -> str:
    """Every limit with its reason."""
    values = limit_values()
    reasons = texts("limits", list(values))
    lines = ["| limit | value | unit | why |", "| --- | --- | --- | --- |"]
    for name, value in values.items():
        lines.append(f"| `{name}` | {value:,} | {_unit(name)} | {cell(reasons[name])} |")
    return "\n".join(lines)


# -- pages --------------------------------------------------------------------------------------

PARTS: Final[dict[str, tuple[Path, Callable[[], str]]]] = {
    "errors": (REFERENCE / "errors.md", errors),
    "configuration": (REFERENCE / "configuration.md", configuration),
    "cli": (REFERENCE / "cli.md", cli),
    "limits": (REFERENCE / "limits.md", limit_table),
}


def page(name: str) -> tuple[Path, str, str]:
    """A page's path, what it holds, and what it should hold."""
    path, make = PARTS[name]
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    old = path.read_text("utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{path.name} needs one {begin} and one {end}")
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    return path, old, f"{before}{begin}\n\n{make()}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check` only say which are stale."""
    stale = 0
    for name in PARTS:
        path, old, new = page(name)
        if old == new:
            continue
        stale += 1
        if "--check" in arguments:
            sys.stderr.write(f"{path.name} is stale: run `python docs/generate.py`\n")
        else:
            path.write_text(new, "utf-8")
            sys.stdout.write(f"wrote {path.name}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
