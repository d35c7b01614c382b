"""Transports without a network, also under virtual time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from inferpool.transport.base import (
    AnswerInvalid,
    AnswerTimeout,
    ConnectFailed,
    ConnectionCut,
    Transport,
)
from inferpool.transport.memory import (
    HIGH_WATER_BYTES,
    App,
    Fault,
    FaultyTransport,
    MemoryTransport,
    Message,
    RandomFaults,
)

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        self._now_s += seconds


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self._loop.jump(timeout)
        assert timeout is not None, "nothing would ever happen again"
        return super().select(0)


@pytest.fixture(autouse=True)
def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    return VirtualLoop


@asynccontextmanager
async def memory(app: App) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(app)
    try:
        yield transport
    finally:
        await transport.close()


async def start(send: Send, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send: Send, data: bytes, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


class Echo:
    """Answers the request's body in three parts; counts what it handled."""

    def __init__(self) -> None:
        self.handled: list[bytes] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        data: bytes = (await receive())["body"]
        await start(send, (b"Path", scope["path"].encode()))
        for part in (data[:1], data[1:2], data[2:]):
            await body(send, part, more=True)
        self.handled.append(data)
        await body(send, b"")


async def ask(transport: Transport, data: bytes = b"abcd", timeout_s: float = 5) -> bytes:
    answer = await transport.request("POST", "/v1", [], data, timeout_s=timeout_s)
    return await answer.read(1 << 20)


async def test_request_and_answer() -> None:
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await Echo()(scope, receive, send)

    async with memory(app) as transport:
        answer = await transport.request("POST", "/a%20b?x=1", [(b"k", b"v")], b"hi!", timeout_s=5)
        assert (answer.status, answer.header(b"path")) == (200, b"/a b")
        assert [chunk async for chunk in answer.chunks()] == [b"h", b"i", b"!"]
        assert await answer.read(10) == b""
    (scope,) = scopes
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/a b", b"x=1")
    assert scope["headers"] == [(b"host", b"memory"), (b"k", b"v"), (b"content-length", b"3")]


async def test_head_waits_for_the_first_body_and_the_stream_is_live() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        for number in range(3):
            await asyncio.sleep(10)
            await body(send, b"%d" % number, more=number < 2)

    async with memory(app) as transport:
        loop = asyncio.get_running_loop()
        answer = await transport.request("GET", "/", [], timeout_s=15)
        times = [(loop.time(), chunk) async for chunk in answer.chunks()]
        assert times == [(10, b"0"), (20, b"1"), (30, b"2")]


async def test_backpressure() -> None:
    sent = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal sent
        await start(send)
        for _ in range(1000):
            sent += 1024
            await body(send, b"x" * 1024, more=True)
        await body(send, b"")

    async with memory(app) as transport:
        answer = await transport.request("GET", "/", [], timeout_s=5)
        await asyncio.sleep(60)
        assert sent <= HIGH_WATER_BYTES + 1024
        assert len(await answer.read(1 << 20)) == 1000 * 1024


@pytest.mark.parametrize("how", ["close", "cancel", "timeout", "transport", "limit"])
async def test_leaving_is_a_disconnect(how: str) -> None:
    seen: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        if how not in ("cancel", "timeout"):
            await start(send)
            await body(send, b"x", more=True)
        seen.append((await receive())["type"])
        await body(send, b"dropped", more=True) if how == "close" else None

    async with memory(app) as transport:
        call = transport.request("GET", "/", [], timeout_s=5)
        if how == "cancel":
            task = asyncio.create_task(call)
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "timeout":
            with pytest.raises(AnswerTimeout):
                await call
        else:
            answer = await call
            if how == "limit":
                with pytest.raises(AnswerInvalid):
                    await answer.read(0)
            else:
                await (answer.close() if how == "close" else transport.close())
            with pytest.raises(ConnectionCut):
                await answer.read(10)
        await asyncio.sleep(0.1)
        assert seen == ["http.disconnect"]


