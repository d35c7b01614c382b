"""What a node earned: exact against its receipts, whoever asks and however it is grouped."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from owner_kit import net

from inferpool.payments.earnings import (
    ClaimRow,
    Earned,
    EnergyRow,
    Rates,
    busy_spans,
    day,
    report,
)
from inferpool.payments.earnings_book import read_book

HOUR_MS = 3_600_000
times = st.integers(1_700_000_000_000, 1_700_000_000_000 + 5 * 86_400_000)
receipts = st.builds(
    lambda model, payer, charge, units, start, length: Earned(
        model, payer, charge, *units, start, start + length
    ),
    st.sampled_from(["chat", "spam"]),
    st.sampled_from(["0xA", "0xB", "0xC"]),
    st.integers(0, 10**15),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    times,
    st.integers(0, 7_200_000),
)
claims = st.builds(ClaimRow, times, st.integers(0, 10**9), st.integers(0, 10**18))
rates = st.builds(
    Rates, st.integers(0, 10**6), st.integers(0, 10**12), st.none() | st.integers(0, 10**16)
)


@given(st.lists(receipts, max_size=20), st.lists(claims, max_size=5), rates)
def test_every_grouping_adds_up_to_all_receipts(
    earned: list[Earned], claimed: list[ClaimRow], rate: Rates
) -> None:
    found = report(earned, claimed, [], rate, 10**6)
    total = sum(item.charge for item in earned)
    for groups in (found.by_day, found.by_model, found.by_payer):
        assert sum(line.earned for line in groups.values()) == total
        assert sum(line.receipts for line in groups.values()) == len(earned)
        assert sum(line.output_units for line in groups.values()) == found.total.output_units
    assert found.total.earned == total
    assert found.claimed == 10**6 * sum(item.claimed for item in claimed)
    assert found.unclaimed == total - found.claimed
    assert found.net == total - found.energy - (found.gas or 0)


@given(st.lists(receipts, max_size=20))
def test_work_side_by_side_counts_once(earned: list[Earned]) -> None:
    spans = busy_spans(earned)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    for item in earned:
        assert any(begin <= item.started_ms and item.ended_ms <= end for begin, end in spans)
    longest = sum(item.ended_ms - item.started_ms for item in earned)
    assert sum(end - begin for begin, end in spans) <= longest


@given(st.lists(receipts, max_size=20), rates)
def test_rated_energy_is_power_times_busy_time(earned: list[Earned], rate: Rates) -> None:
    found = report(earned, [], [], rate, 10**6)
    kwh = Fraction(found.busy_ms * rate.busy_milliwatts, 3_600_000 * 10**6)
    exact = kwh * rate.tariff_pico_usd_per_kwh
    assert exact <= found.energy < exact + 1
    assert found.energy_source == "rated"


def test_measured_hours_are_not_rated_too() -> None:
    begin = 1_700_000_000_000 - 1_700_000_000_000 % HOUR_MS
    item = Earned("chat", "0xA", 1, 1, 1, begin + HOUR_MS - 1000, begin + HOUR_MS + 500)
    rate = Rates(1000, 10**12)  # a watt at a dollar
    measured = report([item], [], [EnergyRow(begin, 5_000_000)], rate, 10**6)
    assert measured.energy_source == "measured, partly rated"
    assert measured.energy == -(-(5_000_000 + 500 * 1000) * 10**12 // (3_600_000 * 10**6))
    both = [EnergyRow(begin, 1), EnergyRow(begin + HOUR_MS, 2)]
    assert report([item], [], both, rate, 10**6).energy_source == "measured"


def test_a_gas_token_with_a_price_is_deducted() -> None:
    found = report([], [ClaimRow(1, 0, 10**15)], [], Rates(0, 0, 3000 * 10**12), 10**6)
    assert (found.gas, found.net) == (3 * 10**12, -3 * 10**12)
    assert report([], [ClaimRow(1, 0, 10**15)], [], Rates(0, 0), 10**6).gas is None


def test_days_are_of_utc() -> None:
    assert (day(1_767_225_599_999), day(1_767_225_600_000)) == ("2025-12-31", "2026-01-01")


async def test_the_book_of_a_node_agrees_with_its_receipts_and_the_chain(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        costs = [(await world.chat(seed=i))[1]["inferpool"]["cost_pico_usd"] for i in range(20)]
        await world.chat(model="nothing")
        await world.node._claim()
        costs.append((await world.chat(max_tokens=3))[1]["inferpool"]["cost_pico_usd"])
        earned, claimed, energy = read_book(world.node.journal, 10**6)
        found = report(earned, claimed, energy, Rates(0, 0), 10**6)
        assert [item.charge for item in earned] == costs
        assert found.total.earned == sum(costs)
        channels = world.node.node.ledger.channels.values()
        assert found.total.earned == sum(channel.total_pico_usd for channel in channels)
        on_chain = [(await world.chain.channel(item.channel_id)).total_claimed for item in channels]
        assert found.claimed == sum(on_chain) * 10**6 > 0
        assert 0 < found.unclaimed < 10**6 + costs[-1]
        assert list(found.by_payer) == list(found.to_wire()["by_payer"])  # type: ignore[call-overload]
