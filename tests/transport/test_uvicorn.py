"""The HTTP client against the server that nodes and gateways run on, in the same loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop

from inferpool.transport.http import HttpTransport
from inferpool.transport.memory import App, Message


@pytest.fixture(autouse=True)
def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    return uvloop.new_event_loop


@asynccontextmanager
async def uvicorn_server(app: App) -> AsyncIterator[HttpTransport]:
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    task = asyncio.create_task(server._serve([sock]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.001)
    transport = HttpTransport(f"http://127.0.0.1:{sock.getsockname()[1]}")
    try:
        yield transport
    finally:
        await transport.close()
        server.should_exit = True
        await task
        sock.close()


async def echo(scope: Message, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    head = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def test_many_at_once_are_not_mixed_up() -> None:
    async with uvicorn_server(echo) as transport:

        async def caller(number: int) -> None:
            for turn in range(20):
                body = b"%d/%d" % (number, turn) * (1 + turn * 997)
                answer = await transport.request("POST", "/", [], body, timeout_s=10)
                assert await answer.read(1 << 20) == body

        await asyncio.gather(*(caller(number) for number in range(32)))


async def test_stream_arrives_as_it_is_sent_and_the_app_sees_us_leave() -> None:
    went_on, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Message, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await went_on.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with uvicorn_server(app) as transport:
        answer = await transport.request("POST", "/", [], b"{}", timeout_s=10)
        chunks = answer.chunks()
        assert await anext(chunks) == b"one"
        went_on.set()
        assert await anext(chunks) == b"two"
        await answer.close()
        await asyncio.wait_for(left.wait(), 1)
