"""Budgets: held + spent never exceeds the limit, whatever comes at once and in whatever order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferpool.payments.budget import Account
from inferpool.protocol.errors import PaymentRequired


async def test_of_100_parallel_holds_on_a_budget_for_10_exactly_10_pass() -> None:
    account = Account("consumer", 10_000_000)
    gate = asyncio.Event()

    async def ask(number: int) -> bool:
        await gate.wait()
        try:
            account.hold(b"%d" % number, 1_000_000)
        except PaymentRequired as error:
            assert error.code == "budget_exceeded"
            assert error.status == 402
            return False
        await asyncio.sleep(0.1)
        return True

    asks = [asyncio.create_task(ask(number)) for number in range(100)]
    gate.set()
    assert sum(await asyncio.gather(*asks)) == 10
    assert account.free_pico_usd == 0


def test_the_refusal_says_what_it_may_cost_and_what_is_left() -> None:
    account = Account("consumer", 1_500_000)
    with pytest.raises(PaymentRequired, match=r"\$0\.000002; the key has \$0\.0000015 left"):
        account.hold(b"1", 2_000_000)


def test_the_limit_itself_fits_and_one_more_does_not() -> None:
    account = Account("consumer", 10)
    account.hold(b"1", 4)
    account.spend(b"1", 3)
    account.hold(b"2", 6)  # 3 spent, 1 still held, 6: the whole limit
    account.release(b"2")
    with pytest.raises(PaymentRequired):
        account.hold(b"3", 7)
    assert account.held_pico_usd == 1


def test_a_hold_is_raised_as_far_as_the_limit_goes() -> None:
    account = Account("consumer", 10)
    account.hold(b"1", 4)
    account.spend(b"1", 3)
    assert not account.hold_more(b"1", 7)
    assert (account.held_pico_usd, account.free_pico_usd) == (1, 6)
    assert account.hold_more(b"1", 6)
    assert (account.held_pico_usd, account.free_pico_usd) == (7, 0)
    account.release(b"1")
    assert account.free_pico_usd == 7


steps = st.lists(
    st.tuples(
        st.sampled_from(["hold", "spend", "release"]), st.integers(0, 4), st.integers(0, 1000)
    ),
    max_size=60,
)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(limit=st.integers(0, 3000), steps=steps)
def test_against_a_plain_sum(limit: int, steps: list[tuple[str, int, int]]) -> None:
    account = Account("consumer", limit)
    holds: dict[bytes, int] = {}
    spent = 0
    for kind, number, amount in steps:
        key = b"%d" % number
        if kind == "hold" and key not in holds:
            fits = spent + sum(holds.values()) + amount <= limit
            try:
                account.hold(key, amount)
            except PaymentRequired:
                assert not fits
            else:
                assert fits
                holds[key] = amount
        elif kind == "spend" and amount <= holds.get(key, -1):
            account.spend(key, amount)
            holds[key] -= amount
            spent += amount
        elif kind == "release":
            account.release(key)
            holds.pop(key, None)
        assert account.spent_pico_usd == spent
        assert account.held_pico_usd == sum(holds.values())
        assert account.spent_pico_usd + account.held_pico_usd <= limit
        assert account.free_pico_usd == limit - spent - sum(holds.values())


def test_what_an_earlier_run_left_is_spent_without_a_hold() -> None:
    account = Account("consumer", 100)
    account.spend(b"lost in a crash", 30)
    assert (account.spent_pico_usd, account.held_pico_usd) == (30, 0)


def test_without_a_limit_everything_fits() -> None:
    account = Account("operator", None)
    account.hold(b"1", 10**30)
    assert account.free_pico_usd is None
    account.release(b"1")
    account.release(b"1")
    assert account.held_pico_usd == 0
