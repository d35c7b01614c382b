"""`inferpool`: every command, and how an error reaches a person."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from rich.markup import escape

from inferpool import __version__
from inferpool.cli import (
    backup,
    chain,
    channels,
    config,
    demo,
    explain,
    forward,
    gateway,
    keys,
    models,
    node,
    recipe,
    relay,
    sim,
    status,
    up,
    usage,
    wallet,
)
from inferpool.cli.console import ERR
from inferpool.protocol.errors import InferpoolError

app = typer.Typer(
    name="inferpool",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: inferpool demo",
)
_START, _OFFER, _USE, _LOOK = "Start", "Offer work, be paid", "Keys, models, recipes", "Look, keep"
app.command("up", help=up.HELP, rich_help_panel=_START)(up.up)
app.command("demo", help=demo.HELP, rich_help_panel=_START)(demo.demo)
app.command("gateway", help=gateway.HELP, rich_help_panel=_START)(gateway.gateway)
app.command("relay", help=relay.HELP, rich_help_panel=_START)(relay.relay)
app.command("forward", help=forward.HELP, rich_help_panel=_START)(forward.forward)
app.command("chain", help=chain.HELP, rich_help_panel=_START)(chain.chain)
app.add_typer(node.app, name="node", rich_help_panel=_OFFER)
app.add_typer(wallet.app, name="wallet", rich_help_panel=_OFFER)
app.add_typer(channels.app, name="channels", rich_help_panel=_OFFER)
app.command("claim", help=channels.CLAIM_HELP, rich_help_panel=_OFFER)(channels.claim)
app.add_typer(keys.app, name="keys", rich_help_panel=_USE)
app.add_typer(keys.teams, name="teams", rich_help_panel=_USE)
app.command("usage", help=usage.USAGE_HELP, rich_help_panel=_USE)(usage.usage)
app.command("quote", help=usage.QUOTE_HELP, rich_help_panel=_USE)(usage.quote)
app.add_typer(models.app, name="models", rich_help_panel=_USE)
app.command("recipes", help=recipe.HELP, rich_help_panel=_USE)(recipe.recipes)
app.add_typer(recipe.app, name="recipe", rich_help_panel=_USE)
app.command("status", help=status.HELP, rich_help_panel=_LOOK)(status.status)
app.command("explain", help=explain.HELP, rich_help_panel=_LOOK)(explain.explain)
app.add_typer(config.app, name="config", rich_help_panel=_LOOK)
app.command("backup", help=backup.BACKUP_HELP, rich_help_panel=_LOOK)(backup.backup)
app.command("restore", help=backup.RESTORE_HELP, rich_help_panel=_LOOK)(backup.restore)
app.command("sim", help=sim.HELP, rich_help_panel=_LOOK)(sim.sim)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """An open pool of machines for AI inference: metered, checked and paid per answer."""


def main() -> None:
    """Run; an error of ours is one line that says what to do, not a traceback."""
    # Before numpy is loaded, and for every process below this one; see inferpool.daemon.__main__.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(level=os.environ.get("INFERPOOL_LOG", "WARNING"), stream=sys.stderr)
    try:
        app(prog_name="inferpool")
    except InferpoolError as error:
        ERR.print(f"[bold red]error[/]: {escape(error.message)} [dim]({error.code})[/]")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
