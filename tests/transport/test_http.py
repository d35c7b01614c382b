"""The HTTP client against raw servers that answer well, badly, slowly or not at all."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol.errors import Refused
from inferpool.transport.answer import HIGH_WATER_BYTES
from inferpool.transport.base import (
    AnswerInvalid,
    AnswerTimeout,
    ConnectFailed,
    ConnectionCut,
    Transport,
)
from inferpool.transport.connection import MAX_HEAD_BYTES, READ_BYTES, Connection
from inferpool.transport.http import HttpTransport, open_transport
from inferpool.transport.tls import spki_sha256

DATA = Path(__file__).parent / "data"
# of `openssl x509 -pubkey | openssl pkey -pubin -outform DER | sha256sum`
PIN = bytes.fromhex("7eacc620b180da628e4f5f8edbff385eb437962f13c71600d7c0b854b7323015")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Handler = Callable[["Peer"], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """The next request's head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return head + await self.reader.readexactly(int(line.split(b":")[1]))
        return head

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()


class Server:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._handler(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(handler)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        await server.stop()
        await listener.wait_closed()


@asynccontextmanager
async def client(url: str, **options: object) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(url, **options)  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Connection, Callable[[bytes], None]]]:
    """A connection whose bytes come from the test, each piece in a step of its own."""
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection(lambda _: None, lambda _: None), sock=near
    )

    def feed(data: bytes) -> None:
        connection.get_buffer(-1)[: len(data)] = data
        connection.buffer_updated(len(data))

    try:
        yield connection, feed
    finally:
        connection.abort()
        await connection.gone.wait()
        far.close()


def answering(*answers: bytes, close: bool = True) -> Handler:
    async def handler(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            await peer.say(answer)
        if not close:
            await peer.reader.read()

    return handler


async def always_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.say(OK)


async def get(transport: Transport, path: str = "/", timeout_s: float = 5) -> tuple[int, bytes]:
    answer = await transport.request("GET", path, [], timeout_s=timeout_s)
    return answer.status, await answer.read(1 << 20)


async def post(transport: Transport, body: bytes = b"{}") -> tuple[int, bytes]:
    answer = await transport.request("POST", "/v1", [], body, timeout_s=5)
    return answer.status, await answer.read(1 << 20)


# -- whole answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, (200, b"ok")),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            (200, b"ok"),
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            b"1;name=value\r\no\r\n1\r\nk\r\n0\r\nreceipt: abc\r\n\r\n",
            (200, b"ok"),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, b"until the end")),
        (b"HTTP/1.0 200 OK\r\n\r\nold", (200, b"old")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", (500, b"")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\na: b\r\n\r\n" + OK, (200, b"ok")),
    ],
)
async def test_whole_answers(answer: bytes, expected: tuple[int, bytes]) -> None:
    async with serving(answering(answer)) as server, client(server.url) as transport:
        assert await get(transport) == expected


async def test_request_on_the_wire() -> None:
    seen: list[bytes] = []

    async def handler(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.say(OK)

    async with serving(handler) as server, client(server.url + "/base/") as transport:
        headers = [(b"accept", b"text/event-stream")]
        answer = await transport.request("POST", "/v1?x=1", headers, b"{}", timeout_s=5)
        assert answer.header(b"content-length") == b"2"
        assert answer.header(b"receipt") is None
        host = server.url.removeprefix("http://").encode()
        assert seen == [
            b"POST /base/v1?x=1 HTTP/1.1\r\nhost: " + host + b"\r\naccept: text/event-stream\r\n"
            b"content-length: 2\r\n\r\n{}"
        ]
        await answer.close()


async def test_head_has_no_body() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    async with serving(answering(answer, close=False)) as server, client(server.url) as transport:
        found = await transport.request("HEAD", "/", [], timeout_s=5)
        assert await found.read(10) == b""


@pytest.mark.parametrize(
    "header",
    [(b"a", b"b\r\nc: d"), (b"a", b"b\nc"), (b"a\r\nb", b"c"), (b"a", b"\0"), (b"host", b"x")],
)
async def test_header_smuggling_is_refused(header: tuple[bytes, bytes]) -> None:
    async with client("http://127.0.0.1:9") as transport:
        with pytest.raises(ValueError, match=r"line end|itself"):
            await transport.request("GET", "/", [header], timeout_s=1)
        with pytest.raises(ValueError, match="space"):
            await transport.request("GET", "/a b", [], timeout_s=1)


# -- answers that are not whole ------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsho",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ntrail",
    ],
)
async def test_cut_answers(answer: bytes) -> None:
    async with serving(answering(answer)) as server, client(server.url) as transport:
        with pytest.raises(ConnectionCut):
            await get(transport)
        assert server.connections == 1  # a fresh connection is never retried


