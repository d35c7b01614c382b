"""Buckets: never more than a minute's allowance at once, and in the long run exactly the rate."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferpool.payments.rates import Bucket, Rate, duration
from inferpool.payments.rules import NO_RULES, Rules


@settings(deadline=None)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 1500)), max_size=60),
)
def test_what_passes_is_at_most_the_burst_and_the_rate(
    per_minute: int, asked: list[tuple[int, int]]
) -> None:
    bucket, now, passed = Bucket(), 1_000_000, 0
    start = now
    bucket.set(per_minute, now)
    for pause_ms, units in asked:
        now += pause_ms
        wait_ms = bucket.wait_ms(units, now)
        if not wait_ms:
            bucket.take(min(units, per_minute))
            passed += min(units, per_minute)
            assert bucket.level >= 0
        else:
            assert bucket.wait_ms(units, now + wait_ms) == 0, "the wait that it tells suffices"
            bucket.at_ms, now = now + wait_ms, now + wait_ms
        assert passed <= per_minute + per_minute * (now - start) / 60_000


def test_tokens_that_were_not_expected_are_owed() -> None:
    bucket = Bucket()
    bucket.set(600, 0)
    bucket.take(900)
    assert bucket.wait_ms(1, 0) == 30_100
    bucket.take(-900)
    assert bucket.wait_ms(600, 0) == 0


def test_a_new_limit_counts_what_was_used() -> None:
    rate = Rate()
    rate.set(Rules(requests_per_minute=10), 0)
    for _ in range(10):
        rate.begin()
    rate.set(Rules(requests_per_minute=12), 0)
    assert rate.requests.wait_ms(2, 0) == 0
    assert rate.requests.wait_ms(3, 0) > 0
    rate.set(NO_RULES, 0)
    rate.check(0)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0ms"), (120, "120ms"), (1500, "1.5s"), (20_000, "20s"), (360_000, "6m0s")],
)
def test_durations_are_written_as_openai_does(ms: int, text: str) -> None:
    assert duration(ms) == text.encode()
