"""`inferpool usage` and `inferpool quote`: what was paid, and what a job would cost."""

from __future__ import annotations

import csv
import sys
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings
from inferpool.protocol.units import format_usd

USAGE_HELP = """Show what was used and paid, by key, model, node and day (UTC), with totals in USD.

It asks the running gateway, or reads its book where none runs.

Examples:

  inferpool usage

  inferpool usage --by key,day --since 2026-11-01 --csv > usage.csv

  inferpool usage --by model --json"""

QUOTE_HELP = """Say what a job would cost, how long it would take, and why; nothing is sent or held.

Examples:

  inferpool quote smollm2-135m-instruct "Tell me a story." --max-tokens 200

  inferpool quote spam --rows 1000 --json"""

_COLUMNS = ("requests", "attempts", "units_in", "units_out")
_MONEY = ("price_usd", "fee_usd", "total_usd", "charge_usd")


def usage(
    by: Annotated[
        str, typer.Option(help="Some of key, model, node, day, with commas.")
    ] = "key,model,node,day",
    since: Annotated[str, typer.Option(help="First day, such as 2026-11-01.")] = "",
    until: Annotated[str, typer.Option(help="Last day.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the report."""
    from inferpool.cli.admin import administer

    asked = urlencode({"by": by, "since": since, "until": until})
    found = administer(*settings(), "GET", f"usage?{asked}")
    if as_json:
        print_json(found)
        return
    names = (*found["by"], *_COLUMNS, *_MONEY)
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows([[row[name] for name in names] for row in found["rows"]])
        return
    rows = [[row[name] for name in names] for row in found["rows"]]
    total = found["total"]
    empty = [""] * (len(found["by"]) - 1)
    label = ["total", *empty] if found["by"] else []
    print_table(names, [*rows, [*label, *(total[name] for name in (*_COLUMNS, *_MONEY))]])


def quote(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    prompt: Annotated[str, typer.Argument(help="Prompt of a chat, or text to embed.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of tensors.")] = None,
    images: Annotated[int | None, typer.Option(help="Images to draw.")] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Embed the text.")] = False,
    key: Annotated[
        str, typer.Option(help="API key whose rules count; else that of this machine.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the quote."""
    from inferpool.cli.admin import call

    home = settings()[1]
    body = _job(model, prompt, max_tokens, rows, images, embed)
    found = call(home, "POST", "/inferpool/quote", body, key=key or home.secret("api-key"))
    if as_json:
        print_json(found)
        return
    price = found["price_usd"]
    OUT.print(
        f"{found['model']}: ${price['expected']} expected"
        f" (${price['least']} to ${price['most']} over the nodes that can take it)"
    )
    OUT.print(f"fee: ${found['fee_usd']} ({found['fee_bps']} bps); held: ${found['held_usd']}")
    OUT.print(
        f"first after {found['first_ms']} ms, whole after {found['whole_ms']} ms,"
        f" 95 of 100 within {found['late_ms']} ms"
    )
    candidates = found["route"]["candidates"]
    print_table(
        ("node", "expected", "cost with time and risk", "whole ms", "why not"),
        [
            (
                item["node"],
                format_usd(item["price_pico_usd"]),
                format_usd(item["cost_pico_usd"]),
                item["whole_ms"],
                item["why"] or "chosen",
            )
            for item in candidates
        ],
    )


def _job(
    model: str,
    prompt: str,
    max_tokens: int | None,
    rows: int | None,
    images: int | None,
    embed: bool,
) -> dict[str, Any]:
    if rows is not None:
        tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [0.0] * rows}
        return {"path": f"/v2/models/{model}/infer", "request": {"inputs": [tensor]}}
    if images is not None:
        request: dict[str, Any] = {"model": model, "prompt": prompt or "an image", "n": images}
        return {"path": "/v1/images/generations", "request": request}
    if embed:
        return {"path": "/v1/embeddings", "request": {"model": model, "input": prompt or "text"}}
    messages = [{"role": "user", "content": prompt or "Hello!"}]
    request = {"model": model, "messages": messages}
    if max_tokens is not None:
        request["max_tokens"] = max_tokens
    return {"path": "/v1/chat/completions", "request": request}
