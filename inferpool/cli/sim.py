"""`inferpool sim`: the network in one process, from one seed."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from inferpool.cli.console import ERR, OUT, AsJson, print_json

if TYPE_CHECKING:
    from inferpool.sim.world import Report

HELP = """Simulate a node, two gateways and their clients in virtual time, with faults.

Crashes, lost, late, repeated and cut messages are drawn from the seed; the money rules are checked
at each step. A failure prints its seed: the same seed fails again.

Examples:

  inferpool sim --seed 7

  inferpool sim --seed 7 --runs 100 --seconds 60"""


def sim(
    seed: Annotated[int, typer.Option(help="The first seed.")] = 1,
    runs: Annotated[int, typer.Option(help="How many worlds, one for each seed.")] = 1,
    seconds: Annotated[float, typer.Option(help="Virtual seconds of each.")] = 60.0,
    faults: Annotated[float, typer.Option(help="0: none, 1: as bad as it gets.")] = 1.0,
    reorgs: Annotated[bool, typer.Option(help="The chain takes blocks back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run worlds."""
    from inferpool.sim.world import Options, simulate

    reports = []
    for number in range(seed, seed + runs):
        begun = time.monotonic()
        try:
            report = simulate(Options(seed=number, seconds=seconds, faults=faults, reorgs=reorgs))
        except AssertionError as broken:
            ERR.print(f"[bold red]seed {number}[/]: {broken}")
            raise typer.Exit(1) from broken
        reports.append(_facts(number, report))
        if not as_json:
            OUT.print(
                f"seed {number}: {sum(report.outcomes.values())} requests,"
                f" {sum(report.crashes.values())} crashes, {report.checks} checks, digest"
                f" {report.digest}, {time.monotonic() - begun:.1f} s"
            )
    if as_json:
        print_json(reports)


def _facts(seed: int, report: Report) -> dict[str, object]:
    facts = {"seed": seed, **asdict(report)}
    return facts | {"outcomes": dict(report.outcomes), "crashes": dict(report.crashes)}