async def test_an_app_that_ignores_us_is_cancelled_by_close() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        await body(send, b"x", more=True)
        await asyncio.sleep(3600)

    transport = MemoryTransport(app)
    answer = await transport.request("GET", "/", [], timeout_s=5)
    await transport.close()
    assert asyncio.get_running_loop().time() == 1
    with pytest.raises(ConnectionCut):
        await answer.read(10)
    with pytest.raises(ConnectFailed):
        await ask(transport)


@pytest.mark.parametrize("fault", ["raise", "return", "short", "long", "nothing", "twice"])
async def test_a_failing_app_is_a_cut(fault: str) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if fault == "nothing":
            return
        length = [(b"content-length", b"2")] if fault in ("short", "long") else []
        await start(send, *length)
        if fault == "twice":
            await start(send)
        await body(send, b"x", more=fault != "short")
        if fault == "raise":
            raise RuntimeError("a bug")
        if fault == "long":
            await body(send, b"yz")

    async with memory(app) as transport:
        with pytest.raises(ConnectionCut):
            await ask(transport)


# -- faults --------------------------------------------------------------------------------------


@asynccontextmanager
async def faulty(*faults: Fault) -> AsyncIterator[tuple[FaultyTransport, Echo]]:
    echo, left = Echo(), list(faults)
    transport = FaultyTransport(MemoryTransport(echo), lambda method, path: left.pop(0))
    try:
        yield transport, echo
    finally:
        await transport.close()


async def test_no_fault() -> None:
    async with faulty(Fault()) as (transport, _echo):
        assert await ask(transport) == b"abcd"


async def test_refused() -> None:
    async with faulty(Fault(refuse=True)) as (transport, echo):
        with pytest.raises(ConnectFailed):
            await ask(transport)
        assert echo.handled == []


async def test_lost_request_and_lost_answer() -> None:
    async with faulty(Fault(lose_request=True), Fault(lose_answer=True)) as (transport, echo):
        with pytest.raises(AnswerTimeout):
            await ask(transport, timeout_s=30)
        assert asyncio.get_running_loop().time() == 30
        assert echo.handled == []
        with pytest.raises(ConnectionCut):
            await ask(transport)
        assert echo.handled == [b"abcd"]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 9])
async def test_cut_after(after: int) -> None:
    async with faulty(Fault(cut_after=after), Fault(cut_after=after)) as (transport, _echo):
        answer = await transport.request("POST", "/", [], b"abcd", timeout_s=5)
        chunks: list[bytes] = []
        with pytest.raises(ConnectionCut):
            async for chunk in answer.chunks():
                chunks.append(chunk)  # noqa: PERF401
        assert chunks == [b"a", b"b", b"cd"][:after]
        with pytest.raises(ConnectionCut):
            await ask(transport)


async def test_delay_reorders() -> None:
    async with faulty(Fault(delay_s=2), Fault(), Fault(delay_s=9)) as (transport, echo):
        await asyncio.gather(ask(transport, b"first"), ask(transport, b"second"))
        assert echo.handled == [b"second", b"first"]
        with pytest.raises(AnswerTimeout):
            await ask(transport, timeout_s=5)


async def test_duplicate() -> None:
    async with faulty(Fault(duplicate=True)) as (transport, echo):
        assert await ask(transport) == b"abcd"
        await asyncio.sleep(1)
        assert echo.handled == [b"abcd", b"abcd"]


def test_random_faults_repeat() -> None:
    def draw(**odds: float) -> list[Fault]:
        policy = RandomFaults(Random(7), **odds)  # type: ignore[arg-type]
        return [policy("POST", "/") for _ in range(200)]

    assert draw(refuse=0.3, cut=0.3, delay=0.5) == draw(refuse=0.3, cut=0.3, delay=0.5)
    assert draw() == [Fault()] * 200
    assert all(fault.refuse and fault.duplicate for fault in draw(refuse=1, duplicate=1))
    # one odds changed: the other draws stay as they were
    some = [fault.cut_after for fault in draw(cut=0.3)]
    assert some == [fault.cut_after for fault in draw(cut=0.3, refuse=0.9)]
