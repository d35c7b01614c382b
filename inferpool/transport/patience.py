"""Waiting for a limited time, cheaply where the wait is short or none.

`asyncio.timeout` costs 5 us and a timer each time. What a peer sent is mostly there already, and
the tokens of a stream come long before anybody's patience ends: so a wait that ends at once sets no
timer at all, and a stream has one timer that is looked at again when it fires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(awaited: Awaitable[T], timeout_s: float) -> T:
    """What `awaited` gives, at once where it need not wait. Raises TimeoutError."""
    steps = awaited.__await__()
    try:
        first = next(steps)
    except StopIteration as done:
        found: T = done.value
        return found
    async with asyncio.timeout(timeout_s):
        return await _rest(steps, first)


class Patience:
    """The time limits of many waits, one after another, in one task at a time."""

    __slots__ = ("_due_s", "_fires_s", "_loop", "_spent", "_task", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None  # that waits now
        self._due_s = self._fires_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._spent = False

    async def wait(self, awaited: Awaitable[T], timeout_s: float) -> T:
        """What `awaited` gives. Raises TimeoutError where it takes longer, and cancels it."""
        steps = awaited.__await__()
        try:
            first = next(steps)
        except StopIteration as done:
            found: T = done.value
            return found
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None, "only a task waits"
        before = task.cancelling()
        self._spent = False
        self._due_s = self._loop.time() + timeout_s
        if self._timer is None or self._fires_s > self._due_s:
            self._arm()
        try:
            return await _rest(steps, first)
        except asyncio.CancelledError:
            if self._spent and task.uncancel() <= before:
                raise TimeoutError from None
            raise
        finally:
            self._task = None

    def close(self) -> None:
        """No wait follows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_s = self._due_s
        self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        """The timer fired: the wait that it was set for is mostly long over."""
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() >= self._due_s:
            self._spent = True
            self._task.cancel()
        else:
            self._arm()


class Deadline:
    """Waits of one length for what others finish, any number at once, under one timer."""

    __slots__ = ("_timeout_s", "_timer", "_waiting")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting: dict[asyncio.Future[None], float] = {}  # until when; the oldest first
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future[T]) -> T:
        """What `future` gives. Raises TimeoutError; neither that nor a cancelled task touches the
        future, which goes on."""
        if future.done():
            return future.result()
        loop = future.get_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        due_s = self._waiting[waiter] = loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look, loop)
        future.add_done_callback(partial(_pass_on, waiter))
        try:
            await waiter
        finally:
            del self._waiting[waiter]
        return future.result()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now_s = loop.time()
        for waiter, due_s in self._waiting.items():
            if due_s > now_s:
                self._timer = loop.call_at(due_s, self._look, loop)
                return
            if not waiter.done():
                waiter.set_exception(TimeoutError())


def _pass_on(waiter: asyncio.Future[None], future: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
    elif not future.cancelled():
        future.exception()  # nobody waits any more who would be told


@coroutine
def _rest(steps: Generator[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on from where the first step stopped."""
    while True:
        try:
            got = yield waits_for
        except BaseException as error:
            try:
                waits_for = steps.throw(error)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
        else:
            try:
                waits_for = steps.send(got)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
