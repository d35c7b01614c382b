"""`inferpool node status`, `drain`, `resume`, `price`: the owner and the running node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.cli.owner import ask_node
from inferpool.protocol.units import format_usd

if TYPE_CHECKING:
    from rich.console import RenderableType

STATUS_HELP = """Show what this node serves, runs and earned, and why no work came.

Live until Ctrl-C; once where the output is no terminal.

Examples:

  inferpool node status

  inferpool node status --once

  inferpool node status --json"""

DRAIN_HELP = """Offer nothing and finish what runs. `inferpool node resume` goes on.

Examples:

  inferpool node drain

  inferpool node drain --minutes 60 --why maintenance"""

RESUME_HELP = """Offer again after a drain.

Example:  inferpool node resume"""

PRICE_HELP = """Ask another price from now on; offers that are out keep theirs for ten minutes.

Example:  inferpool node price smollm2-135m-instruct --in 0.10 --out 0.40"""

_REFRESH_S = 1.0
_SHOWN = 5


def status(
    once: Annotated[bool, typer.Option("--once", help="Print it once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the state, or show it live."""
    home = settings()[1]
    if as_json:
        print_json(ask_node(home, "GET", "status"))
        return
    if once or not OUT.is_terminal:
        OUT.print(view(ask_node(home, "GET", "status")))
        return
    from rich.live import Live

    with Live(view(ask_node(home, "GET", "status")), console=OUT, auto_refresh=False) as live:
        while True:
            time.sleep(_REFRESH_S)
            live.update(view(ask_node(home, "GET", "status")), refresh=True)


def drain(
    minutes: Annotated[int, typer.Option(help="Go on by itself after so many; 0: when told.")] = 0,
    why: Annotated[str, typer.Option(help="A word for yourself, such as maintenance.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask the node to drain."""
    act("drain", {"minutes": minutes, "why": why}, as_json)


def resume(as_json: AsJson = False) -> None:
    """Ask the node to go on."""
    act("resume", None, as_json)


def price(
    model: Annotated[str, typer.Argument(help="A model that is served.")],
    price_in: Annotated[
        str | None, typer.Option("--in", help="USD per million tokens in, or rows.")
    ] = None,
    price_out: Annotated[str | None, typer.Option("--out", help="USD per million out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the node to change its price."""
    body = {"price_in_usd_per_million": price_in, "price_out_usd_per_million": price_out}
    given = {name: value for name, value in body.items() if value is not None}
    act("prices", {"model": model, **given}, as_json)


def act(action: str, body: object, as_json: bool, *, timeout_s: float = 10) -> None:
    """Do it, and show what is then."""
    state = ask_node(settings()[1], "POST", action, body, timeout_s=timeout_s)
    if as_json:
        print_json(state)
    else:
        OUT.print(view(state))


def view(state: dict[str, Any]) -> RenderableType:
    """The state for people."""
    from rich.console import Group
    from rich.text import Text

    reason = f" ({state['reason']})" if state["reason"] else ""
    head = (
        f"node {state['node']}\n{state['state']}{reason}, {state['running']} running,"
        f" {state['memory_bytes'] / 1e6:.0f} MB of memory\n"
        f"earned {format_usd(state['earned_pico_usd'])} with {state['receipts']} receipts from"
        f" {state['payers']} payer{'s' * (state['payers'] != 1)},"
        f" {state['unclaimed_base_units']} base units unclaimed"
    )
    lease = state["lease"]
    lines = [
        head,
        f"lease: {lease['freeSlots']} free slots, {lease['expectedWaitMs']} ms wait,"
        f" first unit {lease['firstUnitMs']} ms, {lease['unitUs']} us each\n",
    ]
    lines += [_model(item) for item in state["models"]]
    lines += ["", *(_gateway(url, told) for url, told in state["gateways"].items())]
    if not state["gateways"]:
        lines.append("no gateway is named, so that none tells why it chose others: node.gateways")
    if state["refused"]:
        counts = sorted(state["refused"].items(), key=lambda item: -item[1])
        lines.append("refused here: " + ", ".join(f"{count} {code}" for code, count in counts))
    for item in state["latest"][:_SHOWN]:
        lines.append(
            f"{item['payer']}  {item['model']}: {item['prompt_units']} in,"
            f" {item['output_units']} out, {format_usd(item['charge_pico_usd'])}, {item['outcome']}"
        )
    if not state["latest"]:
        lines.append("no work came yet")
    return Group(*(Text(line) for line in lines))


def _model(item: dict[str, Any]) -> str:
    how = "ready" if item["ready"] else "unloaded" if item["unloaded"] else "not ready"
    how = "out of memory for others" if item["cold"] else how
    how = "withheld" if item["withheld"] else how
    failure = "" if item["ready"] else item["last_failure"]
    failure = f"\n  not loaded: {failure}" if failure else ""
    memory = f", {item['memory_bytes'] / 1e6:.0f} MB" if item["memory_bytes"] else ""
    prices = [item["price_in_pico_usd_per_unit"], item["price_out_pico_usd_per_unit"]]
    asked = "/".join(format_usd(value * 10**6) for value in prices if value) or "free"
    pace = f", {1e6 / item['unit_us']:.1f} {item['unit']}s/s" if item["unit_us"] else ""
    return (
        f"{item['model']}: {how}, {item['running']} of {item['slots']} running,"
        f" {asked} per million {item['unit']}s{pace}{memory}{failure}"
    )


def _gateway(url: str, told: dict[str, Any]) -> str:
    if not told["accepted"]:
        return f"gateway {url}: {told['error']}"
    lost = ", ".join(f"{count} {why}" for why, count in sorted(told.get("lost", {}).items()))
    failed = ", ".join(f"{count} {why}" for why, count in sorted(told.get("failed", {}).items()))
    return (
        f"gateway {url}: {'reaches us' if told.get('alive') else 'cannot reach us'};"
        f" chosen {told.get('chosen', 0)} of {told.get('asked', 0)} times"
        + (f"; lost: {lost}" if lost else "")
        + (f"; failed: {failed}" if failed else "")
    )
