"""Retries: the same request sent again is answered once more, and paid once (design, section 9).

A request is told by its key and `Idempotency-Key`, else by its key and body where an SDK counts
its retries. A twin that still runs is joined; one that ended well is replayed from memory; one
whose caller left before it was told anything is served anew, and what it cost is not billed.
Answers lie in memory only, a bounded number of bytes for a bounded time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from inferpool.clock import Clock
from inferpool.gateway.admission import Caller
from inferpool.protocol import headers
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import (
    REPLAY_BYTES_MAX,
    REPLAY_MS,
    REPLAY_ONE_BYTES_MAX,
    REPLAYS_MAX,
    RETRIES_FORGIVEN_MAX,
    TEXT_MAX,
)
from inferpool.transport.asgi import HttpRequest, Message, Receive, Send

_OVERHEAD: Final = 1024  # bytes that an entry takes beside its answer
Key = tuple[bytes, bytes]


@dataclass(slots=True)
class Twin:
    """One request and what was answered so far. Messages are ASGI's."""

    body_hash: bytes
    kept: bool  # its caller promised to come back: it goes on without anybody who reads
    begun_ms: int
    messages: list[Message] = field(default_factory=list)
    size: int = _OVERHEAD
    running: bool = True
    started: bool = False
    whole: bool = False  # ended well
    followers: int = 0
    too_long: bool = False  # or forgotten for want of room
    sought: bool = False  # whether another process has it is being asked
    left: bool = False  # its caller hung up
    ending: bool = False  # and nobody else is there: nobody can join it any more
    client_ids: list[str] = field(default_factory=list)
    forgiven: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int:
        """Of the answer; 0 before it began."""
        return int(self.messages[0]["status"]) if self.messages else 0

    def note(self, message: Message) -> int:
        """Keep a part of the answer; returns the bytes that it takes."""
        added = len(message.get("body", b""))
        self.started = True
        self.size += added
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.whole = self.status == 200
        self.wake()
        return added

    def wake(self) -> None:
        """Tell those who follow."""
        self.news.set()
        self.news = asyncio.Event()


def may_repeat(request: HttpRequest) -> bool:
    """Whether anything tells a request from others: only then can it have a twin."""
    sent = request.headers
    return headers.IDEMPOTENCY_KEY in sent or headers.SDK_RETRY_COUNT in sent


