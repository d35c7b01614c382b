"""`inferpool up`: a whole pool on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Annotated

import typer

from inferpool.cli.console import ERR, OUT, AsJson, print_json, progress_bars, settings
from inferpool.config import Config
from inferpool.daemon.pool import ROLES, Pool
from inferpool.home import Home
from inferpool.models import catalogue
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store
from inferpool.protocol.errors import Unavailable

HELP = """Start a pool on this machine: development chain, one node, one gateway.

Examples:

  inferpool up

  inferpool up --port 9000

  inferpool up --open        (no key needed, on this machine only)

  inferpool up --no-node     (then `inferpool node join`, here or elsewhere)

Ctrl-C ends all of it. State stays in INFERPOOL_HOME; the next start goes on from there."""


def up(
    port: Annotated[int | None, typer.Option(help="Port of the gateway.")] = None,
    open_: Annotated[
        bool | None, typer.Option("--open", help="Let callers on this machine in without a key.")
    ] = None,
    chain: Annotated[
        str | None, typer.Option(help="JSON-RPC URL of a chain, instead of the embedded one.")
    ] = None,
    node: Annotated[
        bool, typer.Option(help="Run a node too; without one others join with `node join`.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Start the roles, print how to use them, and wait."""
    flags = {"gateway.port": port, "gateway.open": open_, "chain.url": chain}
    if port:
        flags |= {"node.port": port + 1, "chain.port": port + 2}
    config, home = settings(flags)
    given: dict[str, object] = {key: value for key, value in flags.items() if value is not None}
    if config.origins["gateway.canary"] == "default":
        given["gateway.canary"] = True  # a newcomer of this pool earns its first unit at once
    if node:
        pull_models(config)
    pool = Pool(home, given)
    roles = ROLES if not config.chain.url else ROLES[1:]
    try:
        first = tuple(role for role in roles[:-1] if node or role != "node")
        start_roles(pool, first, quiet=as_json)
        if "node" in pool.running:  # our own node, wherever the gateway listens
            facts = pool.running["node"].facts
            own = str(facts.get("endpoint", facts["url"]))
            given["gateway.nodes"] = [*config.gateway.nodes, own]
        start_roles(pool, roles[-1:], quiet=as_json)
        facts = how_to_use(pool, home, config)
        print_json(facts) if as_json else _print_facts(facts)
        ended = asyncio.run(wait_for_end(pool))
        if ended:
            raise Unavailable(
                f"The {ended} ended by itself; see {pool.log(ended)}.", code="engine_unavailable"
            )
    finally:
        if not as_json:
            OUT.print("stopping")
        pool.close()


def pull_models(config: Config) -> None:
    """Fetch the weights that are missing, with progress bars."""
    store = Store()
    with progress_bars() as on_progress:
        for name in config.node.models:
            pull_model(store, catalogue.load(name), prefer=preferred(), on_progress=on_progress)


def start_roles(pool: Pool, roles: tuple[str, ...], *, quiet: bool) -> None:
    """Start the roles in order and say how long each took."""
    for role in roles:
        begun = time.monotonic()
        running = pool.start(role)
        if not quiet:
            OUT.print(f"{role:8} {running.url}  [dim]{time.monotonic() - begun:.1f} s[/]")


def how_to_use(pool: Pool, home: Home, config: Config) -> dict[str, object]:
    """URLs, the key, and lines to paste."""
    url = pool.running["gateway"].url
    key = home.secret("api-key")
    where = url.removeprefix("http://")
    chat = next((name for name in config.node.models if catalogue.load(name).task == "chat"), None)
    lines = {}
    if chat is not None:
        lines["curl"] = (
            f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}'"
            " -H 'Content-Type: application/json' -d '"
            f'{{"model": "{chat}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
            "'"
        )
        lines["openai-python"] = (
            f'from openai import OpenAI; client = OpenAI(base_url="{url}/v1", api_key="{key}"); '
            f'print(client.chat.completions.create(model="{chat}", messages=[{{"role": "user",'
            ' "content": "Hello!"}]).choices[0].message.content)'
        )
    lines["tritonclient"] = (
        f'import tritonclient.http as t; client = t.InferenceServerClient("{where}");'
        f' print(client.get_model_metadata("spam",'
        f' headers={{"Authorization": "Bearer {key}"}}))'
    )
    urls = {role: running.url for role, running in pool.running.items()}
    return {"urls": urls, "api_key": key, "home": str(home.root), "paste": lines}


def _print_facts(facts: dict[str, object]) -> None:
    OUT.print(f"\nAPI key  [bold]{facts['api_key']}[/]\nstate    {facts['home']}\n")
    paste = facts["paste"]
    assert isinstance(paste, dict), "lines by client"
    for name, line in paste.items():
        OUT.print(f"[bold]{name}[/]")
        OUT.print(line, markup=False)
        OUT.print()
    ERR.print("[dim]Ctrl-C ends the pool.[/]")


async def wait_for_end(pool: Pool) -> str:
    """Wait for Ctrl-C or SIGTERM ('') or for a role that ends by itself (its name)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    watch = asyncio.create_task(pool.watch())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([watch, stopped], return_when=asyncio.FIRST_COMPLETED)
    ended = watch.result() if watch.done() else ""
    for task in (watch, stopped):
        task.cancel()
    return ended
