"""`inferpool status`: what runs here, and what it did."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import orjson
from rich.table import Table

from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.daemon.pool import ROLES
from inferpool.home import Home
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.units import format_usd

HELP = """Show the roles that run on this machine, the gateway's nodes, channels and last attempts.

Examples:

  inferpool status

  inferpool status --json"""

_SHOWN = 10


def status(as_json: AsJson = False) -> None:
    """Print the state."""
    home = settings()[1]
    roles = {role: home.running(role) for role in ROLES}
    book = gateway_status(home) if roles["gateway"] else None
    if as_json:
        print_json({"roles": roles, "gateway": book})
        return
    for role, facts in roles.items():
        OUT.print(f"{role:8} {facts['url'] if facts else 'not running'}")
    if book is not None:
        _print_book(book)


def gateway_status(home: Home) -> dict[str, Any]:
    """What the running gateway tells its operator. Raises Unavailable."""
    running = home.running("gateway")
    if running is None:
        raise Unavailable("No gateway runs on this machine; start one with `inferpool gateway`.")
    request = urllib.request.Request(  # noqa: S310 - the gateway's own loopback URL
        f"{running['url']}/inferpool/status",
        headers={"Authorization": f"Bearer {home.secret('control-token')}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            found: dict[str, Any] = orjson.loads(response.read(1 << 24))
    except urllib.error.URLError as error:
        raise Unavailable(f"The gateway does not answer: {error}") from None
    return found


def _print_book(book: dict[str, Any]) -> None:
    nodes = Table("node", "alive", "models", "in flight", title="nodes")
    for item in book["nodes"]:
        nodes.add_row(
            item["node"], str(item["alive"]), ", ".join(item["models"]), str(item["in_flight"])
        )
    OUT.print(nodes)
    channels = Table("channel", "deposited", "charged", "in flight", "receipts", title="channels")
    for item in book["channels"]:
        channels.add_row(
            item["channel"][:18],
            str(item["balance_base_units"]),
            format_usd(item["charged_pico_usd"]),
            str(item["held_base_units"]),
            str(item["receipts"]),
        )
    OUT.print(channels)
    attempts = Table(
        "request", "model", "state", "units in", "out", "charge", title="last attempts"
    )
    for item in book["attempts"][:_SHOWN]:
        attempts.add_row(
            item["client_request_id"],
            item["model"],
            item["state"],
            str(item["prompt_units"]),
            str(item["output_units"]),
            format_usd(item["charge_pico_usd"]),
        )
    OUT.print(attempts)
