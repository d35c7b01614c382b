"""What a gateway remembers of nodes, kept over a restart: a bounded page in a store.

Written every few seconds, read once at the start, and aged by the time between: what was fresh
when the gateway went is worth less when it comes back. A page that cannot be read is left aside
with a warning, since a gateway without a memory serves all the same. No request is in it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from inferpool.clock import Clock
from inferpool.gateway.memory import CAP_MAX, CLASSES_MAX, SLOW_HALF_MS, CallClass, Latency
from inferpool.gateway.nodes import BLOCK_MAX_MS, EJECT_MAX_MS, KnownNode
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.limits import MEMORY_LINES_MAX, MEMORY_NODES_MAX, MEMORY_PAGE_MAX, TEXT_MAX

_LOG = logging.getLogger("inferpool.gateway")
VERSION: Final = 1
SAVE_EVERY_S: Final = 10.0
FORGOTTEN_MS: Final = 7 * 86_400_000  # a node that was away for longer is a stranger again
SERVED_HALF_MS: Final = 86_400_000  # half of a node's deliveries are forgotten in that time
_LINE: Final = (
    "weight", "x", "y", "xx", "xy", "out_weight", "out_us", "strain", "at_ms", "late",
)  # fmt: skip
_SUMS: Final = ("weight", "x", "y", "xx", "xy", "out_weight")  # that grow with calls
_BIG: Final = 1e18


class MemoryStore(Protocol):
    """Where the page lies. Both may block: `save` is called in a thread where `threads` is set."""

    def load(self, most: int) -> bytes:
        """The page; empty where there is none. Raises OSError, ValueError above `most` bytes."""
        ...

    def save(self, page: bytes) -> None:
        """Put a whole page in the other's place, or leave that. Raises OSError."""
        ...