async def test_reset_in_the_middle() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await peer.reader.readexactly(1)

    async with serving(handler) as server, client(server.url) as transport:
        answer = await transport.request("GET", "/", [], timeout_s=5)
        assert await anext(answer.chunks()) == b"half"
        await server.stop()  # closes: without a length that is a clean end
        with pytest.raises(StopAsyncIteration):
            await anext(answer.chunks())

    async def resetting(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await release.wait()
        peer.reset()

    release = asyncio.Event()
    async with serving(resetting) as server, client(server.url) as transport:
        answer = await transport.request("GET", "/", [], timeout_s=5)
        assert await anext(answer.chunks()) == b"half"
        release.set()
        with pytest.raises(ConnectionCut):
            await anext(answer.chunks())


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
BIG = b"x" * (MAX_HEAD_BYTES + READ_BYTES)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        CHUNKED + b"content-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"\r\nzz\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"\r\n0\r\ntrailer: " + BIG,
        CHUNKED + b"\r\n2;" + BIG,
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: " + BIG,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=range(12),
)
async def test_invalid_answers(answer: bytes) -> None:
    async with serving(answering(answer, close=False)) as server, client(server.url) as transport:
        with pytest.raises(AnswerInvalid):
            await get(transport)


async def test_read_is_limited() -> None:
    endless = CHUNKED + b"\r\n" + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 200
    async with serving(answering(endless, close=False)) as server, client(server.url) as transport:
        answer = await transport.request("GET", "/", [], timeout_s=5)
        with pytest.raises(AnswerInvalid):
            await answer.read(100_000)


async def test_silence_is_a_timeout() -> None:
    async with serving(answering(b"", close=False)) as server, client(server.url) as transport:
        with pytest.raises(AnswerTimeout) as caught:
            await get(transport, timeout_s=0.05)
        assert caught.value.sent


async def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused
        async with client(f"http://127.0.0.1:{held.getsockname()[1]}") as transport:
            with pytest.raises(ConnectFailed) as caught:
                await get(transport)
            assert not caught.value.sent


# -- the pool ------------------------------------------------------------------------------------


async def test_connections_are_kept_and_bounded() -> None:
    async with serving(always_ok) as server, client(server.url, max_idle=2) as transport:
        for _ in range(5):
            assert await get(transport) == (200, b"ok")
        assert server.connections == 1
        await asyncio.gather(*(get(transport) for _ in range(6)))
        assert server.connections == 6
        await asyncio.gather(*(get(transport) for _ in range(6)))
        assert server.connections == 10  # two had been kept


