"""The seam to time: UNIX milliseconds. Sleeping is the event loop's, which a simulator replaces."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the rest asks of time."""

    def now_ms(self) -> int:
        """UNIX time in milliseconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000


class LoopClock:
    """A clock that follows the running loop's time; under a virtual loop it is virtual too."""

    def __init__(self, epoch_ms: int) -> None:
        self._epoch_ms = epoch_ms

    def now_ms(self) -> int:
        """See Clock."""
        return self._epoch_ms + int(asyncio.get_running_loop().time() * 1000)


class SkewedClock:
    """A clock that is wrong by `offset_ms`, as strangers' clocks are."""

    def __init__(self, inner: Clock, offset_ms: int) -> None:
        self._inner = inner
        self.offset_ms = offset_ms

    def now_ms(self) -> int:
        """See Clock."""
        return self._inner.now_ms() + self.offset_ms