@dataclass(slots=True)
class Remembered:
    """One gateway process's memory, beside a directory's nodes. `now` is UNIX time in ms."""

    store: MemoryStore
    clock: Clock
    threads: bool = True
    _entries: OrderedDict[bytes, dict[str, Any]] = field(default_factory=OrderedDict)
    _task: asyncio.Task[None] | None = None

    def load(self) -> int:
        """Read the page; how many nodes it tells of."""
        try:
            page = self.store.load(MEMORY_PAGE_MAX)
            self._entries = _entries_of(page, self.clock.now_ms()) if page else OrderedDict()
        except (OSError, ValueError) as error:
            _LOG.warning(
                "what was remembered of nodes cannot be read, and is left aside: %s", error
            )
        return len(self._entries)

    def recall(self, node: KnownNode) -> bool:
        """Give a node that appears what is remembered of it; whether anything is."""
        entry = self._entries.get(node.address)
        if entry is None:
            return False
        try:
            _recall(node, entry, self.clock.now_ms())
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            _LOG.warning("what was remembered of %s is wrong: %s", to_hex(node.address), error)
            del self._entries[node.address]
            return False
        return True

    def start(self, nodes: Callable[[], Iterable[KnownNode]]) -> None:
        """Write the page again and again."""
        self._task = asyncio.create_task(self._keep(nodes), name="memory of nodes")

    async def _keep(self, nodes: Callable[[], Iterable[KnownNode]]) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save(nodes())

    async def stop(self) -> None:
        """Write no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def close(self, nodes: Iterable[KnownNode]) -> None:
        """Stop, and write it a last time."""
        await self.stop()
        await self.save(nodes)

    async def save(self, nodes: Iterable[KnownNode]) -> None:
        """Write what is known of these nodes, and of others that were here not long ago."""
        if not self._learn(nodes):
            return
        entries = dict(self._entries)  # whose values are never changed: a thread may read them
        try:
            if self.threads:
                await asyncio.to_thread(self._write, entries)
            else:
                self._write(entries)
        except OSError as error:
            _LOG.warning("what is remembered of nodes cannot be written: %s", error)

    def _write(self, entries: Mapping[bytes, Mapping[str, Any]]) -> None:
        told = {to_hex(address): entry for address, entry in entries.items()}
        self.store.save(orjson.dumps({"version": VERSION, "nodes": told}))

    def _learn(self, nodes: Iterable[KnownNode]) -> bool:
        """Take over what changed; whether anything did."""
        now, changed = self.clock.now_ms(), False
        for node in nodes:
            calls, old = node.memory.failures.calls, self._entries.get(node.address)
            if calls and (old is None or (old["calls"], old["cap"]) != (calls, node.memory.cap)):
                self._entries[node.address] = _entry(node)
                self._entries.move_to_end(node.address)
                changed = True
        if changed:
            for address in [a for a, entry in self._entries.items() if _over(entry, now)]:
                del self._entries[address]
            while len(self._entries) > MEMORY_NODES_MAX:
                self._entries.popitem(last=False)
        return changed


def _over(entry: Mapping[str, Any], now_ms: int) -> bool:
    return bool(now_ms - entry["at_ms"] > FORGOTTEN_MS)


def _entry(node: KnownNode) -> dict[str, Any]:
    memory = node.memory
    lines = list(memory.classes.items())[-MEMORY_LINES_MAX:]
    return {
        "at_ms": max(memory.failures.at_ms, *(line.at_ms for _, line in lines), 0),
        "failures": [memory.failures.fast, memory.failures.slow, memory.failures.at_ms],
        "calls": memory.failures.calls,
        "cap": memory.cap,
        "served": memory.served,
        "blocked": [node.blocked_until_ms, node.block_ms],
        "ejected": [node.ejected_until_ms, node.eject_ms],
        "lines": [
            [to_hex(manifest), task, *(getattr(line, name) for name in _LINE)]
            for (manifest, task), line in lines
        ],
    }


def _entries_of(page: bytes, now_ms: int) -> OrderedDict[bytes, dict[str, Any]]:
    """Raises ValueError for what is no page of ours."""
    value = orjson.loads(page)
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise ValueError("it is of another version")
    nodes = value.get("nodes")
    if not isinstance(nodes, dict) or len(nodes) > MEMORY_NODES_MAX:
        raise ValueError("it names no nodes, or too many")
    found: OrderedDict[bytes, dict[str, Any]] = OrderedDict()
    for address, entry in nodes.items():
        if not isinstance(entry, dict) or type(entry.get("at_ms")) is not int:
            raise ValueError("an entry has no time")
        entry["at_ms"] = min(entry["at_ms"], now_ms)  # a clock that was set back since
        if not _over(entry, now_ms):
            found[from_hex(address, 20)] = entry
    return found


def _recall(node: KnownNode, entry: Mapping[str, Any], now_ms: int) -> None:
    """Raises KeyError, TypeError, ValueError, OverflowError where an entry is wrong, and then
    changes nothing."""
    away_ms = now_ms - entry["at_ms"]
    kept, served_kept = 0.5 ** (away_ms / SLOW_HALF_MS), 0.5 ** (away_ms / SERVED_HALF_MS)
    fast, slow, failed_ms = entry["failures"]
    fast, slow = _number(fast, 0.0, 1.0), _number(slow, 0.0, 1.0)
    calls, served = (
        int(_number(entry["calls"], 0)),
        round(served_kept * _number(entry["served"], 0)),
    )
    cap = min(CAP_MAX, _number(entry["cap"], 1.0, CAP_MAX) / kept)
    until = [  # no longer than any that begins now
        (int(_number(at_ms, 0, now_ms + most_ms)), int(kept * _number(pause_ms, 0, most_ms)))
        for (at_ms, pause_ms), most_ms in (
            (entry["blocked"], BLOCK_MAX_MS),
            (entry["ejected"], EJECT_MAX_MS),
        )
    ]
    classes = OrderedDict(_line(item, kept, now_ms) for item in entry["lines"][:CLASSES_MAX])
    memory = node.memory
    memory.failures.fast, memory.failures.slow = fast, slow
    memory.failures.at_ms = int(_number(failed_ms, 0, now_ms))
    memory.failures.calls, memory.served, memory.cap, memory.classes = calls, served, cap, classes
    (node.blocked_until_ms, node.block_ms), (node.ejected_until_ms, node.eject_ms) = until


def _line(item: list[Any], kept: float, now_ms: int) -> tuple[CallClass, Latency]:
    """A line of a class of calls, of which the node's own word counts more the longer it is."""
    manifest, task, *numbers = item
    if not isinstance(task, str) or len(task) > TEXT_MAX:
        raise ValueError("a line of no task")
    values = dict(zip(_LINE, numbers, strict=True))
    line = Latency()
    for name in _LINE:
        value = _number(values[name], 0.0)
        setattr(line, name, value * kept if name in _SUMS else value)
    line.strain, line.late = max(1.0, line.strain), max(1.0, line.late)
    line.at_ms = min(int(line.at_ms), now_ms)
    if line.weight:
        line.fit()
    return (from_hex(manifest, 32), task), line


def _number(value: object, least: float, most: float = _BIG) -> float:
    """Raises ValueError for what is no number; what is out of its bounds is brought into them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("no number where one is needed")
    return min(most, max(least, value))
