"""What a gateway counts about a node's chances, and tells it: why no work came."""

from __future__ import annotations

from collections.abc import Sequence

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.router import Candidate, why_not


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
