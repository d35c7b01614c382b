"""`inferpool node doctor`: what would stop this machine from earning, worst first."""

from __future__ import annotations

import asyncio

import typer

from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.cli.owner import ask_node
from inferpool.protocol.errors import InferpoolError

HELP = """Look for what would stop this machine from earning, worst first, each with its mend.

Exit code 1 where something stops it.

Examples:

  inferpool node doctor

  inferpool node doctor --json"""

_MARKS = {"stops": "[bold red]stops[/]", "costs": "[yellow]costs[/]", "note": "[dim]note[/] "}


def doctor(as_json: AsJson = False) -> None:
    """Examine, judge, print."""
    from inferpool.daemon.checkup import examine
    from inferpool.node.doctor import Severity, diagnose

    config, home = settings()
    status = None
    if home.running("node") is not None:
        try:
            status = ask_node(home, "GET", "status")
        except InferpoolError as error:
            OUT.print(f"[red]{error.message}[/]")
    facts = asyncio.run(examine(config, home, status))
    findings = diagnose(facts)
    if as_json:
        print_json(
            {
                "findings": [item.to_wire() for item in findings],
                "hardware": facts.hardware.to_wire(),
            }
        )
    else:
        for item in findings:
            OUT.print(f"{_MARKS[item.severity.name.lower()]}  {item.what}")
            OUT.print(f"       [dim]mend:[/] {item.mend}")
        if not findings:
            OUT.print("[green]Nothing stops this machine from earning.[/]")
    if any(item.severity is Severity.STOPS for item in findings):
        raise typer.Exit(1)
