"""When this machine works for others: a pure function of the owner's wishes and what is seen.

    drained by hand > outside working hours > others need the machine > offering

Only the owner's own need cuts what runs: then a second is left to finish, and memory is given
back. Everything else lets running work end first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from inferpool.protocol.errors import Refused
from inferpool.protocol.lifecycle import NodeState

CALM_MS: Final = 5_000  # quiet for so long before work is taken again
_DAY: Final = 24 * 60
_HOURS: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-4]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner wants. `hours` are spans of minutes of the local day; none: always.

    `idle_load_percent`: of one core, what other processes may use before work stops; None: any.
    `memory_max`: bytes of this node and its engines; 0: any. It is `residents` that keeps it.
    """

    hours: tuple[tuple[int, int], ...] = ()
    idle_load_percent: int | None = None
    memory_max: int = 0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen now."""

    minute: int  # of the local day, 0 to 1439
    drained: bool = False  # by the owner's hand
    others_percent: int = 0  # of one core, used by other processes
    calm_ms: int = CALM_MS  # since others last used more than half of what they may


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the node should be, why, whether running work is cut, and memory given back."""

    state: NodeState
    reason: str = ""
    cut: bool = False
    unload: bool = False


OFFER: Final = Decision(NodeState.OFFERING)


def decide(policy: Policy, sight: Sight, *, offering: bool) -> Decision:
    """The decision now; `offering`: whether work is taken at this moment."""
    if sight.drained:
        return Decision(NodeState.DRAINING, "drained by its owner")
    if policy.hours and not any(_within(span, sight.minute) for span in policy.hours):
        return Decision(NodeState.PAUSED, f"outside working hours ({_spell(policy)})", unload=True)
    if policy.idle_load_percent is not None:
        most = policy.idle_load_percent
        if sight.others_percent > most or (not offering and sight.calm_ms < CALM_MS):
            why = f"other programs use {sight.others_percent} % of a core, {most} % are allowed"
            return Decision(NodeState.PAUSED, why, cut=True, unload=True)
    return OFFER


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Spans of minutes from "08:00-20:00", "22:00-06:00" or several with commas; none from "".

    Raises Refused(bad_config).
    """
    found = []
    for part in filter(None, (item.strip() for item in text.split(","))):
        match = _HOURS.fullmatch(part)
        numbers = [int(number) for number in match.groups()] if match else [0, 0, 25, 0]
        begin, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
        if end > _DAY or begin == end:
            raise Refused(
                f'node.hours: {part!r} is not of the form "08:00-20:00"',
                code="bad_config",
                param="node.hours",
            )
        found.append((begin, end))
    return tuple(found)


def _within(span: tuple[int, int], minute: int) -> bool:
    begin, end = span
    if begin < end:
        return begin <= minute < end
    return minute >= begin or minute < end  # over midnight


def _spell(policy: Policy) -> str:
    return ", ".join(
        f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
        for begin, end in policy.hours
    )
