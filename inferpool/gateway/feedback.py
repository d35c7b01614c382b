"""What a gateway counts about a node's chances, and tells it: why no work came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.router import Candidate, why_not
from inferpool.protocol.limits import TEXT_MAX, UNMET_MAX, UNMET_MS


@dataclass(slots=True)
class Unmet:
    """Models that callers with an account asked for of late, and nobody offered: told to nodes,
    which may have one of them out of memory."""

    _asked_ms: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def note(self, model: str, now_ms: int) -> None:
        """Count one request; the name that was asked for longest ago is forgotten first."""
        if len(orjson.dumps(model)) > TEXT_MAX:  # no offer can name it; measured as it is told
            return
        self._asked_ms[model] = now_ms
        self._asked_ms.move_to_end(model)
        if len(self._asked_ms) > UNMET_MAX:
            self._asked_ms.popitem(last=False)

    def names(self, now_ms: int) -> list[str]:
        """What was asked for within the last minute."""
        return [name for name, at_ms in self._asked_ms.items() if now_ms - at_ms <= UNMET_MS]


def tally(candidates: Sequence[Candidate]) -> None:
    """Count one choice: the first was taken, the others lost it to the first for one reason."""
    first = candidates[0]
    for candidate in candidates:
        node = candidate.node
        node.asked += 1
        if candidate is first:
            node.chosen += 1
        else:
            why = why_not(candidate, first)
            node.lost[why] = node.lost.get(why, 0) + 1


def word(node: KnownNode, now_ms: int) -> dict[str, object]:
    """What a node that pushes its offer hears of itself."""
    return {
        "alive": node.alive(now_ms),
        "asked": node.asked,
        "chosen": node.chosen,
        "lost": dict(node.lost),
        "failed": dict(node.reasons),
        "blocked_ms": max(0, max(node.blocked_until_ms, node.ejected_until_ms) - now_ms),
        "held_back": node.held_back(now_ms),
        "failing": round(node.memory.failures.now(now_ms), 4),
    }
