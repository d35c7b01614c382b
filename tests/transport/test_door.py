"""Our HTTP server against uvicorn's own: the same bytes in, the same bytes out."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from inferpool.daemon.http import Http
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import PIPELINED_MAX
from inferpool.transport.asgi import ClientLeft, HttpRequest, Receive, Scope, Send
from inferpool.transport.connection import MAX_HEAD_BYTES, MAX_HEADERS

LIMIT = 200
CASES = 1500
METHODS = (b"GET", b"POST", b"POST", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"BREW")
PATHS = (
    *(b"/json", b"/json", b"/json?a=b&c", b"/stream", b"/twice", b"/empty", b"/bad", b"/fail"),
    *(b"/%6Ason", b"/js%20on?x=%3F", b"//json", b"/json#part", b"http://here/json", b"*", b"/\xc3"),
    *(b"/none", b"/late", b"/json?", b"/a?b?c", b"/close"),
)
VERSIONS = (b"1.1", b"1.1", b"1.1", b"1.1", b"1.0", b"2.0", b"1.2")
HEADERS = (
    *(b"Host: here", b"X-One: 1", b"x-one: 2", b"Connection: close", b"Connection: keep-alive"),
    *(b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: upgrade", b"Cookie: \xff"),
    *(b"Content-Encoding: gzip", b"Empty:", b"Bad Name: x", b"Origin: http://there"),
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in each way that a role does, and tells what it was asked."""
    request = HttpRequest(scope, receive, send)
    try:
        if request.path == "/late":
            await asyncio.sleep(0)
        body = await request.body(LIMIT)
        told = {
            "method": request.method,
            "path": request.path,
            "query": request.query.decode(),
            "headers": {k.decode(): v.decode("latin-1") for k, v in request.headers.items()},
            "body": body.decode("latin-1"),
        }
        if request.path == "/stream":
            await request.start([(b"content-type", b"text/plain")])
            await request.send(body)
            await request.send(b"more")
            await request.end()
        elif request.path == "/empty":
            await request.answer(204, b"", [])
        elif request.path == "/bad":
            await request.answer(200, b"", [(b"x-bad", b"a\r\nx-injected: b")])
        elif request.path == "/close":
            await request.answer(200, b"", [(b"x-nul", b"\0")])
        elif request.path == "/fail":
            raise LookupError("the app's own fault")
        elif request.path == "/none":
            return
        else:
            await request.answer_json(told)
            if request.path == "/twice":
                await request.answer_json(told)
    except BadRequest as error:
        await request.answer_json(error.openai(), error.status)
    except ClientLeft:
        return


