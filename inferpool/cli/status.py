"""`inferpool status`: what runs here, and what it did."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import orjson

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.cli.owner import opened
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
        with opened(running, request, 10) as response:
            found: dict[str, Any] = orjson.loads(response.read(1 << 24))
    except urllib.error.URLError as error:
        raise Unavailable(f"The gateway does not answer: {error}") from None
    return found


def _print_book(book: dict[str, Any]) -> None:
    _section(
        "nodes",
        ("node", "alive", "in flight", "models"),
        [
            (
                item["node"],
                "yes" if item["alive"] else "no",
                item["in_flight"],
                ", ".join(item["models"]),
            )
            for item in book["nodes"]
        ],
    )
    _section(
        "channels",
        ("channel", "deposited", "charged", "in flight", "receipts"),
        [
            (
                f"{item['channel'][:18]}...",
                format_usd(item["balance_base_units"] * 10**6),
                format_usd(item["charged_pico_usd"]),
                format_usd(item["held_base_units"] * 10**6),
                item["receipts"],
            )
            for item in book["channels"]
        ],
    )
    _section(
        "last attempts",
        ("request", "model", "state", "units in", "out", "charge"),
        [
            (
                item["client_request_id"] or "(of an earlier run)",
                item["model"] or "-",
                item["state"],
                item["prompt_units"],
                item["output_units"],
                format_usd(item["charge_pico_usd"]),
            )
            for item in book["attempts"][:_SHOWN]
        ],
    )


def _section(title: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    OUT.print(f"\n[bold]{title}[/]" + ("" if rows else ": none yet"))
    if rows:
        print_table(names, rows)
