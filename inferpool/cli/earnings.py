"""`inferpool node earnings`: what came in, by day, model and payer, and what is left of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.config import Config
from inferpool.home import Home
from inferpool.protocol.errors import Refused
from inferpool.protocol.units import format_usd, parse_usd, pico_usd_per_base_unit

if TYPE_CHECKING:
    from inferpool.payments.earnings import Earnings, Line

HELP = """Show what this node earned: by day (UTC), model and payer; claimed, gas, energy, net.

It reads the node's ledger, whether the node runs or not.

Examples:

  inferpool node earnings

  inferpool node earnings --json"""


def earnings(as_json: AsJson = False) -> None:
    """Print the report."""
    found = report_of(*settings())
    if as_json:
        print_json(found.to_wire())
        return
    rows: list[tuple[object, ...]] = []
    for title, groups in (
        ("day", found.by_day),
        ("model", found.by_model),
        ("payer", found.by_payer),
    ):
        rows += [(title, name, *_line(line)) for name, line in sorted(groups.items())]
    rows.append(("all", "", *_line(found.total)))
    print_table(("by", "", "receipts", "units in", "out", "earned"), rows)
    OUT.print()
    gas = f"{found.gas_wei / 10**18:.9f}" if found.gas is None else format_usd(found.gas)
    print_table(
        ("", "amount"),
        [
            ("claimed", format_usd(found.claimed)),
            ("unclaimed", format_usd(found.unclaimed)),
            ("gas" + (", in its own token, not deducted" if found.gas is None else ""), gas),
            (
                f"energy, {found.energy_source}, {found.busy_ms / 1000:.1f} s of work",
                format_usd(found.energy),
            ),
            ("net", format_usd(found.net)),
        ],
    )
    if found.gas is None and found.gas_wei:
        OUT.print("Gas is deducted where cost.gas_token_usd gives its token's price.", style="dim")


def _line(line: Line) -> tuple[object, ...]:
    return line.receipts, line.prompt_units, line.output_units, format_usd(line.earned)


def report_of(config: Config, home: Home) -> Earnings:
    """The report of a home's ledger. Raises Refused where there is none."""
    from inferpool.models.store import Store
    from inferpool.node.hardware import detect
    from inferpool.payments.earnings import Rates, report
    from inferpool.payments.earnings_book import read_book
    from inferpool.payments.journal import SqlJournal

    path = home.ledger("node")
    if not path.exists():
        raise Refused("This machine has earned nothing yet: no ledger of a node is here.")
    unit = pico_usd_per_base_unit(config.chain.asset_decimals)
    journal = SqlJournal(path)
    try:
        earned, claims, energy = read_book(journal, unit)
    finally:
        journal.close()
    rates = Rates(*_rates(config, detect(Store().root)))
    return report(earned, claims, energy, rates, unit)


def _rates(config: Config, hardware: Any) -> tuple[int, int, int | None]:
    from inferpool.daemon.joining import machine_cost

    cost = machine_cost(config.cost, hardware, None)
    try:
        gas = parse_usd(config.cost.gas_token_usd) if config.cost.gas_token_usd else None
    except ValueError as error:
        raise Refused(f"cost.gas_token_usd: {error}", code="bad_config") from None
    return cost.busy_milliwatts, cost.tariff_pico_usd_per_kwh, gas
