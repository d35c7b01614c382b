"""`inferpool channels` and `inferpool claim`: money in channels, and its ways out."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.cli.owner import ask_gateway, ask_node
from inferpool.config import Config
from inferpool.home import Home
from inferpool.protocol.errors import BadRequest, Refused
from inferpool.protocol.units import (
    base_units_down,
    format_usd,
    parse_usd,
    pico_usd_per_base_unit,
)

app = typer.Typer(
    help="""Show the channels of this machine, as payer and as payee, and move money out of them.

Deposited, claimed and unclaimed are the chain's and the books'; at risk is, for a payer, what is
signed above what was charged, and for a payee what a withdrawal could take before the next claim.

Examples:

  inferpool channels

  inferpool channels --json

  inferpool channels release""",
    invoke_without_command=True,
)
CLAIM_HELP = """Claim on chain what the node of this machine has earned, and settle it to its owner;
the same for its gateway, where that sells by x402.

Works whether they run or not. Examples:

  inferpool claim

  inferpool claim --json"""

_MOVE_S = 300.0  # a transaction, and the blocks on top of it
_DAY_S = 86_400
_PREFIX_LEAST = 6

Found = list[dict[str, Any]]
ChannelId = Annotated[str, typer.Argument(help="Its id, or the first hex digits of it.")]


@app.callback()
def channels(context: typer.Context, as_json: AsJson = False) -> None:
    """List."""
    if context.invoked_subcommand is None:
        config, home = settings()
        _show(_listed(config, home), config, as_json)


@app.command("withdraw")
def withdraw(
    channel: ChannelId,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask the node to pay it back at once, without the delay.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a payer's way out: all that is not claimed comes back after the channel's delay.

    Example:  inferpool channels withdraw 0x5f1c90
    """
    _move("withdraw", channel, as_json, ask=ask)


@app.command("finalize")
def finalize(channel: ChannelId, as_json: AsJson = False) -> None:
    """End a payer's way out, once the delay is over.

    Example:  inferpool channels finalize 0x5f1c90
    """
    _move("finalize", channel, as_json)


