"""`inferpool wallet`: the keys of this machine, what they hold, stake, and new hot keys."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import typer

from inferpool.chain.client import EvmChain
from inferpool.cli.channels import base_units, usd_of
from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.config import Config
from inferpool.home import Home
from inferpool.identity.keys import Role
from inferpool.protocol.encoding import to_checksum
from inferpool.protocol.errors import BadRequest, InferpoolError, Refused
from inferpool.protocol.units import format_usd, pico_usd_per_base_unit

app = typer.Typer(
    help="""Show the keys of this machine: role, address, gas and token balance; move stake.

Secrets never leave their files. Examples:

  inferpool wallet

  inferpool wallet --json

  inferpool wallet stake 5""",
    invoke_without_command=True,
)


@app.callback()
def wallet(context: typer.Context, as_json: AsJson = False) -> None:
    """Print the keys."""
    if context.invoked_subcommand is not None:
        return
    config, home = settings()
    rows = asyncio.run(_rows(config, home))
    if as_json:
        print_json(rows)
        return
    if not rows:
        OUT.print("No keys yet; `inferpool up` makes them.")
        return
    print_table(
        ("owner", "key", "address", "gas", "tokens"),
        [(row["role"], row["key"], row["address"], _gas(row["wei"]), row["usd"]) for row in rows],
    )
    if rows[0]["usd"] is None:
        OUT.print("\nNo chain runs, so balances are not known; `inferpool up` starts one.")
    else:
        OUT.print(
            f"\nGas in whole coins of the chain, tokens in {config.chain.asset_name};"
            " --json has wei and base units.",
            markup=False,
        )


Amount = Annotated[str, typer.Argument(help="USD, such as 5 or 0.50.")]


@app.command("stake")
def stake(
    usd: Annotated[str | None, typer.Argument(help="USD to add; none: only show.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the owner has at stake, or add to it from the owner's tokens.

    Example:  inferpool wallet stake 5
    """
    config, home = settings()
    asyncio.run(_staked(config, home, None if usd is None else base_units(usd, config), as_json))


@app.command("unstake")
def unstake(usd: Amount, as_json: AsJson = False) -> None:
    """Start the way out of some stake: seven days, in which the court can still take of it.

    Example:  inferpool wallet unstake 5
    """
    config, home = settings()
    asyncio.run(_owner(config, home, "unstake", as_json, base_units(usd, config)))


@app.command("withdraw-stake")
def withdraw_stake(as_json: AsJson = False) -> None:
    """Take out the stake whose seven days are over.

    Example:  inferpool wallet withdraw-stake
    """
    config, home = settings()
    asyncio.run(_owner(config, home, "withdraw_stake", as_json))


@app.command("deregister")
def deregister(as_json: AsJson = False) -> None:
    """Take the node out of the registry; all its stake starts its way out.

    Example:  inferpool wallet deregister
    """
    config, home = settings()
    if home.running("node"):
        raise Refused("The node runs, and would register again at its next start; end it first.")
    asyncio.run(_owner(config, home, "deregister", as_json))


@app.command("rotate")
def rotate(
    side: Annotated[str, typer.Argument(help="node or gateway.")],
    key: Annotated[str, typer.Argument(help="node, payer_authorizer or gas.")],
    as_json: AsJson = False,
) -> None:
    """Replace a hot key while its role is down; what it earned or owes is brought in first.

    Example:  inferpool wallet rotate gateway payer_authorizer
    """
    from inferpool.daemon import rotation

    config, home = settings()
    if key not in list(Role):
        raise BadRequest(f"{key} is no key; keys are {', '.join(Role)}.")
    done = asyncio.run(rotation.rotate(config, home, side, Role(key)))
    if as_json:
        print_json(done)
        return
    for name, value in done.items():
        OUT.print(f"{name:18} {value}", markup=False)


async def _staked(config: Config, home: Home, units: int | None, as_json: bool) -> None:
    from inferpool.daemon.chains import asset_of

    chain = await _owners_chain(config, home)
    if units is not None:
        await chain.approve(asset_of(config.chain), chain.registry, units)
        await chain.add_stake(units)
    await _show_stake(chain, config, home, as_json)


async def _owner(
    config: Config,
    home: Home,
    action: Literal["unstake", "withdraw_stake", "deregister"],
    as_json: bool,
    *amount: int,
) -> None:
    """One transaction of the owner, and the stake after it."""
    chain = await _owners_chain(config, home)
    await getattr(chain, action)(*amount)
    await _show_stake(chain, config, home, as_json)


async def _owners_chain(config: Config, home: Home) -> EvmChain:
    from inferpool.daemon.chains import open_chain

    keys = home.keys("node")
    if not keys.path(Role.OWNER).exists():
        raise Refused("This machine has no owner key; `inferpool node join` makes one.")
    return await open_chain(config.chain, home, sender=keys.key(Role.OWNER))


async def _show_stake(chain: EvmChain, config: Config, home: Home, as_json: bool) -> None:
    owner = home.keys("node").key(Role.OWNER).address
    at_stake, unbonding, ready_at_s = await chain.stake(owner)
    registered = any(item.owner == owner for item in await chain.registrations())
    if as_json:
        print_json(
            {
                "owner": to_checksum(owner),
                "registered": registered,
                "stake_base_units": at_stake,
                "unbonding_base_units": unbonding,
                "ready_at_s": ready_at_s,
            }
        )
        return
    OUT.print(f"owner {to_checksum(owner)}, {'' if registered else 'not '}registered")
    OUT.print(f"at stake {usd_of(at_stake, config)}", markup=False)
    if unbonding:
        OUT.print(f"on its way out {usd_of(unbonding, config)}, ready at {ready_at_s} (UNIX s)")


def _gas(wei: object) -> str | None:
    """Whole coins, cut to six digits after the point."""
    if not isinstance(wei, int):
        return None
    whole, rest = divmod(wei, 10**18)
    return f"{whole}.{rest // 10**12:06d}".rstrip("0").rstrip(".")


async def _rows(config: Config, home: Home) -> list[dict[str, object]]:
    from inferpool.daemon.chains import asset_of, open_chain

    try:
        chain = await open_chain(config.chain, home)
    except InferpoolError:
        chain = None  # no chain runs: addresses are known without one
    rows: list[dict[str, object]] = []
    worth = pico_usd_per_base_unit(config.chain.asset_decimals)
    for role in ("node", "gateway"):
        for key, address in home.keys(role).addresses().items():
            row: dict[str, object] = {"role": role, "key": key.value}
            row |= {"address": to_checksum(address), "wei": None, "base_units": None, "usd": None}
            if chain is not None:
                units = await chain.token_balance(asset_of(config.chain), address)
                row |= {"wei": await chain.gas_balance(address), "base_units": units}
                row["usd"] = format_usd(units * worth)
            rows.append(row)
    return rows
