"""Several ways to one node: which is taken, what goes on by the next, and what never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from inferpool.transport.base import (
    AnswerTimeout,
    ConnectFailed,
    ConnectionCut,
    Headers,
    Transport,
    TransportError,
)
from inferpool.transport.ways import SILENT_S, Ways


class Answer:
    """Two chunks, then its end, a cut or silence."""

    def __init__(self, end: str) -> None:
        self.status, self.headers, self.peer_spki, self._end = 200, (), bytes(32), end

    def header(self, name: bytes) -> bytes | None:
        return None

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"
        if self._end == "hang":
            await asyncio.get_running_loop().create_future()
        if self._end == "cut":
            raise ConnectionCut("cut")

    def chunks(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def read(self, limit: int) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def close(self) -> None:
        return


class Way:
    """Notes what it is asked; fails as told."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked, self.closed = name, asked, False
        self.error: TransportError | None = None
        self.end = ""

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Answer:
        assert timeout_s > 0
        self.asked.append(self.name)
        if self.error is not None:
            raise self.error
        return Answer(self.end)

    async def close(self) -> None:
        self.closed = True


class Rig:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.a, self.b, self.c = (Way(name, self.asked) for name in "abc")
        ways: list[Transport] = [self.a, self.b, self.c]  # type: ignore[list-item]
        self.ways = Ways(ways, owned=ways[1:])

    async def ask(self) -> bytes:
        answer = await self.ways.request("POST", "/", (), b"paid", timeout_s=5)
        try:
            return await answer.read(100)
        finally:
            await answer.close()

    def by(self) -> str:
        """The ways that were asked since the last look."""
        found = "".join(self.asked)
        self.asked.clear()
        return found


async def test_what_was_not_sent_goes_on_by_the_next_way_and_stays_there() -> None:
    rig = Rig()
    assert await rig.ask() == b"onetwo"
    rig.a.error = rig.b.error = ConnectFailed("refused")
    assert await rig.ask() == b"onetwo"
    assert rig.by() == "aabc"
    rig.a.error = rig.b.error = None
    await rig.ask()
    assert rig.by() == "c"


async def test_no_way_at_all_is_told_after_each_was_tried_once() -> None:
    rig = Rig()
    rig.a.error = rig.b.error = rig.c.error = ConnectFailed("refused")
    with pytest.raises(ConnectFailed):
        await rig.ask()
    assert rig.by() == "abc"


@pytest.mark.parametrize("error", [ConnectionCut("cut"), AnswerTimeout("late")], ids=repr)
async def test_what_may_have_arrived_is_never_sent_again(error: TransportError) -> None:
    rig = Rig()
    rig.a.error = error
    with pytest.raises(type(error)):
        await rig.ask()
    assert rig.by() == "a"
    await rig.ask()  # a new attempt
    assert rig.by() == "b"


@pytest.mark.parametrize("whole", [True, False])
async def test_many_answers_that_one_cut_ends_move_on_once(whole: bool) -> None:
    rig = Rig()
    rig.a.end = "cut"
    answers = [await rig.ways.request("POST", "/", (), timeout_s=5) for _ in range(2)]
    for answer in answers:
        with pytest.raises(ConnectionCut):
            if whole:
                await answer.read(100)
            else:
                assert [chunk async for chunk in answer.chunks()]
    rig.by()
    await rig.ask()
    assert rig.by() == "b"


@pytest.mark.parametrize(("silent", "next_way"), [(True, "b"), (False, "a")])
async def test_who_gives_up_a_silent_answer_takes_another_way(silent: bool, next_way: str) -> None:
    """A client that leaves a stream which moves says nothing about its way."""
    rig = Rig()
    rig.a.end = "hang"
    answer = await rig.ways.request("POST", "/", (), timeout_s=5)
    chunks = aiter(answer.chunks())
    assert [await anext(chunks), await anext(chunks)] == [b"one", b"two"]
    if silent:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENT_S + 0.1):
                await anext(chunks)
    await answer.close()
    rig.by()
    rig.a.end = ""
    await rig.ask()
    assert rig.by() == next_way


async def test_only_its_own_ways_are_closed() -> None:
    rig = Rig()
    await rig.ways.close()
    assert (rig.a.closed, rig.b.closed, rig.c.closed) == (False, True, True)
