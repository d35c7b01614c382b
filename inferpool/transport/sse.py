"""Server-sent events, read as they come: bytes in, whole events and comments out.

Lines end with LF or CRLF (a lone CR, which the standard allows and no model server sends, does
not end a line). `id` and `retry` are dropped: nobody here reconnects to a stream.
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

from inferpool.transport.base import AnswerInvalid, Response

# One event is one token, at most a whole answer with its log-probabilities (30 kB per 64 tokens).
MAX_EVENT_BYTES: Final = 1024 * 1024


class Event(NamedTuple):
    """A whole event. `data`: its data lines, joined by line feeds; `name`: mostly empty."""

    data: bytes
    name: bytes = b""


class Comment(NamedTuple):
    """A comment line, such as a heartbeat, without its colon and first space."""

    text: bytes


class SseParser:
    """An incremental parser: any split of the stream gives the same events in the same order."""

    __slots__ = ("_data", "_max_bytes", "_name", "_size", "_tail")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._tail = bytearray()  # the line that has no end yet
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._max_bytes = max_event_bytes

    @property
    def pending(self) -> bool:
        """Whether an unfinished event is held; at the end of a stream: it was cut."""
        return bool(self._tail or self._data)

    def feed(self, data: bytes) -> list[Event | Comment]:
        """Take what arrived; return what became whole. Raises AnswerInvalid over the limit."""
        if data.endswith(b"\n\n") and not (self._tail or self._data or self._name):
            usual = _usual(data)
            if usual is not None and len(data) <= self._max_bytes:
                return usual
        if b"\n" not in data:  # joined once, at the line's end: no quadratic copying
            self._tail += data
            self._count(len(data))
            return []
        if self._tail:
            data = bytes(self._tail) + data
            self._size -= len(self._tail)
            self._tail.clear()
        *lines, tail = data.split(b"\n")
        found: list[Event | Comment] = []
        for line in lines:
            if line[-1:] == b"\r":
                line = line[:-1]
            if line:
                self._count(len(line))
                self._line(line, found)
            else:
                self._blank(found)
        self._tail += tail
        self._count(len(tail))
        return found

    def _line(self, line: bytes, found: list[Event | Comment]) -> None:
        field, colon, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            self._data.append(value)
        elif not field and colon:
            self._size -= len(line)
            found.append(Comment(value))
        elif field == b"event":
            self._name = value

    def _blank(self, found: list[Event | Comment]) -> None:
        data = self._data
        if data:
            found.append(Event(data[0] if len(data) == 1 else b"\n".join(data), self._name))
            self._data = []
        self._name, self._size = b"", 0

    def _count(self, more: int) -> None:
        self._size += more
        if self._size > self._max_bytes:
            raise AnswerInvalid(f"an event is over {self._max_bytes} bytes")


def _usual(data: bytes) -> list[Event | Comment] | None:
    """Whole events of one line of data each, as model servers send them; None for all else."""
    if b"\r" in data:
        return None
    found: list[Event | Comment] = []
    for event in data[:-2].split(b"\n\n"):
        if not event.startswith(b"data: ") or b"\n" in event:
            return None
        found.append(Event(event[6:]))
    return found


async def events(response: Response) -> AsyncGenerator[Event | Comment, None]:
    """The events and comments of an answer as they arrive; an unfinished last one is dropped."""
    parser = SseParser()
    async for chunk in response.chunks():
        for found in parser.feed(chunk):
            yield found
