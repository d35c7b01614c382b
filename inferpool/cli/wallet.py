"""`inferpool wallet`: the keys of this machine and what they hold."""

from __future__ import annotations

import asyncio

from rich.table import Table

from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.config import Config
from inferpool.daemon.chains import asset_of, open_chain
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
    table = Table("owner", "key", "address", "gas (wei)", config.chain.asset_name)
    for row in rows:
        table.add_row(*(str(row[name]) for name in ("role", "key", "address", "wei", "usd")))
    OUT.print(table if rows else "No keys yet; `inferpool up` makes them.")


async def _rows(config: Config, home: Home) -> list[dict[str, object]]:
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
