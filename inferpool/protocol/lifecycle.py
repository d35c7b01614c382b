"""The life cycles as tables: every move between states that is allowed, and no other.

An attempt ends in exactly one of settled, refused, failed, lost. `lost` is the state of a hold
whose owner crashed: it turns into settled when the node's receipt turns up.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar


class AttemptState(StrEnum):
    """Where an attempt is, on the payer's side."""

    AUTHORISED = "authorised"  # a voucher covers its maximum
    SENT = "sent"
    STREAMING = "streaming"
    SETTLED = "settled"  # a receipt was checked and booked
    REFUSED = "refused"  # the node took no work: nothing is owed
    FAILED = "failed"  # no receipt: nothing is owed
    LOST = "lost"  # the payer crashed: at most the maximum is owed


_A = AttemptState
ATTEMPT_MOVES: Final[dict[AttemptState, frozenset[AttemptState]]] = {
    _A.AUTHORISED: frozenset({_A.SENT, _A.REFUSED, _A.FAILED, _A.LOST}),
    _A.SENT: frozenset({_A.STREAMING, _A.SETTLED, _A.REFUSED, _A.FAILED, _A.LOST}),
    _A.STREAMING: frozenset({_A.SETTLED, _A.FAILED, _A.LOST}),
    _A.FAILED: frozenset({_A.SETTLED}),  # a late receipt, fetched after the pipe was cut
    _A.LOST: frozenset({_A.SETTLED, _A.FAILED}),
    _A.REFUSED: frozenset(),
    _A.SETTLED: frozenset(),
}


class ChannelPhase(StrEnum):
    """Where a payment channel is."""

    OPENING = "opening"
    OPEN = "open"
    TOPPING_UP = "topping_up"
    DRAINING = "draining"
    WITHDRAWING = "withdrawing"
    CLOSED = "closed"


_C = ChannelPhase
CHANNEL_MOVES: Final[dict[ChannelPhase, frozenset[ChannelPhase]]] = {
    _C.OPENING: frozenset({_C.OPEN, _C.CLOSED}),
    _C.OPEN: frozenset({_C.TOPPING_UP, _C.DRAINING, _C.WITHDRAWING}),
    _C.TOPPING_UP: frozenset({_C.OPEN, _C.DRAINING, _C.WITHDRAWING}),
    _C.DRAINING: frozenset({_C.WITHDRAWING, _C.CLOSED}),
    _C.WITHDRAWING: frozenset({_C.CLOSED}),
    _C.CLOSED: frozenset(),
}


class ServiceState(StrEnum):
    """Where a model is on a node."""

    ABSENT = "absent"
    PULLING = "pulling"
    VERIFIED = "verified"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    BACKING_OFF = "backing_off"


_S = ServiceState
SERVICE_MOVES: Final[dict[ServiceState, frozenset[ServiceState]]] = {
    _S.ABSENT: frozenset({_S.PULLING, _S.VERIFIED}),
    _S.PULLING: frozenset({_S.VERIFIED, _S.ABSENT}),
    _S.VERIFIED: frozenset({_S.LOADING, _S.ABSENT}),
    _S.LOADING: frozenset({_S.READY, _S.BACKING_OFF, _S.VERIFIED}),
    _S.READY: frozenset({_S.UNLOADING, _S.BACKING_OFF}),
    _S.BACKING_OFF: frozenset({_S.LOADING, _S.VERIFIED}),
    _S.UNLOADING: frozenset({_S.VERIFIED}),
}


class NodeState(StrEnum):
    """Where a machine is, as its own process sees it."""

    DETECTED = "detected"
    MEASURED = "measured"
    OFFERING = "offering"
    PAUSED = "paused"  # by its owner's policy; goes on by itself
    DRAINING = "draining"  # by its owner's hand; goes on by it
    GONE = "gone"


_N = NodeState
NODE_MOVES: Final[dict[NodeState, frozenset[NodeState]]] = {
    _N.DETECTED: frozenset({_N.MEASURED, _N.GONE}),
    _N.MEASURED: frozenset({_N.OFFERING, _N.PAUSED, _N.DRAINING, _N.GONE}),
    _N.OFFERING: frozenset({_N.PAUSED, _N.DRAINING, _N.GONE}),
    _N.PAUSED: frozenset({_N.OFFERING, _N.DRAINING, _N.GONE}),
    _N.DRAINING: frozenset({_N.OFFERING, _N.PAUSED, _N.GONE}),
    _N.GONE: frozenset(),
}


_State = TypeVar("_State", bound=StrEnum)


def move(moves: dict[_State, frozenset[_State]], current: _State, following: _State) -> _State:
    """The next state. A move that the table does not hold is a fault of ours: AssertionError."""
    assert following in moves[current], f"no move from {current} to {following}"
    return following
