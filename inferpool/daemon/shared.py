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

from sqlalchemy import select, update
from sqlalchemy.engine import Engine

from inferpool.config import GatewayConfig
from inferpool.daemon.workers import Worker
from inferpool.home import Home
from inferpool.payments.database import Location, begin_writing, steady_ms
from inferpool.payments.journal import SqlJournal
from inferpool.payments.lanes import Lane, living
from inferpool.payments.schema import PAYER_CHANNELS

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
        if worker.first:
            await asyncio.to_thread(adopt, journal.engine, worker, home, bool(settings.db))
        yield journal, lane
    finally:
        await asyncio.to_thread(journal.close)


def _end() -> None:
    """Another process has taken our place: what we did since is not written, and we stop."""
    os.kill(os.getpid(), signal.SIGTERM)


def adopt(engine: Engine, worker: Worker, home: Home, shared: bool) -> list[str]:
    """Take over the channels of this home's workers that there are no more, so that what lies in
    them comes back: their voucher keys sign nothing now. The lanes that were taken over."""
    mine = worker.lane(home, shared=shared)
    start = f"{mine}/" if shared else ""
    with engine.begin() as connection:
        begin_writing(connection)
        alive = living(connection, steady_ms(connection))
        lanes = [row.lane for row in connection.execute(select(PAYER_CHANNELS.c.lane).distinct())]
        left = [
            lane
            for lane in lanes
            if lane.startswith(start) and lane not in alive and _number(lane, start) >= worker.of
        ]
        if left:
            found = update(PAYER_CHANNELS).where(PAYER_CHANNELS.c.lane.in_(left))
            connection.execute(found.values(lane=mine))
    return sorted(left)


def _number(lane: str, start: str) -> int:
    number = lane.removeprefix(start)
    return int(number) if number.isdigit() else 0
