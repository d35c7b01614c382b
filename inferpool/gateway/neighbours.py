"""The other processes of this gateway on this machine: a retry is answered where its first try is.

Each worker listens at a port of its own beside the common one, and the book says at which. Answers
lie in memory only, so a worker that gets a retry, or a request with an `Idempotency-Key`, asks the
others for its twin and passes their answer on. Nodes' pushed offers are told to all. What is asked
carries the secret that the asked one has in the book. Processes on other machines are not asked,
nor one that died: there a retry is a new request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from inferpool.payments.lanes import Lane, Neighbour
from inferpool.protocol import headers
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.limits import ANSWER_TIMEOUT_S
from inferpool.transport.asgi import HttpRequest
from inferpool.transport.base import Response, Transport

_LOG = logging.getLogger("inferpool.neighbours")
_SAID_MAX: Final = 1 << 26
KNOWN_S: Final = 1.0  # who lives is read again after that time
_OWN: Final = {b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"}
_TOLD_BY_SERVER: Final = {b"connection", b"transfer-encoding", b"date", b"server", b"keep-alive"}

OpenTransport = Callable[[str, bytes | None], Transport]


@dataclass(slots=True)
class Neighbours:
    """Those at this machine. `open_transport` dials a URL with a pinned key, or none for b""."""

    lane: Lane
    open_transport: OpenTransport
    _known: list[Neighbour] = field(default_factory=list)
    _known_s: float = -KNOWN_S
    _pipes: dict[tuple[str, bytes], Transport] = field(default_factory=dict)

    async def living(self) -> Sequence[Neighbour]:
        """Who lives, in the order of their lanes."""
        now_s = self.lane.monotonic()
        if now_s - self._known_s >= KNOWN_S:
            try:
                found = await asyncio.to_thread(self.lane.neighbours)
            except Exception as error:  # the book is away: as it was
                _LOG.info("the neighbours cannot be read: %s", error)
                return self._known
            self._known = [item for item in found if item.place == self.lane.place]
            self._known_s = max(self._known_s, now_s)  # only now: nobody goes by an older list
        return self._known

    def asks(self, request: HttpRequest) -> str | None:
        """The lane of the neighbour that asks; None where it is a client, or says so wrongly."""
        given = request.headers.get(headers.NEIGHBOUR)
        secret, _, lane = (given or b"").partition(b" ")
        try:
            known = hmac.compare_digest(from_hex(secret.decode(), 24), self.lane.secret)
        except ValueError:
            return None
        return lane.decode("latin-1") if known else None

    async def answer(self, request: HttpRequest, body: bytes, unknown: int = 0) -> bool:
        """Answer a request as a neighbour answers, or answered, its twin; False where none has.

        `unknown`: the status that says so too.
        """
        for each in await self.living():
            try:
                response = await self._ask(each, request, body)
            except InferpoolError as error:
                _LOG.info("lane %r does not answer: %s", each.lane, error.message)
                continue
            try:
                if response.header(headers.NO_TWIN) is None and response.status != unknown:
                    await _pass_on(response, request)
                    return True
            finally:
                await response.close()
        return False

    async def tell(self, path: str, body: bytes) -> None:
        """Post something to all of them, as far as they can be reached."""
        for each in await self.living():
            given = self._given(each)
            try:
                response = await self._pipe(each).request(
                    "POST", path, [given], body, timeout_s=ANSWER_TIMEOUT_S
                )
                await response.close()
            except InferpoolError as error:
                _LOG.info("lane %r was not told: %s", each.lane, error.message)

    async def all_say(self, request: HttpRequest, body: bytes = b"") -> list[Any]:
        """The JSON with which the others answer the same request; none of who does not."""
        return [orjson.loads(said) for said in await self.all_answer(request, body)]

    async def all_answer(self, request: HttpRequest, body: bytes = b"") -> list[bytes]:
        """The bodies with which they do."""
        found = []
        for each in await self.living():
            try:
                response = await self._ask(each, request, body)
                try:
                    said = await response.read(_SAID_MAX)
                finally:
                    await response.close()
            except InferpoolError as error:
                _LOG.info("lane %r does not answer: %s", each.lane, error.message)
                continue
            if response.status == 200:
                found.append(said)
        return found

    async def _ask(self, each: Neighbour, request: HttpRequest, body: bytes) -> Response:
        kept = [(name, value) for name, value in request.headers.items() if name not in _OWN]
        return await self._pipe(each).request(
            request.method,
            request.path,
            [*kept, self._given(each)],
            body,
            timeout_s=ANSWER_TIMEOUT_S,
        )

    def _given(self, each: Neighbour) -> tuple[bytes, bytes]:
        said = f"{to_hex(each.secret)} {self.lane.name}"
        return headers.NEIGHBOUR, said.encode("latin-1")

    def _pipe(self, each: Neighbour) -> Transport:
        at = (each.url, each.tls_spki)
        if at not in self._pipes:
            self._pipes[at] = self.open_transport(*at)
        return self._pipes[at]

    async def close(self) -> None:
        """Close every pipe."""
        for pipe in self._pipes.values():
            await pipe.close()


async def _pass_on(response: Response, request: HttpRequest) -> None:
    kept = [item for item in response.headers if item[0] not in _TOLD_BY_SERVER]
    start = {"type": "http.response.start", "status": response.status, "headers": kept}
    await request.pass_on(start)
    async for chunk in response.chunks():
        await request.pass_on({"type": "http.response.body", "body": chunk, "more_body": True})
    await request.pass_on({"type": "http.response.body", "body": b""})


async def no_twin(request: HttpRequest) -> None:
    """What a neighbour is told whose request nobody knows here."""
    await request.answer_json({}, 404, [(headers.NO_TWIN, b"1")])
