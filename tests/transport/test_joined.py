"""The server's writes: one for a small answer, and none that waits for a stream's first word."""

from __future__ import annotations

import asyncio

import pytest

from inferpool.daemon import http
from inferpool.daemon.http import _Joined

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire(asyncio.Transport):
    """Notes what was written, and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.sent.append(b"(closed)")

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.sent[-1:] == [b"(closed)"]


async def test_head_and_body_are_one_write() -> None:
    wire = Wire()
    joined = _Joined(wire, asyncio.get_running_loop())
    joined.write(HEAD)
    assert wire.sent == []
    joined.write(b"ok")
    assert wire.sent == [HEAD + b"ok"]
    await asyncio.sleep(0)
    assert wire.sent == [HEAD + b"ok"]


async def test_the_head_of_a_stream_leaves_before_its_first_word() -> None:
    wire = Wire()
    joined = _Joined(wire, asyncio.get_running_loop())
    joined.write(HEAD)
    await asyncio.sleep(0)
    assert wire.sent == [HEAD]
    joined.write(b"a")
    joined.write(b"b")
    assert wire.sent == [HEAD, b"a", b"b"]


async def test_what_is_kept_is_sent_before_the_end() -> None:
    wire = Wire()
    joined = _Joined(wire, asyncio.get_running_loop())
    joined.write(HEAD)
    joined.close()
    assert wire.sent == [HEAD, b"(closed)"]
    assert joined.is_closing()


class Slow(Wire):
    """Its reader takes `takes` bytes each time that somebody looks."""

    def __init__(self, left: int, takes: int) -> None:
        super().__init__()
        self.left, self.takes, self.over = left, takes, asyncio.Event()

    def abort(self) -> None:
        self.sent.append(b"(cut)")
        self.over.set()

    def get_write_buffer_size(self) -> int:
        left = self.left
        self.left = max(0, left - self.takes)
        if not left:
            self.over.set()
        return left


async def test_a_slow_reader_gets_the_end_and_one_that_stopped_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "READER_STALL_S", 0.001)
    slow, stopped = Slow(5, 1), Slow(5, 0)
    for wire in (slow, stopped):
        _Joined(wire, asyncio.get_running_loop()).close()
    async with asyncio.timeout(20):
        await slow.over.wait()
        await stopped.over.wait()
    assert slow.sent == [b"(closed)"]
    assert stopped.sent == [b"(closed)", b"(cut)"]
