"""The roles by name. Each imports what it needs only when it starts."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from inferpool.config import Config
from inferpool.daemon.serving import listen, run, run_role, url_of
from inferpool.daemon.workers import Worker, supervise
from inferpool.home import Home
from inferpool.protocol.errors import Refused

_LEFT_BEHIND_S: Final = 20.0


def serve(role: str, config: Config, home: Home) -> None:
    """Run a role until it is told to stop. Raises InferpoolError where it cannot start."""
    mains: dict[str, Callable[[Config, Home], Awaitable[None]]] = {
        "chain": _chain,
        "node": _node,
        "relay": _relay,
    }
    if role == "gateway":
        _serve_gateway(config, home)
        return
    if role not in mains:
        known = ", ".join(sorted([*mains, "gateway"]))
        raise Refused(f"no role {role!r}; there are {known}", code="bad_config")
    with _alone(home, role):
        run(partial(mains[role], config, home))


def _serve_gateway(config: Config, home: Home) -> None:
    """The only process, a supervisor of workers, or one of these."""
    worker = Worker.here()
    with ExitStack() as stack:
        if worker.of == 1:
            stack.enter_context(_alone(home, "gateway"))
        if worker.of == 1 and config.gateway.workers != 1:
            run(partial(supervise, config, home))
            return
        # A supervisor that was killed leaves workers behind which end a moment later.
        stack.enter_context(_alone(home, f"gateway-{worker.number}", _LEFT_BEHIND_S))
        run(partial(_gateway, config, home, worker))


@contextmanager
def _alone(home: Home, role: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a role's lock: two processes over one ledger would each undo the other's money."""
    path = home.root / "run" / f"{role}.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as handle:
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise Refused(
                        f"a {role} already runs from {home.root}; end it, or set INFERPOOL_HOME to"
                        " another directory",
                        code="bad_config",
                    ) from None
                time.sleep(0.05)
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


async def _gateway(config: Config, home: Home, worker: Worker) -> None:
    from inferpool.daemon.gateway import serve_gateway

    await serve_gateway(config, home, worker)