async def test_too_many_connections() -> None:
    async with (
        serving(answering(b"", close=False)) as server,
        client(server.url, max_connections=2) as transport,
    ):
        tasks = [asyncio.create_task(get(transport, timeout_s=0.2)) for _ in range(3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [type(result) for result in results]
        assert kinds.count(ConnectFailed) == 1
        assert kinds.count(AnswerTimeout) == 2


async def test_idle_connections_are_closed() -> None:
    ended = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.reader.read()
        ended.set()

    async with serving(handler) as server, client(server.url, idle_s=0.05) as transport:
        await get(transport)
        await asyncio.wait_for(ended.wait(), 5)


async def test_connection_close_is_obeyed() -> None:
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    async with (
        serving(answering(answer, OK, close=False)) as server,
        client(server.url) as transport,
    ):
        await get(transport)
        await get(transport)
    assert server.connections == 2


async def test_post_skips_a_connection_that_the_server_closed() -> None:
    """Also where this loop has not yet been told: the socket itself is asked before the write."""
    requests: list[bytes] = []
    peers: list[Peer] = []

    async def handler(peer: Peer) -> None:
        peers.append(peer)
        while True:
            requests.append(await peer.request())
            await peer.say(OK)

    async with serving(handler) as server, client(server.url) as transport:
        await post(transport)
        held = peers[0].writer.get_extra_info("socket")
        with socket.socket(fileno=socket.dup(held.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)  # no loop runs between this and the next request
        assert await post(transport) == (200, b"ok")
        assert server.connections == 2
        assert len(requests) == 2


async def test_only_safe_methods_are_sent_twice() -> None:
    requests: list[bytes] = []

    async def once_each(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.say(OK)
        requests.append(await peer.request())  # and ends without a byte

    async with serving(once_each) as server, client(server.url) as transport:
        await get(transport)
        assert await get(transport) == (200, b"ok")  # sent again on a new connection
        assert len(requests) == 3
        with pytest.raises(ConnectionCut):
            await post(transport)  # it may have been processed: the caller decides
        assert len(requests) == 4


async def test_no_retry_once_a_byte_came() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.say(b"H")

    async with serving(handler) as server, client(server.url) as transport:
        await get(transport)
        with pytest.raises(ConnectionCut):
            await get(transport)
        assert server.connections == 1


@pytest.mark.parametrize("extra", [OK, b"HTTP/1.1 2", b"junk"])
async def test_what_nobody_asked_for_is_not_an_answer(extra: bytes) -> None:
    async with (
        serving(answering(OK + extra, OK, close=False)) as server,
        client(server.url) as transport,
    ):
        assert await get(transport, "/first") == (200, b"ok")
        await get(transport, "/second")
        assert server.connections == 2


async def test_early_answer_to_a_long_request() -> None:
    async def handler(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await release.wait()

    release = asyncio.Event()
    async with serving(handler) as server, client(server.url) as transport:
        assert await post(transport, b"x" * (16 << 20)) == (413, b"big")
        release.set()
        second = asyncio.create_task(post(transport, b"{}"))
        assert await second == (413, b"big")
        assert server.connections == 2


# -- backpressure, leaving -----------------------------------------------------------------------


async def test_a_reader_that_stops_holds_little() -> None:
    total = 64 << 20
    written = 0

    async def handler(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while written < total:
            await peer.say(b"x" * 65536)
            written += 65536
            progress.set()

    progress = asyncio.Event()
    async with serving(handler) as server, client(server.url) as transport:
        answer = await transport.request("GET", "/", [], timeout_s=5)
        while True:  # until the server has been made to wait
            progress.clear()
            try:
                await asyncio.wait_for(progress.wait(), 0.2)
            except TimeoutError:
                break
        assert answer._size <= HIGH_WATER_BYTES + READ_BYTES <= 256 * 1024
        assert written < total // 2
        size = 0
        async for chunk in answer.chunks():
            size += len(chunk)
        assert size == total


@pytest.mark.parametrize("how", ["close", "cancel", "transport"])
async def test_leaving_is_seen_at_once(how: str) -> None:
    left, asked = asyncio.Event(), asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        if how != "cancel":
            await peer.say(CHUNKED + b"\r\n1\r\nx\r\n")
        asked.set()
        with suppress(ConnectionError):
            await peer.reader.read()
        left.set()

    async with serving(handler) as server, client(server.url) as transport:
        task = asyncio.create_task(transport.request("GET", "/", [], timeout_s=5))
        await asked.wait()
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            answer = await task
            await (answer.close() if how == "close" else transport.close())
            with pytest.raises(ConnectionCut):
                await answer.read(10)
        await asyncio.wait_for(left.wait(), 1)


async def test_cancelling_late_does_not_hurt_the_next_caller() -> None:
    """A cancel in the very round in which the answer came whole: the connection is free by then,
    and the next caller may have started on it before the cancelled task learns of anything."""
    async with wired() as (connection, feed):
        first = asyncio.create_task(connection.exchange("GET", b"GET /1\r\n\r\n", b"", 5))
        await asyncio.sleep(0)
        feed(OK)
        first.cancel()
        second = connection.exchange("GET", b"GET /2\r\n\r\n", b"", 5)
        second.send(None)  # its first step, now
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        assert not connection.closed
        feed(OK)
        with pytest.raises(StopIteration) as returned:
            second.send(None)
        assert await returned.value.value.read(10) == b"ok"


# -- TLS -----------------------------------------------------------------------------------------


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "server.pem", DATA / "server.key")
    return context


async def test_pinned_key() -> None:
    async with (
        serving(always_ok, server_tls()) as server,
        client(server.url, tls_spki=PIN) as transport,
    ):
        for _ in range(3):
            assert await post(transport, b"x" * 100_000) == (200, b"ok")
        assert server.connections == 1


async def test_another_key_gets_no_byte() -> None:
    got: list[bytes] = []

    async def handler(peer: Peer) -> None:
        got.append(await peer.reader.read())

    other = sha256(b"other").digest()
    async with (
        serving(handler, server_tls()) as server,
        client(server.url, tls_spki=other) as mistaken,
        client(server.url) as trusting,  # no pin: the system's authorities
    ):
        with pytest.raises(ConnectFailed, match="another key"):
            await post(mistaken)
        with pytest.raises(ConnectFailed, match="certificate"):
            await post(trusting)
    assert b"".join(got) == b""


async def test_tls_with_a_peer_that_does_not_speak_it() -> None:
    async def silent(peer: Peer) -> None:
        await peer.reader.read()

    async with serving(silent) as server:
        url = server.url.replace("http:", "https:")
        async with client(url, tls_spki=PIN, connect_timeout_s=0.2) as transport:
            with pytest.raises(ConnectFailed, match="in time"):
                await post(transport)
    async with serving(answering(b"plain")) as server:
        url = server.url.replace("http:", "https:")
        async with client(url, tls_spki=PIN, connect_timeout_s=0.5) as transport:
            with pytest.raises(ConnectFailed):
                await post(transport)


def test_spki_of_a_certificate() -> None:
    certificate = ssl.PEM_cert_to_DER_cert((DATA / "server.pem").read_text())
    assert spki_sha256(certificate) == PIN
    for cut in range(0, len(certificate) - 200, 7):
        with pytest.raises(ValueError, match="certificate"):
            spki_sha256(certificate[:cut])


@pytest.mark.parametrize(
    ("url", "pin"),
    [
        ("http://example.org", None),
        ("http://localhost:80", None),
        ("ftp://127.0.0.1", None),
        ("https://", None),
        ("https://user:pw@example.org", None),
        ("https://example.org/?a=b", None),
        ("https://example.org:99999", None),
        ("https://example.org", b"short"),
        ("http://127.0.0.1", PIN),
    ],
)
def test_addresses_that_are_refused(url: str, pin: bytes | None) -> None:
    with pytest.raises(Refused) as caught:
        open_transport(url, pin)
    assert caught.value.code == "bad_config"


# -- any split of the bytes ----------------------------------------------------------------------

SAMPLES = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nA: b\r\n\r\nhello world", b"hello world"),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nt: u\r\n\r\n",
        b"hello world",
    ),
]


@given(st.sampled_from(SAMPLES), st.lists(st.integers(0, 150), max_size=12))
def test_any_split_gives_the_same_answer(sample: tuple[bytes, bytes], cuts: list[int]) -> None:
    stream, expected = sample

    async def run() -> bytes:
        async with wired() as (connection, feed):
            task = asyncio.create_task(connection.exchange("GET", b"GET /\r\n\r\n", b"", 5))
            await asyncio.sleep(0)
            edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
            for start, end in itertools.pairwise(edges):
                feed(stream[start:end])
            return await (await task).read(100)

    assert asyncio.run(run()) == expected
