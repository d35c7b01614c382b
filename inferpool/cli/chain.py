"""`inferpool chain`: the embedded development chain alone."""

from __future__ import annotations

from typing import Annotated

import typer

from inferpool.cli.console import settings

HELP = """Run the development chain: a real EVM with the contracts in place, and a faucet.

Its money is worth nothing. Other roles on this machine find it by themselves.

Example:  inferpool chain --port 8545"""


def chain(
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
) -> None:
    """Serve until Ctrl-C."""
    from inferpool.daemon.roles import serve

    config, home = settings({"chain.port": port})
    serve("chain", config, home)
