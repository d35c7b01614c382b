"""The server's side in plain ASGI: what node and gateway need on their hot paths, no framework."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import orjson

from inferpool.protocol.errors import BadRequest, InferpoolError, PaymentRequired, Unavailable
from inferpool.transport.base import Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

JSON: Final = (b"content-type", b"application/json")
EVENT_STREAM: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or a front holds tokens back
)


# What a web page may read of an answer, beside the few headers that it always may (Fetch, "CORS
# protocol"). Keys come in a header of the request, never in a cookie, so that any page may ask.
EXPOSED: Final = (
    b"inferpool-cost-pico-usd, inferpool-gateway-receipt, inferpool-node, inferpool-receipt,"
    b" openai-processing-ms, payment-required, payment-response,"
    b" retry-after, retry-after-ms, x-ratelimit-limit-requests, x-ratelimit-limit-tokens,"
    b" x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests,"
    b" x-ratelimit-reset-tokens, x-request-id, x-should-retry, inference-header-content-length"
)
_PAGE_KEEPS_S: Final = b"600"  # a page asks for leave again after this
_PAGE_HEADERS_MAX: Final = 1024  # bytes of the names of headers that a page wants to send
_FORWARDED: Final = frozenset((b"forwarded", b"x-forwarded-for", b"x-real-ip"))


class ClientLeft(Exception):
    """The caller hung up; there is nobody to answer."""


class MethodNotAllowed(BadRequest):
    """The path is served, by other methods: `allow` names them, as RFC 9110 wants it."""

    default = "method_not_allowed"

    def __init__(self, request: HttpRequest, allow: str) -> None:
        super().__init__(f"{request.method} {request.path} is not served; {allow} is.")
        self.allow = allow


def unserved(request: HttpRequest, methods: Sequence[str]) -> BadRequest:
    """What is to be raised for a path that has these methods, and for one that has none."""
    if methods:
        return MethodNotAllowed(request, ", ".join(methods))
    return BadRequest(f"{request.method} {request.path} is not served here.", code="not_found")


class Direct(Protocol):
    """What a server of ours offers beside ASGI's messages, in the scope `inferpool.direct`: small
    requests and answers without them."""

    def whole_body(self) -> bytes | None:
        """The body that nobody has read yet; None where it has to be waited for."""
        ...

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send a whole answer, its length included; False, and nothing sent, where it goes by
        messages. RuntimeError for a header that is none."""
        ...

    def part(self, data: bytes) -> bool:
        """Send a part of a streamed answer; False, and nothing sent, where it goes by a message,
        as where the reader has to be waited for."""
        ...