class Wire(asyncio.Transport):
    """What a server writes, and whether it closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written, self.closed, self.writes, self.paused = b"", False, 0, False

    def write(self, data: Any) -> None:
        """Keep it."""
        if not self.closed:
            self.written += bytes(data)
            self.writes += 1

    def writelines(self, data: Any) -> None:
        """Keep them."""
        self.write(b"".join(data))

    def close(self) -> None:
        """Be closed."""
        self.closed = True

    def abort(self) -> None:
        """Be closed."""
        self.closed = True

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def pause_reading(self) -> None:
        """Noted."""
        self.paused = True

    def resume_reading(self) -> None:
        """Noted."""
        self.paused = False


def config() -> uvicorn.Config:
    return uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, limit_concurrency=100, ws="none"
    )


async def served(kind: type[HttpToolsProtocol], chunks: list[bytes]) -> tuple[Wire, int]:
    """What a server says to these bytes, and the requests that it counted."""
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    protocol = kind(config=config(), server_state=state, app_state={})
    wire = Wire()
    protocol.connection_made(wire)
    for chunk in chunks:
        if wire.closed or protocol.parser is None:
            break
        protocol.data_received(chunk)
        await asyncio.sleep(0)
    for _ in range(12):
        await asyncio.sleep(0)
    closed = wire.closed
    protocol.connection_lost(None)
    if state.tasks:
        await asyncio.wait(state.tasks)
    wire.closed = closed
    return wire, state.total_requests


def request(random: Random) -> bytes:
    method, path, version = (random.choice(of) for of in (METHODS, PATHS, VERSIONS))
    headers = random.sample(HEADERS, random.randrange(4))
    body = b"x" * random.choice((0, 0, 3, 50, LIMIT, LIMIT + 1))
    if random.random() < 0.2:
        headers.append(b"Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif body or random.random() < 0.5:
        headers.append(b"Content-Length: %d" % (len(body) + random.choice((0, 0, 0, 0, 1, -1))))
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, path, version), *headers, b"", body])


def split(random: Random, data: bytes) -> list[bytes]:
    ends = sorted(random.sample(range(len(data)), min(len(data), random.choice((0, 0, 1, 3)))))
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True) if a < b]


async def test_the_same_bytes_get_the_same_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    random, direct = Random(7), 0
    for case in range(CASES):
        data = b"".join(request(random) for _ in range(random.choice((1, 1, 1, 2, 3))))
        if random.random() < 0.2:
            at = random.randrange(len(data))
            data = data[:at] + random.randbytes(random.randrange(3)) + data[at + 1 :]
        chunks = split(random, data)
        ours, count = await served(Http, chunks)
        theirs, expected = await served(HttpToolsProtocol, chunks)
        seen = (ours.written, ours.closed, ours.paused, count)
        assert seen == (theirs.written, theirs.closed, theirs.paused, expected), (case, chunks)
        direct += ours.writes < theirs.writes
    assert direct > CASES / 4, "most are answered by one write"


async def test_a_whole_answer_is_one_write_also_for_the_next_request() -> None:
    ask = b"POST /json HTTP/1.1\r\nhost: here\r\ncontent-length: 3\r\n\r\nabc"
    wire, count = await served(Http, [ask, ask, ask])
    assert (wire.writes, count, wire.closed) == (3, 3, False)
    assert wire.written.count(b"HTTP/1.1 200 OK\r\ndate: today\r\n") == 3


async def test_an_answer_that_a_slow_reader_blocks_waits_for_it() -> None:
    ask = b"POST /json HTTP/1.1\r\nhost: here\r\ncontent-length: 3\r\n\r\nabc"
    state, wire = ServerState(), Wire()
    protocol = Http(config=config(), server_state=state, app_state={})
    protocol.connection_made(wire)
    protocol.pause_writing()
    protocol.data_received(ask)
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.written == b""
    protocol.resume_writing()
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
    protocol.connection_lost(None)


HEAD = b"POST /json HTTP/1.1\r\n"
ENDLESS = {
    "headers": (HEAD, b"a: b\r\n" * 100),
    "one header": (HEAD + b"a: ", b"b" * 600),
    "a path": (b"GET /", b"b" * 600),
    "a chunk's extension": (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"b" * 600),
    "trailers": (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 100),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_has_no_end_is_cut(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    first, more = ENDLESS[name]
    protocol, wire = Http(config=config(), server_state=ServerState(), app_state={}), Wire()
    protocol.connection_made(wire)
    protocol.data_received(first)
    sent = 0
    while not wire.closed and sent < 10 * MAX_HEAD_BYTES:
        protocol.data_received(more)
        sent += len(more)
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    assert MAX_HEAD_BYTES - 2 * len(more) < sent < MAX_HEAD_BYTES + 2 * len(more)


async def test_a_body_in_many_pieces_is_no_head(caplog: pytest.LogCaptureFixture) -> None:
    body = b"1\r\nx\r\n" * 100
    chunks = [HEAD + b"transfer-encoding: chunked\r\n\r\n", *[body] * 200, b"0\r\n\r\n"]
    assert sum(map(len, chunks)) > MAX_HEAD_BYTES
    for kind in (Http, HttpToolsProtocol):
        wire, count = await served(kind, chunks)
        assert (wire.closed, count) == (False, 1)
        assert b"body_too_large" in wire.written


async def test_few_requests_wait_behind_one_and_have_few_headers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    ask = b"GET /late HTTP/1.1\r\n\r\n"
    for most in (PIPELINED_MAX, PIPELINED_MAX + 1):
        protocol, wire = Http(config=config(), server_state=ServerState(), app_state={}), Wire()
        protocol.connection_made(wire)
        protocol.data_received(ask * (1 + most))
        assert wire.closed == (most > PIPELINED_MAX)
        assert len(protocol.pipeline) == PIPELINED_MAX
        protocol.connection_lost(None)
    for most in (MAX_HEADERS, MAX_HEADERS + 1):
        head = b"GET /json HTTP/1.1\r\n%b\r\n" % (b"a: b\r\n" * most)
        wire, count = await served(Http, [head])
        assert (wire.closed, count) == (most > MAX_HEADERS, int(most <= MAX_HEADERS))


class Ending(Wire):
    """Tells of its end."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    def close(self) -> None:
        """Be closed."""
        super().close()
        self.over.set()


SLOW = {
    "nothing": b"",
    "a head": b"POST /json HTTP/1.1\r\nhost: here\r\na: ",
    "the body of a request that was refused": HEAD + b"content-length: 1000000\r\n\r\n",
}


@pytest.mark.parametrize("name", SLOW)
async def test_bytes_alone_keep_no_connection(name: str) -> None:
    protocol, wire = Http(config=config(), server_state=ServerState(), app_state={}), Ending()
    protocol.timeout_keep_alive = 0.05  # type: ignore[assignment]
    protocol.connection_made(wire)

    async def trickle() -> None:
        while not wire.closed:
            if SLOW[name]:
                protocol.data_received(b"b")
            await asyncio.sleep(0.01)

    if SLOW[name]:
        protocol.data_received(SLOW[name])
    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(20):
        await wire.over.wait()
        await trickling
    protocol.connection_lost(None)


async def test_a_whole_head_has_all_the_time_for_its_answer() -> None:
    protocol, wire = Http(config=config(), server_state=ServerState(), app_state={}), Wire()
    protocol.connection_made(wire)
    assert protocol.timeout_keep_alive_task is not None
    protocol.data_received(HEAD + b"content-length: 3\r\n\r\n")
    assert protocol.timeout_keep_alive_task is None
    protocol.data_received(b"abc")
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert protocol.timeout_keep_alive_task is not None
    protocol.data_received(b"GET /late HTT")
    assert protocol.timeout_keep_alive_task is not None
    protocol.data_received(b"P/1.1\r\n\r\n")
    assert protocol.timeout_keep_alive_task is None
    protocol.connection_lost(None)


async def test_a_caller_that_leaves_ends_also_what_others_wait_behind() -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope, receive, send)
        await request.body(LIMIT)
        begun.set()
        await request.disconnected()
        left.set()

    made = uvicorn.Config(waits, lifespan="off", log_config=None, access_log=False, ws="none")
    made.load()
    protocol = Http(config=made, server_state=ServerState(), app_state={})
    protocol.connection_made(Wire())
    protocol.data_received(b"GET / HTTP/1.1\r\n\r\n" * 2)
    async with asyncio.timeout(20):
        await begun.wait()
        protocol.connection_lost(None)
        await left.wait()
