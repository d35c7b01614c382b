"""Async tests of a module share one loop, so that an engine is loaded once for all of them."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


async def _clean(test: Awaitable[None]) -> None:
    before = asyncio.all_tasks()
    await test
    late = asyncio.all_tasks() - before
    if late:
        _, late = await asyncio.wait(late, timeout=3)
    assert not late, f"left behind: {late}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    runner = pyfuncitem.funcargs.get("runner")
    if runner is None:
        with asyncio.Runner() as own:
            own.run(_clean(test))
    else:  # the pool behind these tests has tasks of its own, which come and go
        runner.run(test)
    return True
