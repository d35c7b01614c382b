"""A client that costs little: whole answers one after another, streams token by token.

A raw protocol, since a client that costs as much as what it measures measures itself. Times are of
CLOCK_MONOTONIC, which the mock node stamps into its tokens.
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson

TOKEN = re.compile(rb"t(\d{8,20}) ")
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
_LAST_CHUNK = b"\r\n0\r\n\r\n"  # of a whole answer that came in chunks all the same
_END = (b"data: [DONE]", b'"error"')


def request_of(path: str, value: object, key: str) -> bytes:
    """A whole POST, to be sent again and again."""
    body = orjson.dumps(value)
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    secret = f"authorization: Bearer {key}\r\n" if key else ""
    return f"{head}{secret}content-length: {len(body)}\r\n\r\n".encode() + body


def rows_request(model: str, key: str) -> bytes:
    """One row of tensors."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}
    return request_of(f"/v2/models/{model}/infer", {"inputs": [tensor]}, key)


def chat_request(model: str, key: str, tokens: int, *, stream: bool = True) -> bytes:
    """A chat, streamed or whole."""
    value = {
        "model": model,
        "messages": [{"role": "user", "content": "Name three primary colours."}],
        "max_tokens": tokens,
        "stream": stream,
    }
    return request_of("/v1/chat/completions", value, key)


class Calls(asyncio.Protocol):
    """Whole answers on one connection, one after another, until `left` is used up."""

    def __init__(self, request: bytes, left: list[int], spent_ns: list[int]) -> None:
        self._request, self._left, self._spent_ns = request, left, spent_ns
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        if self._left[0] <= 0:
            self.done.set_result(None)
            self._transport.close()
            return
        self._left[0] -= 1
        self._begun_ns = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            return
        if data[9:12] != b"200":
            self._fail(data.decode("utf-8", "replace"))
            return
        found = _LENGTH.search(data, 0, head)
        if data.endswith(_LAST_CHUNK) if found is None else (len(data) >= head + 4 + int(found[1])):
            self._data = b""
            self._spent_ns.append(time.monotonic_ns() - self._begun_ns)
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection ended early")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


async def calls(url: str, request: bytes, count: int, connections: int) -> list[int]:
    """Send so many; the time that each took, in ns."""
    left = [count]
    spent_ns: list[int] = []
    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("http://").split(":")
    opened = [
        await loop.create_connection(lambda: Calls(request, left, spent_ns), host, int(port))
        for _ in range(connections)
    ]
    await asyncio.gather(*[protocol.done for _, protocol in opened])
    return spent_ns


@dataclass
class Seen:
    """What streams showed, times in ns: until the first token, of each token on its way, and
    between two tokens at the reader."""

    first: list[int] = field(default_factory=list)
    transit: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)


class Stream(asyncio.Protocol):
    """One stream a connection; `done` is set at its end. `stop_after` tokens it hangs up."""

    def __init__(self, request: bytes, seen: Seen, stop_after: int = 0) -> None:
        self._request, self._seen, self._stop_after = request, seen, stop_after
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tail, self.tokens, self._last_ns = b"", 0, 0
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._begun_ns = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        data = self._tail + data
        at = 0
        for found in TOKEN.finditer(data):
            at = found.end()
            self._token(int(found[1]), now_ns)
        self._tail = data[max(at, len(data) - 64) :]
        if self._stop_after and self.tokens >= self._stop_after:
            self._end(now_ns)
            self._transport.abort()
        elif _END[0] in data:
            self._end(now_ns)
            self._transport.close()
        elif _END[1] in data or not (self._answered or data[9:12] == b"200"):
            self._fail(data.decode("utf-8", "replace"))
        self._answered = True

    def _token(self, sent_ns: int, now_ns: int) -> None:
        seen = self._seen
        if not self.tokens:
            seen.first.append(now_ns - self._begun_ns)
        else:
            seen.gaps.append(now_ns - self._last_ns)
        seen.transit.append(now_ns - sent_ns)
        self.tokens += 1
        self._last_ns = now_ns

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the stream ended early")

    def _end(self, now_ns: int) -> None:
        if not self.done.done():
            self.done.set_result(now_ns)

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


async def stream(url: str, request: bytes, seen: Seen, stop_after: int = 0) -> int:
    """One stream to its end, or its reader's; when that was, in ns."""
    host, port = url.removeprefix("http://").split(":")
    _, protocol = await asyncio.get_running_loop().create_connection(
        lambda: Stream(request, seen, stop_after), host, int(port)
    )
    return await protocol.done


async def streams(url: str, request: bytes, at_once: int, each: int, spread_s: float = 0.0) -> Seen:
    """`each` streams one after another, so many side by side, begun evenly within `spread_s`."""
    seen = Seen()

    async def worker(number: int) -> None:
        await asyncio.sleep(spread_s * number / at_once)
        for _ in range(each):
            await stream(url, request, seen)

    await asyncio.gather(*[worker(number) for number in range(at_once)])
    return seen


def stopped_reader(url: str, request: bytes) -> socket.socket:
    """A connection whose reader takes nothing, with a small window of its own."""
    host, port = url.removeprefix("http://").split(":")
    found = socket.create_connection((host, int(port)), timeout=10)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    found.sendall(request)
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Of at least two values, or the only one."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]
