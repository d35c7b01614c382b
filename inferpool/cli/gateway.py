"""`inferpool gateway`: the consumer's door alone."""

from __future__ import annotations

from typing import Annotated

import typer

from inferpool.cli.console import settings

HELP = """Run a gateway: OpenAI's API and the Open Inference Protocol before the whole pool.

Examples:

  inferpool gateway

  inferpool gateway --chain https://rpc.example --port 9000

  inferpool gateway --x402   (callers without a key pay for each request)

  inferpool gateway --node http://127.0.0.1:8421   (beside those of the registry)

  inferpool gateway --workers 4 --db postgresql://inferpool@db.example/inferpool"""


def gateway(
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    relay_port: Annotated[
        int | None, typer.Option(help="Port for nodes that dial out to this gateway; 0: none.")
    ] = None,
    open_: Annotated[
        bool | None, typer.Option("--open", help="Let callers on this machine in without a key.")
    ] = None,
    x402: Annotated[
        bool | None,
        typer.Option("--x402", help="Sell to callers without a key, who pay by x402."),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="URL of a node to use; repeat for more.")
    ] = None,
    chain: Annotated[str | None, typer.Option(help="JSON-RPC URL of the chain.")] = None,
    db: Annotated[
        str | None,
        typer.Option(help="URL of a PostgreSQL database, for gateways that share their book."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes behind the port.")] = None,
) -> None:
    """Serve until Ctrl-C."""
    from inferpool.daemon.roles import serve

    flags = {
        "gateway.port": port,
        "gateway.relay_port": relay_port,
        "gateway.open": open_,
        "gateway.x402": x402,
        "gateway.nodes": node or None,
        "gateway.db": db,
        "gateway.workers": workers,
        "chain.url": chain,
    }
    config, home = settings(flags)
    serve("gateway", config, home)
