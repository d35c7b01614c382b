"""`inferpool wallet`: the keys of this machine and what they hold."""

from __future__ import annotations

import asyncio

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.config import Config
from inferpool.home import Home
from inferpool.protocol.encoding import to_checksum
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.units import format_usd, pico_usd_per_base_unit

HELP = """Show the keys of this machine: role, address, gas and token balance.

Secrets never leave their files. Examples:

  inferpool wallet

  inferpool wallet --json"""


def wallet(as_json: AsJson = False) -> None:
    """Print the keys."""
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
