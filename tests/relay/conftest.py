"""Async tests on a loop of their own, which must be left clean: no task, no open socket."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

FDS = Path("/proc/self/fd")


def _sockets() -> int:
    """Open sockets of this process (0 where there is no /proc)."""
    count = 0
    for fd in FDS.iterdir() if FDS.exists() else ():
        with suppress(OSError):  # the listing's own
            count += str(fd.readlink()).startswith("socket:")
    return count


@pytest.fixture
def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    return asyncio.new_event_loop


async def _clean(test: Awaitable[None]) -> None:
    await test
    late = asyncio.all_tasks() - {asyncio.current_task()}
    if late:
        _, late = await asyncio.wait(late, timeout=2)
    assert not late, f"left behind: {late}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    factory = pyfuncitem.funcargs.get("loop_factory", asyncio.new_event_loop)
    factory().close()  # what a loop opens once per process is not a leak
    before = _sockets()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_clean(pyfuncitem.obj(**arguments)))
    assert _sockets() <= before, "a socket was left open"
    return True
