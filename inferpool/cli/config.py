"""`inferpool config`: every value with where it came from."""

from __future__ import annotations

import re
from dataclasses import fields

import typer

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.config import SECTIONS

app = typer.Typer(
    help="""Show the configuration: defaults, then the file, the environment, and flags.

Example:  inferpool config show""",
    no_args_is_help=True,
)


@app.callback()
def config() -> None:
    """A group, though it has one command so far."""


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Print each key, its value, and its origin.

    Example:  inferpool config show --json
    """
    found, home = settings()
    rows = [
        {
            "key": f"{section}.{item.name}",
            "value": _told(getattr(getattr(found, section), item.name)),
            "origin": found.origins[f"{section}.{item.name}"],
        }
        for section, kind in SECTIONS.items()
        for item in fields(kind)
    ]
    if as_json:
        print_json({"file": str(home.config), "values": rows})
        return
    missing = "" if home.config.exists() else " (not there: it is optional)"
    OUT.print(f"file: {home.config}{missing}\n", markup=False)
    print_table(
        ("key", "value", "origin"),
        [(row["key"], _shown(row["value"]), row["origin"]) for row in rows],
    )


def _told(value: object) -> object:
    """A value without the password that a URL may hold."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", value) if isinstance(value, str) else value


def _shown(value: object) -> str:
    """A value as it is written in the file."""
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'
