"""Async tests on a loop in virtual time, which must be left without tasks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable

import pytest

from inferpool.sim.loop import run_virtual


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
    run_virtual(_clean(test))
    return True
