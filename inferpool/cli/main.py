"""`inferpool`: every command, and how an error reaches a person."""

from __future__ import annotations

import logging
import os
import sys

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
    help="An open pool of machines for AI inference: metered, checked and paid per answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: inferpool demo",
)
app.command("up", help=up.HELP)(up.up)
app.command("demo", help=demo.HELP)(demo.demo)
app.add_typer(node.app, name="node")
app.command("gateway", help=gateway.HELP)(gateway.gateway)
app.command("relay", help=relay.HELP)(relay.relay)
app.add_typer(keys.app, name="keys")
app.add_typer(keys.teams, name="teams")
app.command("usage", help=usage.USAGE_HELP)(usage.usage)
app.command("quote", help=usage.QUOTE_HELP)(usage.quote)
app.command("chain", help=chain.HELP)(chain.chain)
app.add_typer(models.app, name="models")
app.add_typer(wallet.app, name="wallet")
app.add_typer(channels.app, name="channels")
app.command("claim", help=channels.CLAIM_HELP)(channels.claim)
app.command("status", help=status.HELP)(status.status)
app.command("explain", help=explain.HELP)(explain.explain)
app.command("sim", help=sim.HELP)(sim.sim)
app.command("backup", help=backup.BACKUP_HELP)(backup.backup)
app.command("restore", help=backup.RESTORE_HELP)(backup.restore)
app.add_typer(config.app, name="config")
app.command("recipes", help=recipe.HELP)(recipe.recipes)
app.add_typer(recipe.app, name="recipe")


@app.command("version", help="Print the version.\n\nExample:  inferpool version")
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


def main() -> None:
    """Run; an error of ours is one line that says what to do, not a traceback."""
    logging.basicConfig(level=os.environ.get("INFERPOOL_LOG", "WARNING"), stream=sys.stderr)
    try:
        app()
    except InferpoolError as error:
        ERR.print(f"[bold red]error[/]: {escape(error.message)} [dim]({error.code})[/]")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
