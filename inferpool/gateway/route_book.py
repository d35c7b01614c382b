"""Why each request went where it went: kept on disk, a bounded number, without any text.

Choices are written in batches, at most a second later: a crash may lose the last ones, and no
request waits for them.
"""

from __future__ import annotations

import asyncio
from typing import Final

import orjson
from sqlalchemy import bindparam, delete, select

from inferpool.gateway.router import Route, unpacked
from inferpool.payments.journal import Journal, Write, upsert
from inferpool.payments.schema import ROUTES
from inferpool.protocol.limits import ROUTES_KEPT_MAX

FLUSH_S: Final = 1.0
_SWEEP_EVERY: Final = 1000  # choices
_ROW: Final = ("client_request_id", "number", "at_ms", "account", "data")


class RouteBook:
    """Choices by the client's request id: (time in UNIX ms, account, trace)."""

    def __init__(self, journal: Journal, kept_max: int = ROUTES_KEPT_MAX) -> None:
        self._journal, self._kept_max = journal, kept_max
        self._save = upsert(journal, ROUTES, "client_request_id", "number")
        assert self._save.names == _ROW, "rows are written by position"
        self._forget = journal.compile(delete(ROUTES).where(ROUTES.c.at_ms < bindparam("before")))
        self._pending: list[tuple[str, int, str, Route]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._written: asyncio.Future[None] | None = None  # the last batch
        self._until_sweep = 0

    def note(self, client_id: str, number: int, account: str, route: Route) -> None:
        """Keep a request's choice; `number` 0 is its first, more follow where a node failed."""
        self._pending.append((client_id, number, account, route))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, []
        writes = [
            Write(
                self._save,
                (client_id, number, route.at_ms, account, orjson.dumps(route.packed())),
            )
            for client_id, number, account, route in pending
        ]
        self._until_sweep -= len(writes)
        if self._until_sweep <= 0:
            self._until_sweep = _SWEEP_EVERY
            writes += self._sweep()
        if writes:
            self._written = self._journal.write(writes)

    def _sweep(self) -> list[Write]:
        """Forget the oldest above the bound."""
        newest = select(ROUTES.c.at_ms).order_by(ROUTES.c.at_ms.desc())
        found = self._journal.read(newest.offset(self._kept_max).limit(1))
        return [Write(self._forget, {"before": row.at_ms + 1}) for row in found]

    async def find(self, client_id: str) -> tuple[str, list[dict[str, object]]] | None:
        """The account and the choices of a request, in order; None for one that is not known."""
        self.flush()
        if self._written is not None:
            await asyncio.wait([self._written])
        query = select(ROUTES).where(ROUTES.c.client_request_id == client_id)
        rows = self._journal.read(query.order_by(ROUTES.c.number))
        if not rows:
            return None
        return rows[0].account, [read_choice(row.data) for row in rows]


def read_choice(data: bytes) -> dict[str, object]:
    """A choice as it was stored: by position, or by name as earlier versions wrote it."""
    value = orjson.loads(data)
    return unpacked(value) if isinstance(value, list) else dict(value)
