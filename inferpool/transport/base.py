"""The seam to the network: one request, one answer that may be a stream.

Implementations: `http.HttpTransport` (our httptools client), `memory.MemoryTransport` (an ASGI
app in the same process, for the simulator and for tests), `memory.FaultyTransport` (wraps one of
them: refuses, cuts, delays and duplicates on demand).

What failover and payment need is told apart: never connected, cut in the middle, ended cleanly,
silent. A caller that leaves an answer unread must `close()` it, which the server sees at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import ClassVar, Protocol

from inferpool.protocol.errors import Unavailable

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case


class TransportError(Unavailable):
    """The pipe failed. `sent` tells whether the request can have reached the other side."""

    default = "node_failed"
    sent: ClassVar[bool] = True


class ConnectFailed(TransportError):
    """No connection: the request was not sent, so that a retry is free."""

    sent = False


class ConnectionCut(TransportError):
    """The connection ended before the answer did."""


class AnswerTimeout(TransportError):
    """Nothing came within the time allowed."""

    default = "timeout"


class AnswerInvalid(TransportError):
    """What came is not HTTP, or is over a limit."""


class Response(Protocol):
    """An answer whose head has arrived."""

    status: int
    headers: Headers
    peer_spki: bytes  # SHA-256 of the TLS key that answered; zeros: no TLS on this pipe

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; ends cleanly only if the answer was whole.

        Raises ConnectionCut where it was not. Backpressure: no more is read than is taken.
        """
        ...

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises AnswerInvalid past `limit` bytes."""
        ...

    async def close(self) -> None:
        """Give the connection back, or cut it where the answer was not read to its end."""
        ...


class Transport(Protocol):
    """A pipe to one endpoint; safe for many requests at once on one event loop."""

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Response:
        """Send a request; return when the answer's head is there, within `timeout_s`.

        Raises ConnectFailed, ConnectionCut, AnswerTimeout, AnswerInvalid.
        """
        ...

    async def close(self) -> None:
        """Close every connection; answers under way are cut."""
        ...
