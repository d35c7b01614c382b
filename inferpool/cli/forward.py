"""`inferpool forward`: a local port that leads to a node behind a relay."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = """Open a port on this machine that leads to one node behind a relay.

For clients that dial addresses, HTTP and gRPC alike; gateways need no such port. The node's key is
checked by its signed offer before anything is sent.

Examples:

  inferpool forward relay://203.0.113.7:8424/0x1111111111111111111111111111111111111111

  curl http://127.0.0.1:8426/v2"""


def forward(
    url: Annotated[str, typer.Argument(help="relay://HOST:PORT/0xNODE, as an offer names it.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8426,
) -> None:
    """Serve until Ctrl-C."""
    from inferpool.daemon.forward import serve_forward
    from inferpool.daemon.serving import run

    run(lambda: serve_forward(url, port))
