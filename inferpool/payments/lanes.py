"""A gateway process's lane: the part of a shared book that it alone writes, and signs in.

A lane is held for `LANE_VALID_MS` at a time by the database's clock (`database.steady_ms`). Whoever
holds it renews it; a process that was killed is followed at once by another from the same home,
whose lock proves that it is dead, and from elsewhere only when its time is over. What a process
writes without holding its lane any more is refused by the database itself (`Fence`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.engine import Connection, Engine

from inferpool.payments.database import begin_writing, compiled, insert, steady_ms
from inferpool.payments.journal import Fence
from inferpool.payments.schema import LANES, RESERVED
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.limits import LANE_VALID_MS

_LOG = logging.getLogger("inferpool.lanes")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another process of the same book, and how it is reached."""

    lane: str
    place: str
    url: str
    tls_spki: bytes
    secret: bytes


@dataclass(slots=True)
class Lane:
    """One lane. `place` says on which machine and from which home its process runs."""

    engine: Engine
    name: str
    place: str
    lost: Callable[[], None]  # called from any thread when another process has it
    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[Connection], int] = steady_ms
    token: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(24))
    url: str = ""
    tls_spki: bytes = b""
    _until_s: float = 0.0

    @property
    def held(self) -> bool:
        """Whether this process may sign in it now; errs on the side of no."""
        return self.monotonic() < self._until_s

    def check(self) -> None:
        """Raise Unavailable(ledger_unavailable) where it is not held now."""
        if not self.held:
            raise Unavailable(
                "This gateway process has not reached its database for a while.",
                code="ledger_unavailable",
                retry_after_s=LANE_VALID_MS // 1000,
            )

    def take(self) -> float:
        """Take the lane; 0, or in how many seconds to try again, since another process has it."""
        asked_s = self.monotonic()
        with self.engine.connect() as connection:
            begin_writing(connection)
            row = connection.execute(
                select(LANES).where(LANES.c.lane == self.name).with_for_update()
            ).one_or_none()
            now = self.now(connection)
            theirs = row is not None and row.token != self.token and row.place != self.place
            if row is not None and theirs and row.until_ms > now:
                return float((row.until_ms - now) / 1000)
            self._write(connection, now)
            # What an earlier process held is not held any more: its requests died with it.
            connection.execute(delete(RESERVED).where(RESERVED.c.lane == self.name))
            connection.commit()
        self._until_s = asked_s + LANE_VALID_MS / 1000
        return 0.0

    def _write(self, connection: Connection, now: int) -> None:
        values: dict[str, object] = {
            "token": self.token,
            "place": self.place,
            "until_ms": now + LANE_VALID_MS,
            "url": self.url,
            "tls_spki": self.tls_spki,
            "secret": self.secret,
        }
        made = insert(connection.dialect.name, LANES).values(lane=self.name, **values)
        connection.execute(made.on_conflict_do_update(index_elements=["lane"], set_=values))

    def renew(self, connection: Connection) -> bool:
        """Hold it for longer, within a transaction; `renewed` once that is committed.

        False where another process has it: then this one is told to end.
        """
        values = {"until_ms": self.now(connection) + LANE_VALID_MS}
        mine = (LANES.c.lane == self.name) & (LANES.c.token == self.token)
        reached = {"url": self.url, "tls_spki": self.tls_spki, "secret": self.secret}
        done = connection.execute(update(LANES).where(mine).values({**values, **reached}))
        if done.rowcount == 1:
            return True
        _LOG.error("another process has taken lane %r: this one ends", self.name)
        self._until_s = 0.0
        self.lost()
        return False

    def announce(self) -> None:
        """Say at once how this process is reached, and not only by the next renewal."""
        asked_s = self.monotonic()
        with self.engine.begin() as connection:
            held = self.renew(connection)
        if held:
            self.renewed(asked_s)

    def renewed(self, asked_s: float) -> None:
        """A renewal that was asked for at that time is committed."""
        self._until_s = asked_s + LANE_VALID_MS / 1000

    def give_up(self) -> None:
        """End it: what others see of it is over at once."""
        self._until_s = 0.0
        with self.engine.begin() as connection:
            mine = (LANES.c.lane == self.name) & (LANES.c.token == self.token)
            if connection.execute(update(LANES).where(mine).values(until_ms=0)).rowcount:
                connection.execute(delete(RESERVED).where(RESERVED.c.lane == self.name))

    def fence(self) -> Fence:
        """What the journal asks before each commit."""
        mine = (LANES.c.lane == bindparam("lane")) & (LANES.c.token == bindparam("token"))
        made = compiled(self.engine, select(LANES.c.lane).where(mine).with_for_update(read=True))
        found = {"lane": self.name, "token": self.token}
        return Fence(made, tuple(found[name] for name in made.names), self.lost)

    def neighbours(self) -> list[Neighbour]:
        """The other processes that live, as they last said how they are reached."""
        with self.engine.connect() as connection:
            query = select(LANES).where(
                LANES.c.lane != self.name,
                LANES.c.until_ms > self.now(connection),
                LANES.c.url != "",
            )
            return [
                Neighbour(row.lane, row.place, row.url, row.tls_spki, row.secret)
                for row in connection.execute(query.order_by(LANES.c.lane))
            ]


def living(connection: Connection, now: int) -> set[str]:
    """Names of the lanes that are held."""
    return {
        row.lane for row in connection.execute(select(LANES.c.lane).where(LANES.c.until_ms > now))
    }
