"""The relay's process, and the relay inside a gateway's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferpool.config import Config, RelayConfig
from inferpool.daemon.serving import listen, until_told
from inferpool.home import Home
from inferpool.identity.certificate import tls_identity
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused
from inferpool.relay.relay import Relay
from inferpool.transport.asgi import stop_task
from inferpool.transport.tls import server_context


def make_relay(config: RelayConfig, home: Home) -> Relay:
    """A relay with this machine's TLS key. Raises Refused(bad_config, bad_keystore)."""
    try:
        allow = frozenset(from_hex(text, 20) for text in config.allow)
    except ValueError as error:
        raise Refused(f"relay.allow: {error}", code="bad_config", param="relay.allow") from None
    identity = tls_identity(home.root / "tls" / "relay")
    return Relay(server_context(identity.certificate, identity.key), identity.spki, allow)


@asynccontextmanager
async def relaying(relay: Relay, listening: socket.socket) -> AsyncIterator[None]:
    """Serve while the block runs."""
    task = asyncio.create_task(relay.serve(listening), name="relay")
    try:
        yield
    finally:
        await stop_task(task)


async def serve_relay(config: Config, home: Home) -> None:
    """Run the relay until told to stop."""
    relay = make_relay(config.relay, home)
    listening = listen(config.relay.host, config.relay.port, "--port")
    host, port = listening.getsockname()[:2]
    facts: dict[str, object] = {"host": host, "port": port, "pin": to_hex(relay.spki)}
    async with relaying(relay, listening):
        home.announce("relay", {**facts, "pid": os.getpid()})
        try:
            await until_told("relay", facts)
        finally:
            home.gone("relay")
