"""Waits with a limit: they end as `asyncio.timeout` would end them, also when others cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from inferpool.transport.patience import Deadline, Patience, within

Wait = Callable[[Awaitable[object], float], Awaitable[object]]


@pytest.fixture(params=["within", "patience"])
def wait(request: pytest.FixtureRequest) -> Wait:
    if request.param == "within":
        return within
    patiences: list[Patience] = []

    async def wait(awaited: Awaitable[object], timeout_s: float) -> object:
        if not patiences:
            patiences.append(Patience(asyncio.get_running_loop()))
        return await patiences[0].wait(awaited, timeout_s)

    return wait


async def give(value: object, hops: int) -> object:
    for _ in range(hops):
        await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("hops", [0, 1, 3])
async def test_what_is_there_is_given(wait: Wait, hops: int) -> None:
    assert await wait(give("there", hops), 10) == "there"


@pytest.mark.parametrize("hops", [0, 1])
async def test_what_it_raises_is_raised(wait: Wait, hops: int) -> None:
    async def fail() -> None:
        await give(None, hops)
        raise LookupError("as it is")

    with pytest.raises(LookupError, match="as it is"):
        await wait(fail(), 10)


async def test_a_wait_that_takes_too_long_is_cancelled(wait: Wait) -> None:
    cleaned: list[bool] = []

    async def forever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(True)

    with pytest.raises(TimeoutError):
        await wait(forever(), 0.01)
    assert cleaned == [True]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await wait(give("again", 2), 10) == "again"


async def test_whoever_cancels_the_waiter_cancels_the_wait(wait: Wait) -> None:
    reached = asyncio.Event()

    async def forever() -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    async def waiter() -> None:
        await wait(forever(), 10)

    task = asyncio.create_task(waiter())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_later_wait_may_take_longer_than_the_one_before() -> None:
    """One timer serves all: it must not fire for a wait that is over, nor for one not yet due."""
    patience = Patience(asyncio.get_running_loop())
    assert await patience.wait(give(1, 1), 0.02) == 1
    assert await patience.wait(asyncio.sleep(0.06, 2), 30) == 2  # the first one's timer fires here
    await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await patience.wait(asyncio.sleep(30), 0.02)  # earlier than the timer that is set
    patience.close()


async def test_an_iterator_that_is_given_up_ends() -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 1
        await asyncio.get_running_loop().create_future()

    patience, found = Patience(asyncio.get_running_loop()), items()
    assert await patience.wait(anext(found), 10) == 1
    with pytest.raises(TimeoutError):
        await patience.wait(anext(found), 0.01)
    with pytest.raises(StopAsyncIteration):
        await patience.wait(anext(found), 10)


# -- one timer for many waits ---------------------------------------------------------------------


async def test_what_others_finish_is_given_and_what_is_there_at_once() -> None:
    loop, deadline = asyncio.get_running_loop(), Deadline(10)
    late: asyncio.Future[str] = loop.create_future()
    loop.call_soon(late.set_result, "there")
    assert await deadline.wait(late) == "there"
    assert await deadline.wait(late) == "there"


async def test_each_waits_its_own_time_and_leaves_the_future_alone() -> None:
    loop, deadline = asyncio.get_running_loop(), Deadline(0.1)
    first, second, never = (loop.create_future() for _ in range(3))
    begun = loop.time()
    waits = [asyncio.create_task(deadline.wait(future)) for future in (first, never)]
    await asyncio.sleep(0.05)
    waits.append(asyncio.create_task(deadline.wait(second)))
    loop.call_at(begun + 0.12, second.set_result, "in time")  # later than the first's time
    found = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(item) for item in found[:2]] == [TimeoutError, TimeoutError]
    assert found[2] == "in time"
    assert not first.done()
    first.set_exception(LookupError("nobody is told, and no warning follows"))
    never.set_result(None)


async def test_a_wait_that_is_cancelled_leaves_the_future_alone() -> None:
    loop, deadline = asyncio.get_running_loop(), Deadline(10)
    future: asyncio.Future[str] = loop.create_future()
    task = asyncio.create_task(deadline.wait(future))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.done()
    future.set_result("there")
    assert await deadline.wait(future) == "there"


async def test_what_fails_while_it_is_waited_for_is_raised() -> None:
    loop, deadline = asyncio.get_running_loop(), Deadline(10)
    future: asyncio.Future[str] = loop.create_future()
    loop.call_soon(future.set_exception, LookupError("as it is"))
    with pytest.raises(LookupError, match="as it is"):
        await deadline.wait(future)