class HttpRequest:
    """One request. Header names are lower case; of repeated ones the first counts."""

    __slots__ = (
        "_body_read", "_direct", "_receive", "_send", "added", "client_host", "headers", "method",
        "path", "query",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name, value)
        self.client_host: str = (scope.get("client") or ("",))[0]
        self.query: bytes = scope.get("query_string", b"")
        self.added: Callable[[], Headers] = tuple  # headers of every answer, asked when it begins
        self._receive, self._send = receive, send
        self._direct: Direct | None = scope.get("inferpool.direct")
        self._body_read = False

    def through(
        self, receiving: Callable[[Receive], Receive], sending: Callable[[Send], Send]
    ) -> None:
        """Put something between the caller and what is received and sent from now on."""
        self._direct = None
        self._receive, self._send = receiving(self._receive), sending(self._send)

    async def pass_on(self, message: Message) -> None:
        """Send a message of ASGI as it is."""
        await self._send(message)

    def is_local(self) -> bool:
        """Whether a program of this machine calls, for itself.

        Not so where a proxy says that it speaks for another, and where a browser here acts for a
        page from elsewhere: by a request across sites, or by a name that it made resolve to us.
        """
        if self.headers.keys() & _FORWARDED or not _is_loopback(self.client_host):
            return False
        origin, host = self.headers.get(b"origin"), self.headers.get(b"host", b"")
        return _is_own(b"//" + host) and (origin is None or _is_own(origin))

    def open_to_pages(self) -> None:
        """Let the web page that asks read the answer, whichever one it is."""
        self._direct, send = None, self._send

        async def opened(message: Message) -> None:
            if message["type"] == "http.response.start":
                allowed = (b"access-control-allow-origin", b"*")
                exposed = (b"access-control-expose-headers", EXPOSED)
                message = {**message, "headers": [*message["headers"], allowed, exposed]}
            await send(message)

        self._send = opened

    def is_preflight(self) -> bool:
        """Whether a browser asks for a page's leave to send its real request."""
        return self.method == "OPTIONS" and b"access-control-request-method" in self.headers

    async def allow_page(self) -> None:
        """Give that leave."""
        wanted = self.headers.get(b"access-control-request-headers", b"")[:_PAGE_HEADERS_MAX]
        found = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", _PAGE_KEEPS_S),
        ]
        if wanted:
            found.append((b"access-control-allow-headers", wanted))
        await self.answer(200, b"", found)

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises BadRequest(body_too_large) before it reads past `limit`."""
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding != b"identity":  # a small body could unpack to any size
            name = encoding[:32].decode("latin-1")
            raise BadRequest(
                f"Content-Encoding: {name} is not read; send the body as it is.",
                code="unsupported_encoding",
            )
        declared = self.headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 15 or int(declared) > limit:
            raise BadRequest(f"The body is over {limit} bytes.", code="body_too_large")
        whole = self._direct.whole_body() if self._direct is not None else None
        if whole is not None:
            parts, size, more = [whole], len(whole), False
        else:
            message = await self._receive()
            parts = [self._part(message)]
            size, more = len(parts[0]), message.get("more_body", False)
        while more and size <= limit:
            message = await self._receive()
            parts.append(self._part(message))
            size += len(parts[-1])
            more = message.get("more_body", False)
        if size > limit:
            raise BadRequest(f"The body is over {limit} bytes.", code="body_too_large")
        self._body_read = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @staticmethod
    def _part(message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part: bytes = message.get("body", b"")
        return part

    async def disconnected(self) -> None:
        """Return when the caller hangs up. Call it after the body was read."""
        assert self._body_read, "the body comes first"
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def while_here(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`; cancel it and raise ClientLeft when the caller hangs up before its end."""
        run, left = asyncio.create_task(work), asyncio.create_task(self.disconnected())
        try:
            await asyncio.wait([run, left], return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                raise ClientLeft
            return run.result()
        finally:
            await stop_task(left)
            await stop_task(run)

    async def answer(self, status: int, body: bytes, headers: Headers = (JSON,)) -> None:
        """A whole answer."""
        sent = [*headers, *self.added()]
        if self._direct is not None and self._direct.answer(status, sent, body):
            return
        sent.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})
        await self._send({"type": "http.response.body", "body": body})

    async def answer_json(
        self, value: object, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """A whole answer in JSON."""
        await self.answer(status, orjson.dumps(value), (JSON, *headers))

    async def start(self, headers: Headers) -> None:
        """Begin a streamed answer."""
        sent = [*headers, *self.added()]
        await self._send({"type": "http.response.start", "status": 200, "headers": sent})

    async def send(self, data: bytes) -> None:
        """One part of a streamed answer; waits while the reader is slow."""
        if self._direct is not None and self._direct.part(data):
            return
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """The clean end of a streamed answer."""
        await self._send({"type": "http.response.body", "body": b""})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_own(url: bytes) -> bool:
    """Of a loopback address, or a name without a dot: the public DNS points no such name here."""
    try:
        host = urlsplit(url.decode("latin-1")).hostname
    except ValueError:
        return False
    return host is not None and (_is_loopback(host) or not {".", ":"} & set(host))


def error_headers(error: InferpoolError) -> list[tuple[bytes, bytes]]:
    """Headers that tell an SDK whether and when to try again.

    Without `x-should-retry: false` OpenAI's SDK repeats some errors that can only repeat.
    """
    headers = []
    if error.retry_after_s is not None or isinstance(error, Unavailable) or error.status == 429:
        headers.append((b"retry-after", str(min(60, error.retry_after_s or 1)).encode()))
    if isinstance(error, BadRequest | PaymentRequired) or error.status in (401, 403):
        headers.append((b"x-should-retry", b"false"))
    if error.request_id:
        headers.append((b"x-request-id", error.request_id.encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    return headers


async def stop_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task of ours and wait until it is gone; its own errors are not ours here."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
