"""The owner's wishes as a pure function: nothing is worked that was not wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.node.policy import CALM_MS, Policy, Sight, decide, parse_hours
from inferpool.payments.payers import Payers
from inferpool.protocol.errors import Refused, Unauthorized
from inferpool.protocol.lifecycle import NODE_MOVES, NodeState

minutes = st.integers(0, 24 * 60 - 1)
sights = st.builds(
    Sight,
    minutes,
    st.booleans(),
    st.integers(0, 800),
    st.integers(0, CALM_MS),
)
spans = st.lists(st.tuples(minutes, minutes).filter(lambda span: span[0] != span[1]), max_size=3)
policies = st.builds(
    Policy,
    spans.map(tuple),
    st.none() | st.integers(0, 400),
    st.just(0) | st.integers(1, 10**10),
)


@given(policies, sights, st.booleans())
def test_work_is_taken_only_where_every_wish_allows_it(
    policy: Policy, sight: Sight, offering: bool
) -> None:
    decision = decide(policy, sight, offering=offering)
    if decision.state is not NodeState.OFFERING:
        assert decision.reason
        return
    assert not sight.drained
    assert not policy.hours or any(
        sight.minute in _minutes_of(begin, end) for begin, end in policy.hours
    )
    if policy.idle_load_percent is not None:
        assert sight.others_percent <= policy.idle_load_percent
        assert offering or sight.calm_ms >= CALM_MS


def _minutes_of(begin: int, end: int) -> set[int]:
    return {(begin + i) % 1440 for i in range((end - begin) % 1440 or 1440)}


@given(policies, sights, st.booleans())
def test_only_the_owners_own_need_cuts_what_runs(
    policy: Policy, sight: Sight, offering: bool
) -> None:
    decision = decide(policy, sight, offering=offering)
    if decision.cut:
        assert policy.idle_load_percent is not None
        assert decision.unload


@given(policies, sights)
def test_every_decision_is_a_state_that_offering_can_move_to(policy: Policy, sight: Sight) -> None:
    following = decide(policy, sight, offering=True).state
    assert following is NodeState.OFFERING or following in NODE_MOVES[NodeState.OFFERING]


def test_without_wishes_work_is_always_taken() -> None:
    assert decide(Policy(), Sight(0), offering=False).state is NodeState.OFFERING


@pytest.mark.parametrize(
    ("minute", "works"),
    [(479, False), (480, True), (1199, True), (1200, False)],
)
def test_working_hours_begin_and_end_on_the_minute(minute: int, works: bool) -> None:
    policy = Policy(hours=parse_hours("08:00-20:00"))
    state = decide(policy, Sight(minute), offering=True).state
    assert (state is NodeState.OFFERING) is works


@pytest.mark.parametrize(("minute", "works"), [(1320, True), (0, True), (359, True), (360, False)])
def test_working_hours_may_go_over_midnight(minute: int, works: bool) -> None:
    policy = Policy(hours=parse_hours("22:00-06:00"))
    state = decide(policy, Sight(minute), offering=True).state
    assert (state is NodeState.OFFERING) is works


@given(minutes, minutes)
def test_hours_are_read_as_they_are_written(begin: int, end: int) -> None:
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    if begin == end:
        with pytest.raises(Refused):
            parse_hours(text)
    else:
        assert parse_hours(text) == ((begin, end),)


@given(st.text(max_size=20))
def test_hours_are_spans_or_refused(text: str) -> None:
    try:
        spans = parse_hours(text)
    except Refused as error:
        assert error.code == "bad_config"
    else:
        assert all(0 <= begin < 1440 and 0 <= end <= 1440 for begin, end in spans)


def test_payers_are_served_by_the_lists() -> None:
    payer, stranger = bytes(20), bytes([1] * 20)
    Payers().check(payer)
    only = Payers(allowed=frozenset({payer}))
    only.check(payer)
    for payers, whom in ((only, stranger), (Payers(denied=frozenset({stranger})), stranger)):
        with pytest.raises(Unauthorized, match="does not serve") as refused:
            payers.check(whom)
        assert (refused.value.code, refused.value.status) == ("payer_refused", 403)


@pytest.mark.parametrize("text", ["0x12", "me", "0x" + "g" * 40])
def test_a_list_with_no_address_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"node\.deny"):
        Payers.of([], [text])
