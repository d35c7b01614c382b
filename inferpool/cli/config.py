"""`inferpool config`: every value with where it came from."""

from __future__ import annotations

from dataclasses import fields

import typer
from rich.table import Table

from inferpool.cli.console import OUT, AsJson, print_json, settings
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
    """Print each key, its value, and its origin."""
    found, home = settings()
    rows = [
        {
            "key": f"{section}.{item.name}",
            "value": getattr(getattr(found, section), item.name),
            "origin": found.origins[f"{section}.{item.name}"],
        }
        for section, kind in SECTIONS.items()
        for item in fields(kind)
    ]
    if as_json:
        print_json({"file": str(home.config), "values": rows})
        return
    table = Table("key", "value", "origin", title=f"file: {home.config}")
    for row in rows:
        table.add_row(str(row["key"]), str(row["value"]), str(row["origin"]))
    OUT.print(table)
