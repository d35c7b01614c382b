"""Async tests in virtual time, or in real time where they are marked `real_time`."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest

from inferpool.sim.loop import run_virtual

sys.path.insert(0, str(Path(__file__).parent))


async def _clean(test: Awaitable[None]) -> None:
    await test
    late = asyncio.all_tasks() - {asyncio.current_task()}
    if late:
        _, late = await asyncio.wait(late, timeout=5)
    assert not late, f"left behind: {late}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    real = getattr(pyfuncitem.obj, "real_time", False)
    (asyncio.run if real else run_virtual)(_clean(test))
    return True
