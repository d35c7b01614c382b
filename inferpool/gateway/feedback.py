"""What a gateway counts about a node's chances, and tells it: why no work came."""

from __future__ import annotations

from collections.abc import Sequence

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.router import Candidate


def tally(candidates: Sequence[Candidate], now_ms: int) -> None:
    """Count one choice: the first was taken, the others lost it to the first for one reason."""
    first = candidates[0]
    for candidate in candidates:
        node = candidate.node
        node.asked += 1
        if candidate is first:
            node.chosen += 1
        else:
            why = _why(candidate, first, now_ms)
            node.lost[why] = node.lost.get(why, 0) + 1


def _why(loser: Candidate, winner: Candidate, now_ms: int) -> str:
    if loser.node.blocked(now_ms):
        return "failed before"
    if loser.price_pico_usd > winner.price_pico_usd:
        return "dearer"
    if loser.time_pico_usd > winner.time_pico_usd:
        return "slower"
    if loser.risk_pico_usd > winner.risk_pico_usd:
        return "less reliable"
    return "the draw"


def word(node: KnownNode, now_ms: int) -> dict[str, object]:
    """What a node that pushes its offer hears of itself."""
    return {
        "alive": node.alive(now_ms),
        "asked": node.asked,
        "chosen": node.chosen,
        "lost": dict(node.lost),
        "failed": dict(node.reasons),
        "blocked_ms": max(0, node.blocked_until_ms - now_ms),
    }
