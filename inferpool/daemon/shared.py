"""The gateway's book, and this process's lane in it where other processes write in it too."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from inferpool.config import GatewayConfig
from inferpool.daemon.workers import Worker
from inferpool.home import Home
from inferpool.payments.database import Location
from inferpool.payments.journal import SqlJournal
from inferpool.payments.lanes import Lane

_LOG = logging.getLogger("inferpool.gateway")


def book_of(settings: GatewayConfig, home: Home) -> Location:
    """Where the gateway's book is."""
    return settings.db or home.ledger("gateway")


def place_of(home: Home) -> str:
    """This machine and home: of two processes with one lane and one place the earlier is dead,
    since the home's lock was free."""
    try:
        machine = Path("/etc/machine-id").read_text("utf-8").strip()
    except OSError:
        machine = ""
    return f"{socket.gethostname()}:{machine}:{home.root}"[:512]


@asynccontextmanager
async def open_book(
    settings: GatewayConfig, home: Home, worker: Worker
) -> AsyncIterator[tuple[SqlJournal, Lane | None]]:
    """The journal; with a lane that is taken, where there are workers or a common database.

    Raises Refused(bad_config), Unavailable(ledger_unavailable).
    """
    journal = SqlJournal(book_of(settings, home))
    try:
        lane = None
        if settings.db or worker.of > 1:
            name = worker.lane(home, shared=bool(settings.db))
            lane = Lane(journal.engine, name, place_of(home), _end)
            while wait_s := await asyncio.to_thread(lane.take):
                _LOG.warning("lane %r is another process's for %.0f s yet", name, wait_s)
                await asyncio.sleep(min(wait_s, 1.0))
            journal.fence = lane.fence()
        yield journal, lane
    finally:
        await asyncio.to_thread(journal.close)


def _end() -> None:
    """Another process has taken our place: what we did since is not written, and we stop."""
    os.kill(os.getpid(), signal.SIGTERM)