@dataclass(slots=True)
class Replays:
    """The requests of the last two minutes that may come again."""

    clock: Clock
    forgive: Callable[[Caller, list[str]], Awaitable[None]]  # bill nothing for these requests
    elsewhere: Callable[[HttpRequest, bytes], Awaitable[bool]] | None = None  # other processes
    _twins: dict[Key, Twin] = field(default_factory=dict)  # oldest first
    size: int = 0

    async def serve(
        self,
        request: HttpRequest,
        body: bytes,
        caller: Caller,
        serve: Callable[[HttpRequest], Awaitable[None]],
    ) -> None:
        """Serve a request, or give it the answer of its twin. Raises BadRequest(duplicate_request)
        where a key comes with another body."""
        key, retried, kept = self._key(request, body, caller)
        if key is None:
            await serve(request)
            return
        self._sweep()
        body_hash = sha256(request.path.encode() + b"\0" + body)
        twin = self._twins.get(key)
        if twin is not None and twin.body_hash != body_hash:
            raise BadRequest(
                "This Idempotency-Key came with another request before.", code="duplicate_request"
            )
        forgiven = 0
        if twin is not None and (kept or retried) and not twin.too_long:
            if twin.whole or (twin.running and not twin.ending):
                await self._follow(twin, request)
                return
            if not twin.started and twin.forgiven < RETRIES_FORGIVEN_MAX:
                forgiven = twin.forgiven + 1
                await self.forgive(caller, twin.client_ids)
        fresh = Twin(body_hash, kept, self.clock.now_ms())
        elsewhere = self.elsewhere
        if twin is None and elsewhere is not None and (kept or retried):
            # Known here before the others are asked: of two that ask at once, one yields.
            fresh.sought = True

            async def there_or_here(through: HttpRequest) -> None:
                if not await elsewhere(through, body):
                    fresh.sought = False
                    await serve(through)

            await self._record(key, fresh, request, caller, there_or_here, forgiven)
        else:
            await self._record(key, fresh, request, caller, serve, forgiven)

    async def serve_neighbour(
        self, request: HttpRequest, body: bytes, caller: Caller, *, yields: bool
    ) -> bool:
        """Give another process the answer of a request's twin here; False where there is none, or
        where that is being sought too and this process is the one that `yields`."""
        key, _, _ = self._key(request, body, caller)
        self._sweep()
        twin = self._twins.get(key) if key is not None else None
        if twin is None or twin.too_long or (twin.sought and yields):
            return False
        if twin.body_hash != sha256(request.path.encode() + b"\0" + body):
            raise BadRequest(
                "This Idempotency-Key came with another request before.", code="duplicate_request"
            )
        if not (twin.whole or (twin.running and not twin.ending)):
            return False
        await self._follow(twin, request)
        return True

    def _key(
        self, request: HttpRequest, body: bytes, caller: Caller
    ) -> tuple[Key | None, bool, bool]:
        """What tells the request from others, whether an SDK sends it again, whether it is kept."""
        given = request.headers.get(headers.IDEMPOTENCY_KEY, b"")
        count = request.headers.get(headers.SDK_RETRY_COUNT, b"")
        if given:
            if len(given) > TEXT_MAX:
                raise BadRequest(f"Idempotency-Key is over {TEXT_MAX} bytes.")
            return (caller.account_id, b"key" + given), False, True
        if not count.isdigit():
            return None, False, False
        body_hash = sha256(request.path.encode() + b"\0" + body)
        return (caller.account_id, body_hash), count.strip(b"0") != b"", False

    async def _record(
        self,
        key: Key,
        twin: Twin,
        request: HttpRequest,
        caller: Caller,
        serve: Callable[[HttpRequest], Awaitable[None]],
        forgiven: int,
    ) -> None:
        twin.forgiven, twin.client_ids = forgiven, caller.client_ids
        self._forget(key)
        self._twins[key] = twin
        self.size += twin.size
        self._bound()
        request.through(
            lambda receive: self._receiving(twin, receive),
            lambda send: self._sending(key, twin, send),
        )
        try:
            await serve(request)
        finally:
            twin.running = False
            twin.wake()
            if twin.started and not twin.whole and self._twins.get(key) is twin:
                self._forget(key)  # an error, or broken off: the next one may fare better

    def _receiving(self, twin: Twin, receive: Receive) -> Receive:
        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                twin.left = True
                while twin.kept or twin.followers:  # goes on for whoever comes back, or is there
                    await twin.news.wait()
                twin.ending = True
            return message

        return received

    def _sending(self, key: Key, twin: Twin, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if not twin.too_long:
                self.size += twin.note(message)
                if twin.size > REPLAY_ONE_BYTES_MAX:
                    self._give_up(key, twin)
                self._bound()
            if not twin.left:
                await send(message)

        return sent

    def _give_up(self, key: Key, twin: Twin) -> None:
        """An answer that is too long to be kept; it goes on for its own caller."""
        twin.too_long = True
        twin.messages.clear()
        twin.kept = False
        self._forget(key)
        twin.wake()

    async def _follow(self, twin: Twin, request: HttpRequest) -> None:
        """Send what was answered, and what comes yet."""
        twin.followers += 1
        try:
            sent = 0
            while True:
                news = twin.news
                while sent < len(twin.messages):
                    await request.pass_on(_replayed(twin.messages[sent]))
                    sent += 1
                if not twin.running or twin.too_long:
                    break
                await news.wait()
        finally:
            twin.followers -= 1
            twin.wake()

    def _forget(self, key: Key) -> None:
        twin = self._twins.pop(key, None)
        if twin is not None:
            self.size -= twin.size

    def _sweep(self) -> None:
        """Forget what is too old; the oldest come first."""
        before = self.clock.now_ms() - REPLAY_MS
        while self._twins:
            key, twin = next(iter(self._twins.items()))
            if twin.begun_ms > before:
                return
            self._forget(key)

    def _bound(self) -> None:
        """Make room: the oldest go first, but none that somebody follows now."""
        if self.size <= REPLAY_BYTES_MAX and len(self._twins) <= REPLAYS_MAX:
            return
        for key, twin in list(self._twins.items()):
            if self.size <= REPLAY_BYTES_MAX and len(self._twins) <= REPLAYS_MAX:
                return
            if not twin.followers:
                self._give_up(key, twin)


def _replayed(message: Message) -> dict[str, Any]:
    found = message.get("headers", ())
    if message["type"] != "http.response.start" or (headers.REPLAYED, b"1") in found:
        return dict(message)
    return {**message, "headers": [*found, (headers.REPLAYED, b"1")]}
