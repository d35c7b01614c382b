"""The maximum bounds every charge, and whole base units never exceed it."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol import units
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.offer import Service
from inferpool.protocol.price import exact_pico_usd, maximum, maximum_pico_usd, maximum_usage
from inferpool.protocol.usage import Usage

counts = st.sampled_from([0, 1, 7, 2**32 - 1]) | st.integers(0, 10_000)
prices = st.sampled_from([0, 1, 999_999, 1_000_000, 1_000_001, 2**64 - 1]) | st.integers(0, 10**9)
decimals = st.integers(0, 12)
services = st.builds(
    Service, st.just(bytes(32)), st.just("m"), st.sampled_from(Task), st.just("c"), prices, prices,
    counts, st.integers(1, 1_000_000), counts, counts, st.booleans(), st.booleans(),
)  # fmt: skip
positive = st.integers(1, 10_000)
jobs = st.builds(
    Job, st.sampled_from(Task), st.just("m"), counts, st.integers(0, 4_096), counts,
    st.none() | st.integers(1, 1_000_000), st.integers(1, 16), positive, positive, positive,
)  # fmt: skip


@given(jobs, services, st.data())
def test_no_usage_within_the_bound_costs_more(
    job: Job, service: Service, data: st.DataObject
) -> None:
    bound = maximum_usage(job, service)
    used = Usage(
        data.draw(st.integers(0, bound.prompt_units)),
        data.draw(st.integers(0, bound.output_units)),
    )
    assert exact_pico_usd(used, service) <= maximum_pico_usd(job, service)


SIZES = ["prompt_bytes", "messages", "resume_units", "choices", "rows", "audio_ms", "steps"]
TERMS = [
    "price_in_pico_usd_per_unit",
    "price_out_pico_usd_per_unit",
    "default_max_output",
    "template_overhead",
    "message_overhead",
]


@given(jobs, services, st.sampled_from(SIZES), st.integers(1, 1_000))
def test_it_grows_with_each_size(job: Job, service: Service, name: str, more: int) -> None:
    larger = dataclasses.replace(job, **{name: getattr(job, name) + more})  # type: ignore[arg-type]
    assert maximum_pico_usd(larger, service) >= maximum_pico_usd(job, service)


@given(jobs, services, st.sampled_from(TERMS), st.integers(1, 1_000))
def test_it_grows_with_each_term(job: Job, service: Service, name: str, more: int) -> None:
    value = min(getattr(service, name) + more, 1_000_000 if name.startswith("default") else 2**64)
    dearer = dataclasses.replace(service, **{name: value})  # type: ignore[arg-type]
    assert maximum_pico_usd(job, dearer) >= maximum_pico_usd(job, service)


@given(jobs, services, st.integers(1, 999_999))
def test_it_grows_with_the_output(job: Job, service: Service, output: int) -> None:
    less, more = (dataclasses.replace(job, max_output=output + i) for i in (0, 1))
    assert maximum_pico_usd(less, service) <= maximum_pico_usd(more, service)


@pytest.mark.parametrize(
    ("task", "size", "param"),
    [
        (Task.CHAT, {"prompt_bytes": 1}, "price_in"),
        (Task.CHAT, {"max_output": 1}, "price_out"),
        (Task.COMPLETION, {"resume_units": 1}, "price_in"),
        (Task.EMBEDDING, {"prompt_bytes": 1}, "price_in"),
        (Task.TENSOR, {"rows": 1}, "price_in"),
        (Task.TRANSCRIPTION, {"audio_ms": 1}, "price_in"),
        (Task.IMAGE, {"steps": 1}, "price_out"),
    ],
)
def test_each_task_is_priced_by_its_unit(task: Task, size: dict[str, int], param: str) -> None:
    service = Service(bytes(32), "m", task, "c", 0, 0, 0, 1, 0, 0, False, False)
    name = f"{param}_pico_usd_per_unit"
    service = dataclasses.replace(service, **{name: 5})  # type: ignore[arg-type]
    assert maximum_pico_usd(Job(task, "m", **size), service) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "job",
    [
        Job(Task.CHAT, "m", 5),
        Job(Task.CHAT, "m", 5, max_output=0),
        Job(Task.COMPLETION, "m", 5, max_output=1_000_001),
        Job(Task.TENSOR, "m"),
        Job(Task.TRANSCRIPTION, "m"),
        Job(Task.IMAGE, "m"),
        Job(Task.TENSOR, "m", rows=-1),
    ],
)
def test_no_finite_maximum(job: Job) -> None:
    service = Service(bytes(32), "m", job.task, "c", 1, 1, 0, 0, 0, 0, False, False)
    with pytest.raises(BadRequest) as caught:
        maximum(job, service, 6)
    assert caught.value.code == "no_maximum"


@given(st.data(), decimals)
def test_whole_units_of_carry_and_charge_stay_within_the_maximum(
    data: st.DataObject, places: int
) -> None:
    """A channel carries the fraction of a base unit from charge to charge."""
    unit = units.pico_usd_per_base_unit(places)
    most = data.draw(st.integers(0, 4 * unit) | st.integers(0, 2**130))
    edges = [0, most, max(most - 1, 0), most // unit * unit]
    charge = data.draw(st.sampled_from(edges) | st.integers(0, most))
    carry = data.draw(st.sampled_from([0, unit - 1]) | st.integers(0, unit - 1))
    assert units.base_units_down(carry + charge, places) <= units.base_units_up(most, places)


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=20), decimals)
def test_a_channel_of_charges_stays_within_the_sum_of_maxima(
    charges: list[int], places: int
) -> None:
    covered = sum(max(1, units.base_units_up(charge, places)) for charge in charges)
    assert units.base_units_down(sum(charges), places) <= covered


@given(st.integers(0, 2**130), decimals)
def test_base_units_are_exact(pico: int, places: int) -> None:
    exact = Fraction(pico, 10**12) * 10**places
    assert units.base_units_up(pico, places) == ceil(exact)
    assert units.base_units_down(pico, places) == floor(exact)
    assert units.base_units_down(
        units.base_units_up(pico, places) * 10 ** (12 - places), places
    ) == (ceil(exact))


@given(jobs, services, decimals)
def test_the_maximum_in_base_units(job: Job, service: Service, places: int) -> None:
    exact = Fraction(maximum_pico_usd(job, service), 10**12) * 10**places
    assert maximum(job, service, places) == max(1, ceil(exact))


@pytest.mark.parametrize("places", [-1, 13, 18])
def test_other_decimals_are_not_payable(places: int) -> None:
    with pytest.raises(ValueError, match="0 to 12 decimals"):
        units.pico_usd_per_base_unit(places)


@given(st.integers(0, 2**130))
def test_usd_texts_are_exact(pico: int) -> None:
    text = units.format_usd(pico)
    assert units.parse_usd(text) == pico
    assert Fraction(text.removeprefix("$")) == Fraction(pico, 10**12)
    assert units.format_usd(-pico) == (f"-{text}" if pico else text)


@pytest.mark.parametrize(
    ("text", "pico"),
    [
        ("1.50", 1_500_000_000_000),
        ("$1", 10**12),
        (" .5 ", 5 * 10**11),
        ("2.", 2 * 10**12),
        ("0.000000000001", 1),
        ("000.0", 0),
    ],
)
def test_usd_is_read(text: str, pico: int) -> None:
    assert units.parse_usd(text) == pico


@pytest.mark.parametrize(
    "text",
    ["", "$", ".", "-1", "+1", "1e3", "1,000", "1_000", "1.2.3", "$$1", "\uff11", "\u00b2", "nan",
     "0.0000000000001", "0." + "0" * 13, "1 2", "9" * 5_000],
)  # fmt: skip
def test_usd_never_rounds_or_guesses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        units.parse_usd(text)


def test_prices_for_people() -> None:
    assert units.format_usd(1_250_000) == "$0.00000125"
    assert units.format_usd_per_million(150_000, "token") == "$0.15 per million tokens"


@pytest.mark.parametrize("counted", [(-1, 0), (0, -1)])
def test_units_are_never_negative(counted: tuple[int, int]) -> None:
    with pytest.raises(AssertionError, match="never negative"):
        Usage(*counted)


@pytest.mark.parametrize("convert", [units.base_units_up, units.base_units_down])
def test_amounts_are_never_negative(convert: object) -> None:
    assert callable(convert)
    with pytest.raises(AssertionError, match="never negative"):
        convert(-1, 6)
