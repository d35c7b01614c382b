"""Cost, price and forecast: exact in whole numbers, and with the properties an owner relies on."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inferpool.market.cost import HOUR_MS, PPM, MachineCost, energy_pico_usd
from inferpool.market.forecast import HIGH_PPM, IN_PER_OUT, LOW_PPM, Work, forecast, per_hour
from inferpool.market.hardware import CLASSES, UNKNOWN, classify
from inferpool.market.pricing import PRICE_MAX, Asked, propose
from inferpool.protocol.units import parse_usd

shares = st.integers(1, PPM)
paces = st.integers(1, 10**10)
prices = st.integers(0, 10**9)
machines = st.builds(
    lambda busy, idle, price, life, tariff: MachineCost(busy, min(busy, idle), price, life, tariff),
    st.integers(0, 2_000_000),
    st.integers(0, 2_000_000),
    st.integers(0, 10**17),
    st.integers(1, 10**5),
    st.integers(0, 10**12),
)


@pytest.mark.parametrize(
    ("kind", "model", "name"),
    [
        ("cpu", "AMD EPYC 9B14", "server-cpu"),
        ("cpu", "Intel(R) Xeon(R) Platinum 8481C", "server-cpu"),
        ("cpu", "AMD Ryzen 9 7950X 16-Core Processor", "desktop-cpu"),
        ("cpu", "AMD Ryzen Threadripper PRO 5995WX", "workstation-cpu"),
        ("cpu", "Apple M3 Max", "apple-cpu"),
        ("cpu", "", "unknown-cpu"),
        ("gpu", "NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("gpu", "NVIDIA L40S", "l40s"),
        ("gpu", "NVIDIA L4", "l4"),
        ("gpu", "NVIDIA H100 80GB HBM3", "h100"),
        ("gpu", "Voodoo 2", "unknown-gpu"),
    ],
)
def test_a_part_is_found_by_its_name(kind: str, model: str, name: str) -> None:
    assert classify(kind, model).name == name  # type: ignore[arg-type]


def test_classes_have_names_of_their_own() -> None:
    names = [item.name for item in (*CLASSES, *UNKNOWN.values())]
    assert len(set(names)) == len(names)


def test_a_kilowatt_hour_costs_the_tariff() -> None:
    one_kw_for_an_hour = 1_000_000 * HOUR_MS
    assert energy_pico_usd(one_kw_for_an_hour, parse_usd("0.30")) == parse_usd("0.30")


def test_the_cost_of_a_known_machine() -> None:
    """A 4090 at 300 W with a 90 W host, 1,800 USD over three years, as worked out by hand."""
    cost = MachineCost(390_000, 60_000, parse_usd("1800"), 3 * 8766, parse_usd("0.17"))
    hour = cost.hour(PPM)
    assert hour.energy == parse_usd("0.0663")
    assert hour.wear == -(-parse_usd("1800") // 26_298)
    million = cost.unit(1_400 * 3_600, PPM) * 10**6
    assert parse_usd("0.026") < million < parse_usd("0.028")


@given(machines, paces, shares)
def test_a_unit_pays_for_its_hour(cost: MachineCost, pace: int, share: int) -> None:
    unit = cost.unit(pace, share)
    exact = Fraction(cost.hour(share).total * PPM, pace * share)
    assert exact <= unit < exact + 1


@given(machines, shares, shares)
def test_more_work_makes_a_unit_no_dearer(cost: MachineCost, first: int, second: int) -> None:
    low, high = sorted((first, second))
    pace = 3_600_000
    assert cost.unit(pace, high) <= cost.unit(pace, low) + 2  # each hour is rounded up by itself


@given(prices, st.integers(0, 500), prices, prices)
def test_a_proposal_is_bounded(cost: int, margin: int, first: int, second: int) -> None:
    least, most = sorted((first, second))
    assume(most > 0)
    proposal = propose(cost, margin, Asked(least, most))
    assert proposal.price >= max(1, cost), "never below cost"
    assert proposal.price <= max(most, cost, 1), "never above the pool, but for one's cost"
    if proposal.price < least:
        pytest.fail("money given away")


@given(prices, prices, st.integers(0, 500))
def test_a_dearer_machine_asks_no_less(first: int, second: int, margin: int) -> None:
    low, high = sorted((first, second))
    for asked in (None, Asked(1000, 5000)):
        assert propose(low, margin, asked).price <= propose(high, margin, asked).price


@given(prices, st.integers(0, 500))
def test_without_a_pool_the_margin_is_had(cost: int, margin: int) -> None:
    price = propose(cost, margin, None).price
    exact = Fraction(cost * (100 + margin), 100)
    assert price == 1 or price == PRICE_MAX or exact <= price < exact + 1


works = st.builds(Work, prices, prices, paces, st.one_of(st.just(0), paces))


@given(st.lists(works, min_size=1, max_size=5), machines)
def test_the_range_is_a_range(work: list[Work], cost: MachineCost) -> None:
    low, high = forecast(work, cost)
    assert (low.busy_ppm, high.busy_ppm) == (LOW_PPM, HIGH_PPM)
    assert 0 <= low.gross <= high.gross
    assert low.wear == high.wear
    assert low.energy <= high.energy
    assert high.net == high.gross - high.energy - high.wear


@given(works)
def test_the_income_of_an_hour_is_that_of_its_units(work: Work) -> None:
    if work.out_per_hour == 0:
        assert work.busy_hour() == work.price_in * work.in_per_hour
        return
    hours_per_answer = Fraction(1, work.out_per_hour) + Fraction(IN_PER_OUT, work.in_per_hour)
    exact = (work.price_out + IN_PER_OUT * work.price_in) / hours_per_answer
    assert exact - 1 < work.busy_hour() <= exact


def test_a_pace_an_hour() -> None:
    assert per_hour(100, 1000.0) == 360_000
    assert per_hour(1, 10**9) == 1
