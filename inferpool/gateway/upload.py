"""`POST /inferpool/upload`: a newcomer measures how fast its answers would get here.

Anyone may; the bytes are counted and dropped, and the answer is shorter than any request, so that
nobody gets more sent to anywhere than it sends itself. An address may ask some times and then one
time every ten seconds, and a few are read at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from inferpool.clock import Clock
from inferpool.gateway.pushes import PushLimit
from inferpool.protocol.errors import RateLimited
from inferpool.protocol.limits import (
    UPLOAD_EVERY_MS,
    UPLOAD_MAX,
    UPLOAD_TIMEOUT_S,
    UPLOADS_AT_ONCE,
    UPLOADS_RUNNING_MAX,
)
from inferpool.transport.asgi import ClientLeft, HttpRequest


def _limit() -> PushLimit:
    return PushLimit(UPLOAD_EVERY_MS, UPLOADS_AT_ONCE)


@dataclass(slots=True)
class Uploads:
    """Serves the route."""

    clock: Clock
    limit: PushLimit = field(default_factory=_limit)
    _running: int = 0

    async def serve(self, request: HttpRequest) -> None:
        """Read, count, forget. Raises RateLimited, BadRequest(body_too_large)."""
        self.limit.take(request.client_host, self.clock.now_ms())
        if self._running >= UPLOADS_RUNNING_MAX:
            raise RateLimited("Others measure at this moment.", retry_after_s=2)
        self._running += 1
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT_S):
                size = len(await request.body(UPLOAD_MAX))
        except TimeoutError:
            raise ClientLeft from None  # too slow to be worth a place
        finally:
            self._running -= 1
        await request.answer_json({"bytes": size})
