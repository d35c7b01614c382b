"""A newcomer measures its way to a gateway; nobody can use that against the gateway or others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from owner_kit import net

from inferpool.gateway.upload import Uploads
from inferpool.node.upload import PATH, measure_upload
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import (
    UPLOAD_EVERY_MS,
    UPLOAD_MAX,
    UPLOAD_TIMEOUT_S,
    UPLOADS_AT_ONCE,
    UPLOADS_RUNNING_MAX,
)
from inferpool.transport.asgi import HttpRequest
from inferpool.transport.base import Response
from inferpool.transport.memory import MemoryTransport


async def send(pipe: MemoryTransport, size: int) -> tuple[int, Any]:
    response = await pipe.request("POST", PATH, (), bytes(size), timeout_s=60)
    try:
        return response.status, json.loads(await response.read(1 << 16))
    finally:
        await response.close()


class Line(MemoryTransport):
    """A pipe of so many bytes a second, and a delay each way."""

    def __init__(self, app: Any, bytes_per_s: float, delay_s: float) -> None:
        super().__init__(app)
        self.bytes_per_s, self.delay_s, self.sent = bytes_per_s, delay_s, 0

    async def request(
        self, method: str, path: str, headers: Any, body: bytes = b"", **more: Any
    ) -> Response:
        self.sent += len(body)
        await asyncio.sleep(len(body) / self.bytes_per_s + 2 * self.delay_s)
        return await super().request(method, path, headers, body, **more)


@pytest.mark.parametrize("mbit", [0.5, 8, 100, 900])
async def test_the_rate_of_the_line_is_found_and_its_delay_left_out(
    tmp_path: Path, mbit: float
) -> None:
    async with net(tmp_path) as world:
        rate = mbit * 1e6 / 8
        pipe = Line(world.gateway.app, rate, delay_s=0.08)
        begun = asyncio.get_running_loop().time()
        assert await measure_upload(pipe) == pytest.approx(rate, rel=0.05)
        assert asyncio.get_running_loop().time() - begun < 4
        assert pipe.sent <= UPLOAD_MAX + 70_000
        await pipe.close()


async def test_an_address_may_measure_a_few_times(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        pipe = MemoryTransport(world.gateway.app)
        for _ in range(UPLOADS_AT_ONCE):
            assert await send(pipe, 1000) == (200, {"bytes": 1000})
        status, answer = await send(pipe, 1000)
        assert (status, answer["error"]["code"]) == (429, "rate_limited")
        with pytest.raises(Refused, match="429"):
            await measure_upload(pipe)
        await asyncio.sleep(UPLOAD_EVERY_MS / 1000)
        assert (await send(pipe, 1000))[0] == 200
        await asyncio.sleep(UPLOAD_EVERY_MS / 1000)
        assert (await send(pipe, UPLOAD_MAX + 1))[0] == 413
        await pipe.close()


async def test_who_sends_slowly_holds_no_place(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        uploads, answers = Uploads(world.clock), []

        def slow(number: int) -> HttpRequest:
            async def receive() -> Any:
                await asyncio.sleep(5)
                return {"type": "http.request", "body": b"x", "more_body": True}

            async def answer(message: Any) -> None:
                answers.append(message)

            scope = {
                "method": "POST",
                "path": PATH,
                "headers": [],
                "client": (f"192.0.2.{number}", 1),
            }
            return HttpRequest(scope, receive, answer)

        running = [asyncio.create_task(uploads.serve(slow(n))) for n in range(UPLOADS_RUNNING_MAX)]
        await asyncio.sleep(1)
        with pytest.raises(Exception, match="at this moment"):
            await uploads.serve(slow(99))
        await asyncio.sleep(UPLOAD_TIMEOUT_S)
        assert all(type(task.exception()).__name__ == "ClientLeft" for task in running)
        assert uploads._running == 0
        assert answers == [], "nothing is sent to who sends nothing"
