"""`inferpool demo`: the whole of it in a minute, with clients that nobody here wrote."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from inferpool.cli.console import ERR, OUT, AsJson, print_json, settings
from inferpool.cli.node import claim_now
from inferpool.cli.up import pull_models
from inferpool.daemon.pool import ROLES, Pool
from inferpool.home import Home

HELP = """Start a pool, ask it, pay it, settle on chain, and show every step with real output.

Real parts: a real EVM with the real contracts, a real language model on llama.cpp, a real spam
model on ONNX Runtime, openai-python and tritonclient as clients, separate processes.

Examples:

  inferpool demo

  inferpool demo --mails 100 --json"""


def demo(
    mails: Annotated[int, typer.Option(help="Held-out mails to judge, 500 at most.")] = 500,
    prompt: Annotated[str, typer.Option(help="What to ask the language model.")] = (
        "Explain in two sentences why the sky is blue."
    ),
    keep: Annotated[bool, typer.Option(help="Keep the pool's state directory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the demonstration; exit code 1 where a sum does not agree."""
    from inferpool.cli import story

    begun = time.monotonic()
    flags = {"chain.port": 0, "node.port": 0, "gateway.port": 0}
    config, _ = settings(flags)
    pull_models(config)
    home = Home(Path(tempfile.mkdtemp(prefix="inferpool-demo-")))
    pool = Pool(home, flags)
    say: Callable[[str], None] = (lambda text: None) if as_json else _say
    report: dict[str, Any] = {}
    try:
        with ERR.status("starting chain, node and gateway") if not as_json else nullcontext():
            for role in ROLES:
                running = pool.start(role)
                say(f"[dim]{running.role:8} {running.url}, process {running.process.pid}[/]")
        told = story.Story(pool, home, config, say)
        report["before"] = told.chain_state("before")
        report["chat"] = told.chat(prompt)
        report["spam"] = told.spam(mails)
        report["costs"] = told.costs()
        report["claim"] = claim_now(home)
        report["after"] = told.chain_state("after")
        report["sums"] = told.sums(report)
    finally:
        report["exit_codes"] = pool.close()
        if keep:
            say(f"state kept in {home.root}")
        else:
            shutil.rmtree(home.root, ignore_errors=True)
    report["seconds"] = round(time.monotonic() - begun, 1)
    print_json(report) if as_json else say(f"\n[bold]done[/] in {report['seconds']} s")
    if not report["sums"]["agree"] or not report["spam"]["reached"]:
        raise typer.Exit(1)


def _say(text: str) -> None:
    OUT.print(text)
