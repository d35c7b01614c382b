"""A closed-loop load: so many connections, each sends its next request when it has its answer.

Requests are whole, made before the clock starts; of an answer only its length and status are read,
and its body is kept where it is wanted. One process, one thread: about 15 us a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from secrets import token_bytes
from urllib.parse import urlsplit

from inferpool.identity.signing import Key
from inferpool.payments.x402 import payment_signature
from inferpool.protocol import headers
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.offer import Offer
from inferpool.protocol.voucher import ChannelConfig, Voucher, voucher_digest

# Base units that a voucher covers beyond its request, so that one which others overtook on the way
# is still good. A gateway would sign again; the node's work is the same.
_AHEAD = 1024


@dataclass(slots=True)
class Seen:
    """What one drive saw: seconds each request took, and the bodies where they were wanted."""

    spent_s: list[float] = field(default_factory=list)
    bodies: dict[int, bytes] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.spent_s) / self.wall_s

    def quantile_ms(self, share: float) -> float:
        """So many of all answers took no longer."""
        return 1000 * sorted(self.spent_s)[int(share * (len(self.spent_s) - 1))]


class _Caller(asyncio.Protocol):
    def __init__(self, source: Iterator[tuple[int, bytes]], seen: Seen, *, keep: bool) -> None:
        self._source, self._seen, self._keep = source, seen, keep
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        found = next(self._source, None)
        if found is None:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
            return
        self._index, request = found
        self._begun = time.perf_counter()
        self._transport.write(request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._rest = data
            return
        head = data[:end].lower()
        at = head.index(b"content-length:") + 15
        size = int(head[at:].split(b"\r\n", 1)[0])
        if len(data) < end + 4 + size:
            self._rest = data
            return
        if data[9:12] != b"200":
            self.done.set_exception(RuntimeError(data[:2000].decode(errors="replace")))
            self._transport.close()
            return
        self._rest = b""
        self._seen.spent_s.append(time.perf_counter() - self._begun)
        if self._keep:
            self._seen.bodies[self._index] = data[end + 4 :]
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server closed"))


def http(url: str, path: str, body: bytes, more: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """One request's bytes."""
    lines = [f"POST {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n".encode()]
    lines += [name + b": " + value + b"\r\n" for name, value in more or []]
    lines.append(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
    return b"".join([*lines, body])


def for_a_while(request: bytes, seconds: float) -> Iterator[tuple[int, bytes]]:
    """The same request until the time is over."""
    end, index = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        yield index, request
        index += 1


async def drive(
    url: str, source: Iterator[tuple[int, bytes]], at_once: int, *, keep: bool = False
) -> Seen:
    """Send what the source gives, so many at once. Raises RuntimeError for an answer but 200."""
    loop = asyncio.get_running_loop()
    split, seen, callers = urlsplit(url), Seen(), []
    begun = time.perf_counter()
    for _ in range(at_once):
        _, caller = await loop.create_connection(
            lambda: _Caller(source, seen, keep=keep), split.hostname, split.port
        )
        callers.append(caller)
    await asyncio.gather(*[caller.done for caller in callers])
    seen.wall_s = time.perf_counter() - begun
    return seen


@dataclass(slots=True)
class Purse:
    """Makes paid requests of one base unit each, as a payer of ours sends them."""

    key: Key
    config: ChannelConfig
    offer: Offer
    window: int
    sent: int = 0
    _last: Voucher | None = None
    _start: bytes = field(default_factory=lambda: token_bytes(16))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the next request, with the voucher that covers it."""
        chain_id = self.offer.terms.chain_id
        amount = (self.sent // self.window + 1) * self.window + _AHEAD
        if self._last is None or amount != self._last.max_claimable:
            channel_id = self.config.channel_id(chain_id)
            signature = self.key.sign(voucher_digest(channel_id, amount, chain_id))
            self._last = Voucher(channel_id, amount, signature)
        self.sent += 1
        paid = payment_signature(self.config, self._last, self.offer.terms, 1)
        return [
            (headers.VERSION, headers.VERSION_SPOKEN),
            (headers.REQUEST_ID, to_hex(self._start + self.sent.to_bytes(16, "big")).encode()),
            (headers.OFFER, to_hex(self.offer.digest()).encode()),
            (headers.RECEIPTS, headers.CHAINED if self.window > 1 else headers.SIGNED),
            (headers.PAYMENT_SIGNATURE, paid),
        ]

    def requests(self, url: str, path: str, body: bytes, count: int) -> list[bytes]:
        """So many whole requests. At a window of 1 each has a voucher of its own."""
        return [http(url, path, body, self.headers()) for _ in range(count)]
