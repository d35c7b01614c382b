"""An engine that says nothing for too long is taken for hung: its call ends, and its child too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from inferpool.protocol.errors import Unavailable
from inferpool.transport.patience import Patience

T = TypeVar("T")


class EngineSilent(Unavailable):
    """An engine hangs: nothing came from it for as long as it may be silent."""

    default = "engine_failed"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the engine said nothing for {limit_s:g} s")


async def attended(found: AsyncGenerator[T, None], limit_s: float) -> AsyncGenerator[T, None]:
    """What an engine says. Raises EngineSilent after `limit_s` without a word.

    Only the time in which it was asked for the next word counts: a reader may be slow.
    """
    patience = Patience(asyncio.get_running_loop())
    try:
        async with aclosing(found):
            while True:
                try:
                    item = await patience.wait(anext(found), limit_s)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise EngineSilent(limit_s) from None
                yield item
    finally:
        patience.close()
