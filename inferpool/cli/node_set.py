"""`inferpool node set`, `withhold`, `serve`: what the owner changes while the node runs."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.cli.node_status import act
from inferpool.cli.owner import ask_node
from inferpool.config import of_text
from inferpool.protocol.errors import Refused

SET_HELP = """Change what this node may do, at once where it runs, and for its next starts.

Keys are those of the node in config.toml: hours, only_when_idle, idle_load_percent, memory_max_mb,
allow, deny, slots, concurrent_per_channel, min_deposit_base_units, withdraw_delay_s, window.

Examples:

  inferpool node set hours=20:00-08:00

  inferpool node set only_when_idle=true idle_load_percent=30 memory_max_mb=4000

  inferpool node set deny=0x52908400098527886E0F7030069857D2E4169EE7 --once"""

WITHHOLD_HELP = """Take one model out; what runs on it ends, then its memory is free.

Example:  inferpool node withhold smollm2-135m-instruct"""

SERVE_HELP = """Put a model back that was withheld.

Example:  inferpool node serve smollm2-135m-instruct"""

_LOADING_S: Final = 120.0


def change(
    pairs: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="What to change.")],
    once: Annotated[
        bool, typer.Option("--once", help="Until the node ends; config.toml stays as it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the running node, then write it down."""
    from inferpool.toml_edit import update_file

    home = settings()[1]
    values = {key: of_text(f"node.{key}", text) for key, text in map(_pair, pairs)}
    told = None
    if home.running("node") is not None:
        told = ask_node(home, "POST", "settings", values, timeout_s=_LOADING_S)["settings"]
    elif once:
        raise Refused("No node runs here, so that --once changes nothing; leave it out.")
    if not once:
        update_file(home.config, "node", values)
    if as_json:
        print_json({"changed": values, "running": told is not None, "kept": not once})
        return
    for key, value in values.items():
        OUT.print(f"{key} = {value}", markup=False)
    OUT.print(
        ("now" if told is not None else "from its next start on: no node runs here")
        + ("" if once else f"; written to {home.config}"),
        style="dim",
    )


def withhold(
    model: Annotated[str, typer.Argument(help="A model that is served.")], as_json: AsJson = False
) -> None:
    """Ask the node to take a model out."""
    act("models", {"model": model, "serve": False}, as_json)


def serve(
    model: Annotated[str, typer.Argument(help="A model that was withheld.")],
    as_json: AsJson = False,
) -> None:
    """Ask the node to put a model back."""
    act("models", {"model": model, "serve": True}, as_json, timeout_s=_LOADING_S)


def flags_of(pairs: list[str]) -> dict[str, object]:
    """`--set KEY=VALUE` as flags of the configuration. Raises Refused(bad_config)."""
    return {f"node.{key}": of_text(f"node.{key}", text) for key, text in map(_pair, pairs)}


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"{text!r} is not of the form KEY=VALUE, as in hours=20:00-08:00")
    return key.strip().removeprefix("node."), value.strip()
