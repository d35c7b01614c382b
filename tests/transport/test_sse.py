"""Server-sent events: whole events only, whatever the network does to the bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.transport.base import AnswerInvalid
from inferpool.transport.memory import MemoryTransport, Message
from inferpool.transport.sse import Comment, Event, SseParser, events


def parse(*parts: bytes, limit: int = 1 << 20) -> list[Event | Comment]:
    parser = SseParser(limit)
    return [found for part in parts for found in parser.feed(part)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [Event(b"a")]),
        (b"data:a\r\n\r\n", [Event(b"a")]),
        (b"data:  a\n\n", [Event(b" a")]),
        (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
        (b"data\n\n", [Event(b"")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [Event(b"a", b"x"), Event(b"b")]),
        (b": queued 3\n\n", [Comment(b"queued 3")]),
        (b":\n\n", [Comment(b"")]),
        (b"data: a\n: beat\ndata: b\n\n", [Comment(b"beat"), Event(b"a\nb")]),
        (b"id: 1\nretry: 5\nunknown: x\n\n", []),
        (b"event: lost\n\ndata: a\n\n", [Event(b"a")]),
        (b"\n\n\n", []),
        (b"data: a\n", []),
        (b"data: a", []),
    ],
)
def test_events(stream: bytes, expected: list[Event | Comment]) -> None:
    assert parse(stream) == expected


line = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b": beat",
        b":",
        b"event: e",
        b"id: 1",
        b"",
        b"",
        b"data: \xff",
    ]
)
stream = st.lists(st.tuples(line, st.sampled_from([b"\n", b"\r\n"])), max_size=30).map(
    lambda lines: b"".join(text + end for text, end in lines)
)


@given(stream, st.lists(st.integers(0, 300), max_size=20))
def test_any_split_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert parse(*parts) == parse(data)
    assert parse(*(bytes((byte,)) for byte in data)) == parse(data)


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 50, b"data: xxxxxxxx\n", b"x" * 9])
def test_an_event_is_limited(piece: bytes) -> None:
    parser = SseParser(100)
    with pytest.raises(AnswerInvalid):
        for _ in range(20):
            parser.feed(piece)


def test_the_limit_is_per_event() -> None:
    parser = SseParser(100)
    for _ in range(100):
        assert parser.feed(b": beat\ndata: xxxxxxxxxxxxxxx\n\n") == [
            Comment(b"beat"),
            Event(b"x" * 15),
        ]
    assert not parser.pending
    parser.feed(b"data: half")
    assert parser.pending


def test_heartbeats_alone_never_fill_it() -> None:
    parser = SseParser(100)
    for _ in range(1000):
        assert parser.feed(b": prefill 40\n") == [Comment(b"prefill 40")]


async def test_events_of_an_answer() -> None:
    async def app(scope: Message, receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b": up\n", b"\nda", b"ta: 1\n\ndata: 2\n\n", b"data: cut"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    transport = MemoryTransport(app)
    answer = await transport.request("GET", "/", [], timeout_s=1)
    assert [found async for found in events(answer)] == [Comment(b"up"), Event(b"1"), Event(b"2")]
    await transport.close()
