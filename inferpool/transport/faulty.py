"""A transport that fails on demand: refused, lost, cut, late, delivered twice.

What happens to a request is decided by a `Faults` policy from outside, so that one seed gives
one history. All waiting is `asyncio.sleep`: virtual time works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Protocol

from inferpool.transport.base import (
    AnswerInvalid,
    AnswerTimeout,
    ConnectFailed,
    ConnectionCut,
    Headers,
    Response,
    Transport,
    TransportError,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one request; the default is nothing. Several may be set together."""

    refuse: bool = False  # ConnectFailed; never sent
    lose_request: bool = False  # sent and never arrives: AnswerTimeout after timeout_s
    lose_answer: bool = False  # the server does all its work, then ConnectionCut
    cut_after: int | None = None  # ConnectionCut after that many chunks of the body
    delay_s: float = 0.0  # the request arrives later, also after others
    duplicate: bool = False  # it arrives twice; one of the two answers is used


class Faults(Protocol):
    """A policy: asked once per request."""

    def __call__(self, method: str, path: str) -> Fault:
        """The fault of this request."""
        ...


class RandomFaults:
    """Each fault with its own probability, 0 to 1, drawn from the `random` passed in."""

    def __init__(
        self,
        random: Random,
        *,
        refuse: float = 0.0,
        lose_request: float = 0.0,
        lose_answer: float = 0.0,
        cut: float = 0.0,
        max_cut_after: int = 8,
        delay: float = 0.0,
        max_delay_s: float = 1.0,
        duplicate: float = 0.0,
    ) -> None:
        self._random = random
        self._odds = (refuse, lose_request, lose_answer, cut, delay, duplicate)
        self._max_cut_after, self._max_delay_s = max_cut_after, max_delay_s

    def __call__(self, method: str, path: str) -> Fault:
        # Every number is drawn every time: a changed probability must not shift later draws.
        hits = [self._random.random() < odds for odds in self._odds]
        cut_after = self._random.randint(0, self._max_cut_after)
        delay_s = self._random.uniform(0, self._max_delay_s)
        refuse, lose_request, lose_answer, cut, delay, duplicate = hits
        return Fault(
            refuse=refuse,
            lose_request=lose_request,
            lose_answer=lose_answer,
            cut_after=cut_after if cut else None,
            delay_s=delay_s if delay else 0.0,
            duplicate=duplicate,
        )


class FaultyTransport:
    """Wraps a transport. Closing it closes the inner one."""

    def __init__(self, inner: Transport, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._twins: set[asyncio.Task[None]] = set()

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Response:
        """See `base.Transport`, with this request's fault."""
        fault = self._faults(method, path)
        if fault.refuse:
            raise ConnectFailed("refused by the fault policy")
        if fault.lose_request or fault.delay_s >= timeout_s:
            await asyncio.sleep(timeout_s)
            raise AnswerTimeout(f"no answer within {timeout_s:g} s")
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
            timeout_s -= fault.delay_s
        if fault.duplicate:
            twin = self._drain(method, path, headers, body, timeout_s)
            task = asyncio.get_running_loop().create_task(twin)
            self._twins.add(task)
            task.add_done_callback(self._twins.discard)
        response = await self._inner.request(method, path, headers, body, timeout_s=timeout_s)
        if fault.lose_answer:
            async for _ in response.chunks():
                pass
            raise ConnectionCut("the answer was lost")
        return response if fault.cut_after is None else CutResponse(response, fault.cut_after)

    async def close(self) -> None:
        """Cancel the duplicates under way, then close the inner transport."""
        twins = tuple(self._twins)
        for task in twins:
            task.cancel()
        await asyncio.gather(*twins, return_exceptions=True)
        await self._inner.close()

    async def _drain(
        self, method: str, path: str, headers: Headers, body: bytes, timeout_s: float
    ) -> None:
        with suppress(TransportError):
            response = await self._inner.request(method, path, headers, body, timeout_s=timeout_s)
            try:
                async for _ in response.chunks():
                    pass
            finally:
                await response.close()


class CutResponse:
    """An answer that ends with ConnectionCut after `left` chunks."""

    def __init__(self, inner: Response, left: int) -> None:
        self.status = inner.status
        self.headers = inner.headers
        self.peer_spki = inner.peer_spki
        self._inner = inner
        self._left = left

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        return self._inner.header(name)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Some of the body, then ConnectionCut; the server sees a closed connection."""
        try:
            async for chunk in self._inner.chunks():
                if self._left <= 0:
                    break
                self._left -= 1
                yield chunk
        finally:
            await self._inner.close()
        raise ConnectionCut("cut by the fault policy")

    async def read(self, limit: int) -> bytes:
        """Never the whole body: ConnectionCut, or AnswerInvalid past `limit` bytes."""
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                await self.close()
                raise AnswerInvalid(f"the answer is over {limit} bytes")
        raise AssertionError("unreachable: chunks() ends with an error")

    async def close(self) -> None:
        """Close the inner answer."""
        await self._inner.close()
