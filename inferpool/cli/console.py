"""What commands share: the console, JSON output, configuration from flags, progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as Bars,
)

from inferpool.config import Config, load
from inferpool.home import Home
from inferpool.models.partial import OnProgress, Progress

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_json(value: object) -> None:
    """JSON on standard output, indented for people who look at it too."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def print_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns that never cut a value: an address is of no use without its end."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(map(str.ljust, row, widths)).rstrip()

    OUT.print(line(names), style="bold", markup=False)
    for row in cells:
        OUT.print(line(row), markup=False)


def settings(flags: Mapping[str, object] | None = None) -> tuple[Config, Home]:
    """The configuration with flags on top, and the home directory."""
    home = Home.of()
    return load(home.config, os.environ, flags), home


@contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """Bars for downloads; on a pipe one line for each file instead."""
    if not ERR.is_terminal:
        seen: set[str] = set()

        def line(progress: Progress) -> None:
            if progress.label not in seen:
                seen.add(progress.label)
                ERR.print(f"fetching {progress.label} ({progress.total_bytes / 1e6:.0f} MB)")

        yield line
        return
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    ]
    with Bars(*columns, console=ERR) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(progress: Progress) -> None:
            if progress.label not in tasks:
                tasks[progress.label] = bars.add_task(progress.label, total=progress.total_bytes)
            bars.update(tasks[progress.label], completed=progress.done_bytes)

        yield bar
