"""The models that are in memory: loaded, let go, and kept under the owner's cap.

What a model takes can only be measured: when it is loaded, and when it leaves. Over the cap the
least used one leaves, its running calls first; it is no longer offered meanwhile. It comes back
when there is room, or in the place of an idle one when somebody pays for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from inferpool.node.load import LoadMeter
from inferpool.node.node import Node
from inferpool.node.services import Hosted
from inferpool.protocol.errors import InferpoolError

_LOG = logging.getLogger("inferpool.residents")
GRACE_S: Final = 1.0  # for what runs, where it is cut; memory is free within two
STAY_MS: Final = 60_000  # in memory at least, whoever else is asked for; and out of it
_POLL_S: Final = 0.02
_AGAIN_MS: Final = 2_000  # after a load that failed; then twice that, up to `STAY_MS`


def least_used(items: Iterable[Hosted]) -> Hosted | None:
    """Who leaves first: the idle before the busy, then who was used longest ago, then who stands
    last in the owner's list."""
    order = sorted(enumerate(items), key=lambda at: (at[1].running > 0, at[1].used_ms, -at[0]))
    return order[0][1] if order else None


class Residents:
    """The models of one node. `memory`: bytes of the node and its engines, as last read."""

    def __init__(self, node: Node, meter: LoadMeter) -> None:
        self._node, self._meter = node, meter
        self._hosted = node.services.hosted
        self.memory = 0

    def look(self) -> int:
        """Read what is used now."""
        self.memory = self._meter.own_memory()
        return self.memory

    @property
    def loaded(self) -> list[Hosted]:
        """Who is in memory."""
        return [item for item in self._hosted if not item.closed]

    @property
    def starved(self) -> bool:
        """Whether nothing is served because nothing fits."""
        wanted = [item for item in self._hosted if not item.withheld]
        return any(item.cold for item in wanted) and all(item.closed for item in wanted)

    async def settle(self, cap: int) -> None:
        """One step: who is to leave leaves, who may come comes. `cap` in bytes; 0: none."""
        await self.release()
        if cap and self.look() > cap:
            await self._shed(cap)
            return
        waiting = [item for item in self._hosted if item.closed and not item.withheld]
        for item in sorted(waiting, key=lambda item: (-item.wanted_ms, -item.used_ms)):
            await self._admit(item, cap)

    async def release(self) -> None:
        """Close who is to leave and has ended its work."""
        for item in self.loaded:
            if (item.withheld or item.leaving) and not item.running:
                await self._close(item)

    async def close(self) -> None:
        """Everybody leaves, to be loaded again with the next work."""
        await asyncio.gather(*(self._close(item) for item in self.loaded))

    # -- over the cap ----------------------------------------------------------------------------

    async def _shed(self, cap: int) -> None:
        """One model leaves; far over the cap it does not wait for what it runs."""
        item = next((item for item in self.loaded if item.leaving), None)
        if item is None:
            item = least_used(self.loaded)
            if item is None:
                return
            _LOG.warning(
                "%s leaves: %d MB are used, %d MB allowed",
                item.manifest.name,
                self.memory >> 20,
                cap >> 20,
            )
            item.leaving = item.cold = True
            self._node.announce()
        if item.running and self.memory <= cap + cap // 4:
            return
        await _idle(item)
        await self._close(item)

    # -- coming ----------------------------------------------------------------------------------

    async def _admit(self, item: Hosted, cap: int) -> None:
        now = self._node.clock.now_ms()
        wanted = now - item.wanted_ms < STAY_MS
        if now < item.retry_ms and not (wanted and not item.failures):
            return
        if (
            cap
            and self.memory + item.needs > cap
            and not (wanted and await self._make_room(item, cap, now))
        ):
            item.cold = True
            return
        before = self.look()
        if item.renew is not None:
            (item.engine, item.slots), item.renew = item.renew(), None
        try:
            await item.engine.start()
        except (InferpoolError, OSError, MemoryError) as error:
            why = error.message if isinstance(error, InferpoolError) else repr(error)
            item.failures, item.failure = item.failures + 1, why
            item.retry_ms = now + min(STAY_MS, _AGAIN_MS << min(item.failures, 6))
            _LOG.warning("%s is not loaded: %s", item.manifest.name, why)
            return
        self._came(item, before, wanted=wanted)
        if cap and self.memory > cap and not wanted:
            item.cold = True
            await self._close(
                item
            )  # it takes more than was known: another time, in another's place
            return
        self._node.announce()

    def _came(self, item: Hosted, before: int, *, wanted: bool) -> None:
        now = self._node.clock.now_ms()
        item.closed = item.cold = False
        item.leaving = item.renew is not None  # the owner wished for another one meanwhile
        item.loaded_ms, item.failures, item.wanted_ms, item.failure = now, 0, 0, ""
        if wanted:
            item.used_ms = now
        item.memory = max(item.manifest.size, self.look() - before)

    async def _make_room(self, item: Hosted, cap: int, now_ms: int) -> bool:
        """Let idle models leave that `item` may come, if that is enough."""
        idle = [
            other
            for other in self.loaded
            if not other.running and now_ms - other.loaded_ms >= STAY_MS
        ]
        leaving, free = [], cap - self.memory
        while idle and free < item.needs:
            other = least_used(idle)
            assert other is not None
            idle.remove(other)
            leaving.append(other)
            free += other.memory
        if free < item.needs:
            return False
        for other in leaving:
            other.leaving = other.cold = True
        self._node.announce()
        for other in leaving:
            await self._close(other)
        return True

    async def _close(self, item: Hosted) -> None:
        """It ends now; `leaving` was told before, or nothing is taken."""
        before = self.look()
        item.closed = True
        await item.engine.close()
        item.leaving = False
        item.memory = max(item.memory, before - self.look())
        item.retry_ms = self._node.clock.now_ms() + (STAY_MS if item.cold else 0)


async def _idle(item: Hosted) -> None:
    """Wait until its calls ended, for a second at most."""
    loop = asyncio.get_running_loop()
    end = loop.time() + GRACE_S
    while item.running and loop.time() < end:  # noqa: ASYNC110 - a second at most
        await asyncio.sleep(_POLL_S)
