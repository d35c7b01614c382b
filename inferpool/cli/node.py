"""`inferpool node`: this machine as a provider."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Annotated, Any

import orjson
import typer

from inferpool.cli import doctor, earnings, join, node_set, node_status
from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.cli.owner import opened
from inferpool.cli.up import pull_models
from inferpool.home import Home
from inferpool.protocol.errors import Unavailable

app = typer.Typer(
    help="""Sell this machine's work: load models, sign offers, serve, get paid.

Examples:

  inferpool node

  inferpool node --model smollm2-135m-instruct --price-out 0.40

  inferpool node --set hours=20:00-08:00 --set memory_max_mb=4000

  inferpool node claim""",
    invoke_without_command=True,
)


@app.callback()
def node(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve; repeat for more.")
    ] = None,
    price_in: Annotated[
        str | None, typer.Option(help="USD per million tokens in, such as 0.15.")
    ] = None,
    price_out: Annotated[
        str | None, typer.Option(help="USD per million tokens out, such as 0.60.")
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT of a relay to wait at, where nobody can dial this machine."),
    ] = None,
    chain: Annotated[str | None, typer.Option(help="JSON-RPC URL of the chain.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A key of the node, as KEY=VALUE, for this run; repeat for more."
        ),
    ] = None,
) -> None:
    """Serve until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from inferpool.daemon.roles import serve

    flags = {
        "node.port": port,
        "node.models": model or None,
        "node.relays": relay or None,
        "node.price_in_usd_per_million": price_in,
        "node.price_out_usd_per_million": price_out,
        "chain.url": chain,
        **node_set.flags_of(more or []),
    }
    config, home = settings(flags)
    pull_models(config)
    serve("node", config, home)


app.command("join", help=join.HELP)(join.join)
app.command("doctor", help=doctor.HELP)(doctor.doctor)
app.command("status", help=node_status.STATUS_HELP)(node_status.status)
app.command("drain", help=node_status.DRAIN_HELP)(node_status.drain)
app.command("resume", help=node_status.RESUME_HELP)(node_status.resume)
app.command("set", help=node_set.SET_HELP)(node_set.change)
app.command("withhold", help=node_set.WITHHOLD_HELP)(node_set.withhold)
app.command("serve", help=node_set.SERVE_HELP)(node_set.serve)
app.command("price", help=node_status.PRICE_HELP)(node_status.price)
app.command("earnings", help=earnings.HELP)(earnings.earnings)


@app.command("claim")
def claim(as_json: AsJson = False) -> None:
    """Claim and settle on chain now what the running node has earned.

    Example:  inferpool node claim --json
    """
    report = claim_now(settings()[1])
    if as_json:
        print_json(report)
        return
    OUT.print(
        f"claimed {report['claimed_base_units']} base units from {report['channels']} channels,"
        f" {report['gas_used']} gas"
    )


def claim_now(home: Home) -> dict[str, Any]:
    """Ask the running node to claim. Raises Unavailable where none runs."""
    running = home.running("node")
    if running is None:
        raise Unavailable("No node runs on this machine; start one with `inferpool node`.")
    request = urllib.request.Request(  # noqa: S310 - the node's own loopback URL
        f"{running['url']}/inferpool/control/claim",
        data=b"",
        headers={"Authorization": f"Bearer {home.secret('control-token')}"},
    )
    try:
        with opened(running, request, 120) as response:
            report: dict[str, Any] = orjson.loads(response.read(1 << 20))
    except urllib.error.URLError as error:
        raise Unavailable(f"The node could not claim: {error}") from None
    return report
