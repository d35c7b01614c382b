"""Applies the owner's policy to a running node: looks, decides, takes or refuses work.

A small loop. When the owner needs the machine, what runs has a second to end, then its engines are
closed and their memory is free; payers get receipts for what was sent and gateways go on elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from inferpool.clock import Clock
from inferpool.node.load import LoadMeter
from inferpool.node.measure import EnergyCounters
from inferpool.node.node import Node
from inferpool.node.policy import CALM_MS, Decision, Policy, Sight, decide
from inferpool.node.residents import GRACE_S, Residents
from inferpool.protocol.lifecycle import NODE_MOVES, NodeState, move

_LOG = logging.getLogger("inferpool.duty")
LOOK_EVERY_S: Final = 0.25
_POLL_S: Final = 0.02
_MEMORY_EVERY: Final = 8  # looks: memory changes slowly, and reading it costs a file a process
_HOUR_MS: Final = 3_600_000
_NEVER: Final = -(10**12)


def _minute() -> int:
    now = datetime.now().astimezone()
    return now.hour * 60 + now.minute


@dataclass(slots=True)
class Duty:
    """One node's policy at work. `minute` gives the minute of the local day."""

    node: Node
    policy: Policy
    clock: Clock
    meter: LoadMeter
    minute: Callable[[], int] = _minute
    counters: EnergyCounters | None = None
    state: NodeState = NodeState.MEASURED
    reason: str = ""
    since_ms: int = 0
    drained: bool = False
    drained_why: str = ""
    drained_until_ms: int = 0  # 0: until the owner says so
    others_percent: int = 0
    residents: Residents = field(init=False)
    _disturbed_ms: int = _NEVER
    _looks: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _energy: tuple[int, int, int] = (0, 0, 0)  # hour, microjoules, busy ms

    def __post_init__(self) -> None:
        self.residents = Residents(self.node, self.meter)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.tick()
            await asyncio.sleep(LOOK_EVERY_S)

    async def tick(self) -> None:
        """One look: decide and act. Returns when the decision is carried out."""
        async with self._lock:
            await self._tick()

    async def _tick(self) -> None:
        decision = decide(self.policy, self._see(), offering=self.state is NodeState.OFFERING)
        if decision.state is NodeState.DRAINING:
            decision = replace(decision, reason=decision.reason + self.drained_why)
        if decision.state is NodeState.OFFERING:
            decision = await self._load(decision)
        if decision.state is not NodeState.OFFERING:
            await self._stop(decision)
        elif self.state is not NodeState.OFFERING:
            self._enter(NodeState.OFFERING, "")
        self._account()

    def _see(self) -> Sight:
        now = self.clock.now_ms()
        policy = self.policy
        if self.drained and 0 < self.drained_until_ms <= now:
            self.drained = False
        if policy.idle_load_percent is not None:
            self.others_percent = self.meter.others_percent()
            if self.others_percent > policy.idle_load_percent // 2:
                self._disturbed_ms = now
        if self._looks % _MEMORY_EVERY == 0:
            self.residents.look()
        self._looks += 1
        return Sight(
            minute=self.minute(),
            drained=self.drained,
            others_percent=self.others_percent,
            calm_ms=min(CALM_MS, now - self._disturbed_ms),
        )

    async def _load(self, decision: Decision) -> Decision:
        """Load what is not loaded and fits; where nothing does, the node pauses."""
        await self.residents.settle(self.policy.memory_max)
        if not self.residents.starved:
            return decision
        cap, used = self.policy.memory_max >> 20, self.residents.memory >> 20
        why = f"no model fits: the memory cap is {cap} MB, {used} are used"
        return Decision(NodeState.PAUSED, why)

    async def _stop(self, decision: Decision) -> None:
        if (self.state, self.reason) != (decision.state, decision.reason):
            same = self.state is decision.state
            self._enter(decision.state, decision.reason, renamed=same)
        if decision.cut:
            await self._wait_idle(GRACE_S)
        elif self.node.busy:
            return  # a later look unloads, when what runs has ended
        if decision.unload:
            await self.residents.close()
        else:
            await self.residents.release()

    async def _wait_idle(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while self.node.busy and loop.time() < end:  # noqa: ASYNC110 - a second at most
            await asyncio.sleep(_POLL_S)

    def _enter(self, state: NodeState, reason: str, *, renamed: bool = False) -> None:
        if not renamed:
            self.state = move(NODE_MOVES, self.state, state)
            self.since_ms = self.clock.now_ms()
        self.reason = reason
        self.node.withheld = reason
        if not renamed:
            _LOG.info("%s %s", state.value, reason)
            self.node.announce()

    # -- what the owner does by hand -------------------------------------------------------------

    async def drain(self, drained: bool, why: str = "", for_ms: int = 0) -> None:
        """Offer nothing and finish what runs, for a time or until told otherwise; or go on."""
        self.drained = drained
        self.drained_until_ms = self.clock.now_ms() + for_ms if for_ms else 0
        until = f", for {for_ms // 60_000} minutes" if for_ms else ""
        self.drained_why = f"{until}{f': {why}' if why else ''}"
        await self.tick()

    async def withhold(self, model: str, withheld: bool) -> None:
        """Take one model out, and free its memory when its work has ended; or put it back."""
        for item in self.node.services.hosted:
            if item.manifest.name == model:
                item.withheld = withheld
        self.node.announce()
        await self.tick()

    # -- energy ----------------------------------------------------------------------------------

    def _account(self) -> None:
        """Book what the counters measured while work ran; idle time is nobody's."""
        if self.counters is None or not self.counters.readable:
            return
        spent = self.counters.spent()
        if not self.node.busy:
            return
        now = self.clock.now_ms()
        hour = now - now % _HOUR_MS
        if self._energy[0] != hour:
            self._energy = (hour, *self.node.ledger.energy(hour))
        _, microjoules, busy_ms = self._energy
        self._energy = (hour, microjoules + spent, busy_ms + int(1000 * LOOK_EVERY_S))
        self.node.ledger.save_energy(*self._energy)
