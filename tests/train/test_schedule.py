"""Learning rate schedules: shape, warmup, and continuity by the clock."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.train.schedule import MIN_WARMUP_STEPS, WARMUP_FRACTION, learning_rate_factor
from tests.bounds import gamma, nearly

SCHEDULES = ["constant", "linear", "cosine", "wsd"]


DATA = st.data()


@pytest.mark.parametrize(
    ("schedule", "table"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("wsd", [1, 1, 1, 1, 0]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 20, 1000])
def test_schedule_after_warm_up(schedule, table, warmup):
    start = min(warmup, 40)
    steps = [start + i * (400 - start) // 4 for i in range(5)]  # each warm-up leaves quarters
    factors = [learning_rate_factor(schedule, step, 400, warmup) for step in steps]
    assert factors == nearly(table)
    assert learning_rate_factor(schedule, 999, 400, warmup) == nearly(table[-1])


def test_wsd_falls_in_the_last_part_alone():
    factors = [learning_rate_factor("wsd", i, 10, 0, 0.4) for i in range(11)]
    assert factors == nearly([1] * 7 + [0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_linearly_and_never_begins_at_zero(schedule):
    factors = [learning_rate_factor(schedule, step, 1000, 3) for step in range(4)]
    assert factors == [1 / 4, 2 / 4, 3 / 4, 1]
    assert learning_rate_factor(schedule, 0, 1000, 0) == 1


@given(
    st.sampled_from(SCHEDULES), st.integers(1, 5000), st.integers(0, 600), st.floats(0.01, 1), DATA
)
def test_without_a_clock_the_factor_is_the_textbooks_to_the_last_bit(
    schedule, total, asked, fraction, data
):
    step = data.draw(st.integers(0, total))
    warmup = min(asked, total // 10)
    done = (step / total - warmup / total) / (1 - warmup / total)
    expected = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "wsd": min(1.0, (1.0 - done) / fraction),
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[schedule]
    if step < warmup:
        expected = (step + 1) / (warmup + 1)
    assert learning_rate_factor(schedule, step, total, asked, fraction) == expected


PACES = {
    "slow": lambda step: 2.0,
    "very slow": lambda step: 10.0,
    "fast": lambda step: 0.03,
    "faster with time": lambda step: 3.0 if step < 8 else 0.04,
    "slower with time": lambda step: 0.05 if step < 150 else 3.0,
    "every tenth validates": lambda step: 2.0 if step % 10 == 9 else 0.1,
    "a pause at the start": lambda step: 20.0 if step == 0 else 0.1,
    "a pause in warm-up": lambda step: 15.0 if step == 20 else 0.1,
    "a pause in the middle": lambda step: 25.0 if step == 250 else 0.1,
}


ENDS = {
    "minutes": (10**12, 1.0),
    "both, by the clock": (10**4, 1.0),
    "both, by the steps": (300, 60.0),
    "both, by either": (500, 1.0),
    "steps": (300, None),
}


# A clock adds up 10,000 steps at most; a factor is a few operations more.
ROUNDED = gamma(20_000, torch.float64)


def simulate(schedule, pace, total_steps, minutes, warmup=100):
    """Shares of the run done, and learning-rate factors, step by step."""
    seconds, step, found = 0.0, 0, []
    while step < total_steps and (minutes is None or seconds < 60 * minutes):
        clock = 0.0 if minutes is None else seconds / (60 * minutes)
        factor = learning_rate_factor(schedule, step, total_steps, warmup, elapsed_fraction=clock)
        found.append((max(step / total_steps, clock), factor))
        seconds += pace(step)
        step += 1
    return found


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("end", ENDS)
def test_the_factor_is_continuous_however_fast_a_machine_is(pace, end):
    for schedule, warmup in product(SCHEDULES, [100, 20, 10**6]):
        assert_continuous(schedule, pace, end, warmup)


def assert_continuous(schedule, pace, end, warmup):
    case = (schedule, warmup)
    found = simulate(schedule, PACES[pace], *ENDS[end], warmup)
    factors = [factor for _, factor in found]
    assert factors[0] <= 1 / MIN_WARMUP_STEPS, case
    # How far the factor falls while a share of the run passes, and where warm-up ends later.
    slope = {"constant": 0.0, "linear": 1.0, "wsd": 5.0, "cosine": math.pi / 2}[schedule]
    slope /= 1 - WARMUP_FRACTION
    first = 1 / (min(warmup, ENDS[end][0] // 10) + 1)
    for number, ((before, old), (after, new)) in enumerate(pairwise(found)):
        passed = after - before
        assert old - new <= slope * (passed + WARMUP_FRACTION / (number + 1)), case
        assert new - old <= max(passed / WARMUP_FRACTION, 1 / MIN_WARMUP_STEPS) + first, case
    # It rises to its peak within a tenth of the run, or its first steps, and then only falls.
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak]), case
    assert factors[peak:] == sorted(factors[peak:], reverse=True), case
    assert peak <= MIN_WARMUP_STEPS or found[peak - 1][0] <= WARMUP_FRACTION, case
    if len(found) > 2 * MIN_WARMUP_STEPS:
        assert factors[peak] >= 1 - slope * max(found[peak][0] - WARMUP_FRACTION, 0) - ROUNDED, case
    # Its last step is about as far from 0 as from the end of the run.
    if schedule != "constant":
        assert factors[-1] <= slope * (1 - found[-1][0]) + ROUNDED, case


def test_a_short_run_by_the_clock_falls_off_no_cliff():
    """About seven steps a second, in one minute: warm-up ends after 42 of 420 steps, not 100."""
    factors = [factor for _, factor in simulate("cosine", lambda step: 1 / 7, 10**12, 1.0)]
    assert len(factors) == 420
    assert factors[42] == 1.0
    # Its rise is its steepest part: the fall takes nine times as long.
    assert max(abs(a - b) for a, b in pairwise(factors)) <= 1 / 42 + ROUNDED


def test_a_clock_that_never_ends_the_run_changes_nothing():
    by_steps = simulate("cosine", lambda step: 0.01, 300, None)
    assert simulate("cosine", lambda step: 0.01, 300, 60.0) == by_steps
