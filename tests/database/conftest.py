"""Each suite runs on SQLite, and on a real PostgreSQL where `make test-postgres` says where it is.

Threads and disks are real here, and so is time.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from inferpool.payments.database import Location
from tests.database.server import NEEDED, Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave PostgreSQL's half out where there is none; `make test` names it at its end."""
    if not os.environ.get(NEEDED):
        items[:] = [item for item in items if not item.get_closest_marker("postgres")]


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
    asyncio.run(_clean(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})))
    return True


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of this session's own."""
    made = Server(Path(os.environ[NEEDED]))
    made.start()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return tmp_path / "ledger.sqlite"
    made: Server = request.getfixturevalue("server")
    return made.new_database()