@app.command("release")
def release(
    idle_days: Annotated[
        float | None,
        typer.Option(help="Unused for so many days; else `gateway.idle_release_s`.", min=0),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start the way out of all channels that are no longer used, and end what is ready.

    Example:  inferpool channels release --idle-days 2
    """
    config, home = settings()
    idle_s = config.gateway.idle_release_s if idle_days is None else int(idle_days * _DAY_S)
    if home.running("gateway"):
        moved = ask_gateway(home, "POST", "release", {"idle_s": idle_s}, timeout_s=_MOVE_S)
        _show(moved["channels"], config, as_json)
        return

    async def offline() -> Found:
        from inferpool.daemon.books import payer_book

        async with payer_book(config, home) as (capital, _):
            return [item.to_wire() for item in await capital.release(idle_s)]

    _show(asyncio.run(offline()), config, as_json)


@app.command("refund")
def refund(
    channel: ChannelId,
    usd: Annotated[str | None, typer.Option(help="So much of it, such as 0.50; else all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give a payer back at once what is left in its channel with the node of this machine.

    Example:  inferpool channels refund 0x5f1c90 --usd 0.50
    """
    config, home = settings()
    amount = None if usd is None else base_units(usd, config)
    listed = _listed(config, home)
    found = _find(channel, "payee", listed)
    mine = [item for item in listed if item["side"] == "payee" and item["channel"] == found]
    role = mine[0]["role"]
    if home.running(role):
        body = {"channel": found, "base_units": amount}
        ask = ask_node if role == "node" else ask_gateway
        moved = ask(home, "POST", "refund", body, timeout_s=_MOVE_S)
        _show(moved["channels"], config, as_json)
        return

    async def offline() -> Found:
        from inferpool.daemon.books import payee_book

        async with payee_book(config, home, role) as (standing, _):
            return [(await standing.refund(bytes.fromhex(found[2:]), amount)).to_wire()]

    _show(asyncio.run(offline()), config, as_json)


def claim(as_json: AsJson = False) -> None:
    """Claim and settle, for the node, and for the gateway where it sells by x402."""
    from inferpool.daemon.books import sells

    config, home = settings()
    roles = ["node"] if home.running("node") or home.ledger("node").exists() else []
    roles += ["gateway"] if sells(home) else []
    reports = {role: _claimed(config, home, role) for role in roles or ["node"]}
    if as_json:
        print_json({**reports.get("node", {}), **_others(reports)})
        return
    for role, report in reports.items():
        _tell(role, report, config)


def _others(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {role: report for role, report in reports.items() if role != "node"}


def _claimed(config: Config, home: Home, role: str) -> dict[str, Any]:
    from inferpool.cli.node import claim_now

    if home.running(role) and role == "node":
        return claim_now(home)
    if home.running(role):
        return ask_gateway(home, "POST", "claim", timeout_s=_MOVE_S)

    async def offline() -> dict[str, Any]:
        from inferpool.daemon.books import payee_book

        async with payee_book(config, home, role) as (_, claimer):
            return (await claimer.claim()).to_wire()

    return asyncio.run(offline())


def _tell(role: str, report: dict[str, Any], config: Config) -> None:
    whose = "" if role == "node" else f"{role}: "
    claimed = usd_of(int(report["claimed_base_units"]), config)
    OUT.print(
        f"{whose}claimed {claimed} from {report['channels']}"
        f" channels, settled {usd_of(int(report['settled_base_units']), config)};"
        f" {report['gas_used']} gas, {report['fee_wei']} wei",
        markup=False,
    )
    for name in report["left_out"]:
        OUT.print(f"left out, the chain refuses it: {name}", markup=False)


def _move(action: str, channel: str, as_json: bool, *, ask: bool = False) -> None:
    config, home = settings()
    found = _find(channel, "payer", _listed(config, home))
    if home.running("gateway"):
        body = {"channel": found, "ask": ask}
        moved = ask_gateway(home, "POST", action, body, timeout_s=_MOVE_S)
        _show(moved["channels"], config, as_json)
        return

    if ask:
        raise Refused("Only a running gateway can ask its nodes; start it, or leave --ask out.")

    async def offline() -> Found:
        from inferpool.daemon.books import payer_book

        async with payer_book(config, home) as (capital, _):
            move = capital.withdraw if action == "withdraw" else capital.finalize
            return [(await move(bytes.fromhex(found[2:]))).to_wire()]

    _show(asyncio.run(offline()), config, as_json)


def _listed(config: Config, home: Home) -> Found:
    """Both sides, from the role where it runs, else from its book. A gateway that sells by x402 is
    payee too."""
    from inferpool.daemon.books import sells

    found: Found = []
    for role, ask in (("gateway", ask_gateway), ("node", ask_node)):
        listed: Found = []
        if home.running(role):
            listed = ask(home, "GET", "channels", timeout_s=_MOVE_S)["channels"]
        elif home.ledger(role).exists():
            listed = asyncio.run(_payer(config, home)) if role == "gateway" else []
            if role == "node" or sells(home):
                listed += asyncio.run(_payee(config, home, role))
        found += [{**item, "role": role} for item in listed]
    return found


async def _payer(config: Config, home: Home) -> Found:
    from inferpool.daemon.books import payer_book

    async with payer_book(config, home) as (capital, _):
        return [item.to_wire() for item in await capital.look()]


async def _payee(config: Config, home: Home, role: str) -> Found:
    from inferpool.daemon.books import payee_book

    async with payee_book(config, home, role) as (standing, _):
        return [item.to_wire() for item in await standing.look()]


def _find(prefix: str, side: str, found: Found) -> str:
    """The one channel of a side whose id begins so. Raises BadRequest."""
    wanted = prefix.lower().removeprefix("0x")
    ids = [str(item["channel"]) for item in found if item["side"] == side]
    matching = [item for item in ids if item[2:].startswith(wanted)]
    if len(wanted) < _PREFIX_LEAST or len(matching) != 1:
        raise BadRequest(
            f"{len(matching)} channels of this machine as {side} begin with {prefix};"
            f" give one's id, {_PREFIX_LEAST} digits of it at least.",
            code="not_found",
        )
    return matching[0]


def _show(found: Found, config: Config, as_json: bool) -> None:
    if as_json:
        print_json({"channels": found})
        return
    if not found:
        OUT.print("no channels")
        return
    print_table(
        ("side", "channel", "deposited", "claimed", "unclaimed", "at risk", "free", "way out"),
        [
            (
                item["side"],
                item["channel"],
                *(
                    usd_of(item[f"{name}_base_units"], config)
                    for name in ("deposited", "claimed", "unclaimed", "at_risk", "free")
                ),
                _way_out(item, config),
            )
            for item in found
        ],
    )
    rest = sum(item["free_base_units"] for item in found if item["side"] == "payer")
    OUT.print(f"\nat rest with nodes: {usd_of(rest, config)}", markup=False)


def _way_out(item: dict[str, Any], config: Config) -> str:
    if item["way_back"] == "none":
        return "-"
    return f"{item['way_back']}: {usd_of(item['way_back_base_units'], config)}"


def usd_of(units: int, config: Config) -> str:
    """Base units of the configured token, as people read them."""
    return format_usd(units * pico_usd_per_base_unit(config.chain.asset_decimals))


def base_units(usd: str, config: Config) -> int:
    """Base units of an amount in USD. Raises BadRequest for one that the token cannot express."""
    try:
        pico_usd = parse_usd(usd)
    except ValueError as error:
        raise BadRequest(f"{error}.") from None
    units = base_units_down(pico_usd, config.chain.asset_decimals)
    if units < 1 or units * pico_usd_per_base_unit(config.chain.asset_decimals) != pico_usd:
        raise Refused(f"{usd} USD is no whole number of the token's base units.")
    return units
