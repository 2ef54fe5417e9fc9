"""The state of a run: counters, means, and JSON."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.train.state import RunningMean, RunState
from tests.bounds import gamma


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_running_mean_is_the_mean_of_what_was_added(values):
    mean = RunningMean()
    for value in values:
        mean.add(torch.tensor(value, dtype=torch.float32))
    # Sums of float64, in any order, and a quotient.
    bound = gamma(2 * len(values), torch.float64) * sum(map(abs, values)) / len(values)
    assert mean.take() == pytest.approx(math.fsum(values) / len(values), rel=0, abs=bound)


def test_a_mean_that_was_taken_starts_anew():
    mean = RunningMean()
    mean.add(torch.tensor(4.0))
    assert mean.take() == 4.0
    mean.add(torch.tensor(1.0))
    assert mean.take() == 1.0
    assert math.isnan(mean.take())


def test_a_mean_goes_on_exactly_from_its_state():
    values = torch.rand(9)
    whole, half = RunningMean(), RunningMean()
    for value in values[:5]:
        whole.add(value)
        half.add(value)
    resumed = RunningMean(*json.loads(json.dumps(half.state())))
    for value in values[5:]:
        whole.add(value)
        resumed.add(value)
    assert resumed.take() == whole.take()


def test_a_mean_keeps_no_graph():
    mean = RunningMean()
    mean.add(torch.ones((), requires_grad=True) * 2)
    assert mean.state() == (2.0, 1)
    assert not mean._total.requires_grad


STEPS = st.lists(st.tuples(st.floats(0, 10, width=32), st.booleans()), max_size=12)


def advance(state, steps):
    """Steps of an epoch of three, each of which is validated."""
    for loss, taken in steps:
        state.count_step(torch.tensor(loss), taken)
        if state.step % 3 == 0:
            state.count_epoch()
        state.count_validation(loss)


@given(STEPS, STEPS)
@settings(max_examples=30, deadline=None)
def test_a_state_goes_on_exactly_from_its_json(before, after):
    whole, first = RunState(), RunState()
    advance(whole, before + after)
    advance(first, before)
    saved = json.dumps(first.to_json())
    resumed = RunState.from_json({**json.loads(saved), "of others": 1})
    assert json.dumps(resumed.to_json()) == saved
    advance(resumed, after)
    # An epoch in which no step was taken has no loss, which equals nothing, not even itself.
    assert json.dumps(resumed.to_json()) == json.dumps(whole.to_json())


def test_what_is_not_a_number_is_null_and_comes_back():
    state = RunState()
    state.count_validation(math.nan)
    state.count_epoch()
    state.recent_loss.add(torch.tensor(math.inf))
    saved = json.loads(json.dumps(state.to_json(), allow_nan=False))
    assert saved["history"] == {"train_loss": [None], "val_loss": [None], "val_steps": [0]}
    assert saved["best_loss"] is None
    back = RunState.from_json(saved)
    assert math.isnan(back.history["train_loss"][0])
    assert math.isnan(back.recent_loss.take())
    assert back.best_loss == math.inf


def test_what_was_saved_stays_as_it_is_while_training_goes_on():
    state = RunState()
    advance(state, [(2.0, True)] * 4)
    saved = state.to_json()
    as_it_was = json.dumps(saved)
    advance(state, [(1.0, True)] * 4)
    assert json.dumps(saved) == as_it_was


def test_steps_that_are_left_out_are_counted_and_do_not_count_for_the_loss():
    state = RunState()
    for loss, taken in ((2.0, True), (math.nan, False), (math.nan, False)):
        state.count_step(torch.tensor(loss), taken)
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (3, 2, 2)
    state.count_step(torch.tensor(4.0), True)
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (4, 2, 0)
    assert state.recent_loss.take() == 3.0
    state.count_epoch()
    assert state.history["train_loss"] == [3.0]


def test_the_best_validation_is_the_lowest_that_is_a_number():
    state = RunState()
    assert state.val_loss is None
    found = [state.count_validation(loss) for loss in (math.nan, 3.0, 3.0, math.nan, 2.0)]
    assert found == [False, True, False, False, True]
    assert (state.best_loss, state.validations_without_improvement, state.val_loss) == (2.0, 0, 2.0)
    assert not state.count_validation(2.5)
    assert (state.best_loss, state.validations_without_improvement) == (2.0, 1)
    assert state.history["val_steps"] == [0] * 6
