"""The roles by name. Each imports what it needs only when it starts."""

from __future__ import annotations

import fcntl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

from inferpool.config import Config
from inferpool.daemon.serving import listen, run, run_role, url_of
from inferpool.home import Home
from inferpool.protocol.errors import Refused


def serve(role: str, config: Config, home: Home) -> None:
    """Run a role until it is told to stop. Raises InferpoolError where it cannot start."""
    mains: dict[str, Callable[[Config, Home], Awaitable[None]]] = {
        "chain": _chain,
        "node": _node,
        "gateway": _gateway,
        "relay": _relay,
    }
    if role not in mains:
        raise Refused(f"no role {role!r}; there are {', '.join(mains)}", code="bad_config")
    with _alone(home, role):
        run(partial(mains[role], config, home))


@contextmanager
def _alone(home: Home, role: str) -> Iterator[None]:
    """Hold a role's lock: two processes over one ledger would each undo the other's money."""
    path = home.root / "run" / f"{role}.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"a {role} already runs from {home.root}; end it, or set INFERPOOL_HOME to another"
                " directory",
                code="bad_config",
            ) from None
        yield


async def _chain(config: Config, home: Home) -> None:
    from inferpool.chain.devchain.node import Node
    from inferpool.chain.devchain.server import create_app

    listening = listen("127.0.0.1", config.chain.port, "--port")
    home.chain_state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    node = Node(str(home.chain_state))

    async def close() -> None:
        node.close()

    facts: dict[str, object] = {"url": url_of(listening), "chain_id": node.chain_id}
    await run_role(home, "chain", create_app(node), listening, facts, close)


async def _node(config: Config, home: Home) -> None:
    from inferpool.daemon.node import serve_node

    await serve_node(config, home)


async def _relay(config: Config, home: Home) -> None:
    from inferpool.daemon.relay import serve_relay

    await serve_relay(config, home)


async def _gateway(config: Config, home: Home) -> None:
    from inferpool.daemon.gateway import serve_gateway

    await serve_gateway(config, home)
