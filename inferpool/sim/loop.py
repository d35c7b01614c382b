"""An event loop whose time is virtual: it jumps to the next timer when nothing else is left to do.

Production code runs on it unchanged, an hour of it in seconds, and the same each time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set: the program would wait for ever."""


class _Selector(selectors.SelectSelector):
    """Never blocks: instead of waiting it moves the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Ready files, else none after `timeout` virtual seconds."""
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise Stalled("nothing is ready and no timer is set")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time, from 0."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        # A timer is due when its time is reached exactly: time moves in these jumps only.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._virtual.now_s


def run_virtual(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
