"""`inferpool explain`: why a request went where it went."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.cli.owner import opened
from inferpool.home import Home
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.units import format_usd

HELP = """Show why a request went where it went: every candidate, its expected cost in USD factor by
factor, and what became of each attempt. The id is the answer's header x-request-id.

Examples:

  inferpool explain req_5cbf3d1a4d8a29a67ee2e3d8

  inferpool explain req_5cbf3d1a4d8a29a67ee2e3d8 --json"""

_ANSWER_MAX = 1 << 22
_FACTORS = ("cost", "price", "time", "risk", "trust", "maximum")


def explain(
    request_id: Annotated[str, typer.Argument(help="The answer's header x-request-id.")],
    as_json: AsJson = False,
) -> None:
    """Print a request's choices and attempts."""
    found = explained(settings()[1], request_id)
    if as_json:
        print_json(found)
        return
    for choice in found["choices"]:
        _print_choice(choice)
    rows = [
        (
            item["node"],
            item["state"],
            item["first_ms"] - item["started_ms"] if item["first_ms"] else None,
            item["ended_ms"] - item["started_ms"] if item["ended_ms"] else None,
            format_usd(item["charge_pico_usd"]),
            format_usd(item["billed_pico_usd"]),
            item["error_code"] or None,
        )
        for item in found["attempts"]
    ]
    OUT.print("\n[bold]attempts[/]" + ("" if rows else ": none is on disk"))
    if rows:
        names = ("node", "state", "first ms", "whole ms", "charged", "billed", "error")
        print_table(names, rows)


def explained(home: Home, request_id: str) -> dict[str, Any]:
    """What the running gateway knows of a request. Raises Unavailable, BadRequest(not_found)."""
    running = home.running("gateway")
    if running is None:
        raise Unavailable("No gateway runs on this machine; start one with `inferpool gateway`.")
    request = urllib.request.Request(  # noqa: S310 - the gateway's own loopback URL
        f"{running['url']}/inferpool/routes/{urllib.parse.quote(request_id, safe='')}",
        headers={"Authorization": f"Bearer {home.secret('control-token')}"},
    )
    try:
        with opened(running, request, 10) as response:
            found: dict[str, Any] = orjson.loads(response.read(_ANSWER_MAX))
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise Unavailable(f"The gateway answered {error.code}.") from None
        raise BadRequest(
            f"The gateway keeps no choice for {request_id!r}: the id is wrong, or too old.",
            code="not_found",
        ) from None
    except urllib.error.URLError as error:
        raise Unavailable(f"The gateway does not answer: {error}") from None
    return found


def _print_choice(choice: dict[str, Any]) -> None:
    hour = choice["value_of_time_pico_usd_per_s"] * 3600
    worth = format_usd(round(hour, -8))  # to a hundredth of a cent
    OUT.print(
        f"[bold]{escape(choice['model'])}[/], {choice['task']}: about {choice['units_in']} units in"
        f" and {choice['units_out']} out, an hour worth {worth}; {choice['offers']} offers"
    )
    print_table(
        ("node", *_FACTORS, "first ms", "whole ms", "warm", "busy", "why"),
        [
            (
                item["node"],
                *(format_usd(item[f"{name}_pico_usd"]) for name in _FACTORS),
                item["first_ms"],
                item["whole_ms"],
                item["warm_units"],
                item["in_flight"],
                f"not first: {item['why']}" if item["why"] else f"first: {item['how']}",
            )
            for item in choice["candidates"]
        ],
    )
    if choice["passed"]:
        passed = ", ".join(f"{why} {count}" for why, count in sorted(choice["passed"].items()))
        OUT.print(f"passed by: {escape(passed)}")
