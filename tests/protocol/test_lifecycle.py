"""The tables of states: all reachable, the ends are ends, no other move."""

from __future__ import annotations

from enum import StrEnum
from itertools import product
from typing import Any

import pytest

from inferpool.protocol.lifecycle import (
    ATTEMPT_MOVES,
    CHANNEL_MOVES,
    NODE_MOVES,
    SERVICE_MOVES,
    AttemptState,
    ChannelPhase,
    NodeState,
    ServiceState,
    move,
)

TABLES: list[tuple[Any, type[StrEnum], str, set[str]]] = [
    (ATTEMPT_MOVES, AttemptState, "authorised", {"settled", "refused"}),
    (CHANNEL_MOVES, ChannelPhase, "opening", {"closed"}),
    (SERVICE_MOVES, ServiceState, "absent", set()),
    (NODE_MOVES, NodeState, "detected", {"gone"}),
]
each = pytest.mark.parametrize(
    ("moves", "states", "first", "ends"), TABLES, ids=[table[1].__name__ for table in TABLES]
)


@each
def test_each_state_has_its_row(
    moves: Any, states: type[StrEnum], first: str, ends: set[str]
) -> None:
    assert set(moves) == set(states)
    assert all(following <= set(states) for following in moves.values())
    assert all(state not in moves[state] for state in states)


@each
def test_each_state_is_reached(
    moves: Any, states: type[StrEnum], first: str, ends: set[str]
) -> None:
    reached, new = set(), {states(first)}
    while new:
        reached |= new
        new = set().union(*(moves[state] for state in new)) - reached
    assert reached == set(states)


@each
def test_ends_are_ends(moves: Any, states: type[StrEnum], first: str, ends: set[str]) -> None:
    assert {state.value for state in states if not moves[state]} == ends


@each
def test_every_state_can_come_to_an_end(
    moves: Any, states: type[StrEnum], first: str, ends: set[str]
) -> None:
    goals = {states(end) for end in ends or {first}}
    able = set(goals)
    for _ in states:
        able |= {state for state in states if moves[state] & able}
    assert able == set(states)


@each
def test_move_refuses_everything_else(
    moves: Any, states: type[StrEnum], first: str, ends: set[str]
) -> None:
    allowed = 0
    for current, following in product(states, states):
        if following in moves[current]:
            assert move(moves, current, following) is following
            allowed += 1
        else:
            with pytest.raises(AssertionError, match=f"no move from {current} to {following}"):
                move(moves, current, following)
    assert allowed == sum(map(len, moves.values()))


def test_what_was_paid_or_refused_stays_so() -> None:
    for end in (AttemptState.SETTLED, AttemptState.REFUSED):
        assert ATTEMPT_MOVES[end] == frozenset()
    assert ATTEMPT_MOVES[AttemptState.FAILED] == {AttemptState.SETTLED}


def test_an_answer_that_flowed_cannot_be_refused() -> None:
    assert AttemptState.REFUSED not in ATTEMPT_MOVES[AttemptState.STREAMING]
