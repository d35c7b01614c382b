"""`inferpool relay`: a forwarder for nodes that nobody can dial."""

from __future__ import annotations

from typing import Annotated

import typer

from inferpool.cli.console import settings

HELP = """Run a relay: nodes behind a router wait at it, and gateways reach them through it.

It forwards TLS that it cannot read, holds no money and needs no trust.

Examples:

  inferpool relay --host 203.0.113.7

  inferpool node --relay 203.0.113.7:8424   (on the machine behind the router)"""


def relay(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Address of a node key that may wait; repeat for more.")
    ] = None,
) -> None:
    """Serve until Ctrl-C."""
    from inferpool.daemon.roles import serve

    config, home = settings({"relay.host": host, "relay.port": port, "relay.allow": allow or None})
    serve("relay", config, home)
