"""Async tests on a loop that must be left without tasks; a small ONNX writer; the LLM's weights."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.protocol.errors import Unavailable


@pytest.fixture(scope="session")
def gguf() -> Path:
    """The weights of the small LLM: `INFERPOOL_TEST_GGUF`, the user's store, or their source."""
    given = os.environ.get("INFERPOOL_TEST_GGUF")
    if given:
        return Path(given)
    try:
        paths = pull_model(Store(), catalogue.load("smollm2-135m-instruct"))
    except Unavailable as error:
        pytest.skip(f"no source of smollm2-135m-instruct answered: {error.message}")
    return next(iter(paths.values()))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for a module's tests, so that an engine starts once for all of them."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a node does
        yield runner


async def _clean(test: Awaitable[None]) -> None:
    before = asyncio.all_tasks()
    await test
    late = asyncio.all_tasks() - before
    if late:
        _, late = await asyncio.wait(late, timeout=2)
    assert not late, f"left behind: {late}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    shared = pyfuncitem.funcargs.get("runner")
    if shared is not None:
        shared.run(_clean(pyfuncitem.obj(**arguments)))
        return True
    with asyncio.Runner() as own:
        own.run(_clean(pyfuncitem.obj(**arguments)))
    return True
