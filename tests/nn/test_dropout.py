"""Dropout: the rate, the mean, the gradient, and `evaluating`."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.nn.dropout import Dropout, drop_rows, dropout, evaluating, is_training
from tests.bounds import by_chance, unit

LEVELS = 65_536


def test_a_rate_of_zero_and_evaluation_change_nothing():
    x = torch.randn(5, 7)
    assert dropout(x, 0.0) is x
    assert Dropout(0.5).eval()(x) is x


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    rate=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=25)
def test_every_element_is_dropped_or_scaled(shape, rate, seed):
    torch.manual_seed(seed)
    x = torch.rand(shape) + 1.0
    out = dropout(x, rate)
    scale = LEVELS / (LEVELS - round(rate * LEVELS))
    assert out.shape == x.shape
    assert bool(((out == 0) | (out == x * scale)).all())


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate_at_every_place(rate):
    torch.manual_seed(0)
    # Four numbers come from one draw: each of the four places has the same share.
    dropped = (dropout(torch.ones(100_000, 4), rate) == 0).double()
    rounded = round(rate * LEVELS) / LEVELS
    assert (dropped.mean(dim=0) - rounded).abs().max() < by_chance(rate, 100_000)
    # And no place knows of another: six standard deviations of a correlation by chance.
    together = torch.corrcoef(dropped.T) - torch.eye(4)
    assert together.abs().max() < 6 / math.sqrt(100_000)


def test_the_mean_stays():
    torch.manual_seed(0)
    draws, scale = 1_000_000, LEVELS / (LEVELS - round(0.2 * LEVELS))
    mean = dropout(torch.ones(draws), 0.2).double().mean().item()
    assert mean == pytest.approx(1.0, abs=scale * by_chance(0.2, draws) + unit())


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(50, 50, requires_grad=True)
    out = dropout(x, 0.3)
    out.sum().backward()
    kept = out.detach() != 0
    assert torch.equal(x.grad, kept * (LEVELS / (LEVELS - round(0.3 * LEVELS))))


def test_a_seed_repeats_the_mask_and_each_call_draws_another():
    x = torch.ones(1000)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_a_rate_close_to_one_leaves_numbers():
    assert bool(dropout(torch.ones(1000), 1 - 1e-9).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_stays(dtype):
    assert dropout(torch.ones(9, dtype=dtype), 0.5).dtype == dtype


def test_elsewhere_than_on_a_cpu_it_is_pytorchs_own(monkeypatch):
    asked = []
    monkeypatch.setattr("src.nn.dropout.F.dropout", lambda x, rate: asked.append(rate) or x)
    dropout(torch.empty(3, 4, device="meta"), 0.5)
    dropout(torch.empty(3, 4), 0.5)
    assert asked == [0.5]


# --- without dropout, whatever the mode ---------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_the_mode_alone_and_takes_no_gradient(training):
    layer = Dropout(0.9).train(training)
    x = torch.ones(100, requires_grad=True)
    with evaluating():
        assert layer.training is training
        assert not is_training(layer)
        assert layer(x) is x
        assert not torch.is_grad_enabled()
    assert layer.training is is_training(layer) is training
    assert torch.is_grad_enabled()


def test_evaluating_ends_with_an_error_and_may_be_nested():
    layer = Dropout(0.9).train()
    with pytest.raises(RuntimeError, match="stop"), evaluating(), evaluating():
        raise RuntimeError("stop")
    with evaluating():
        with evaluating():
            pass
        assert not is_training(layer)
    assert is_training(layer)


def test_evaluating_is_of_its_own_thread():
    layer = Dropout(0.5).train()
    found = []
    with evaluating():
        thread = threading.Thread(target=lambda: found.append(is_training(layer)))
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.uncounted
def test_compiled_dropout_follows_the_mode_and_evaluating():
    layer = Dropout(0.5).train()
    layer.compile(backend="eager")
    x = torch.ones(1000)
    for _ in range(2):
        assert bool((layer(x) == 0).any())
        with evaluating():
            assert torch.equal(layer(x), x)
    layer.eval()
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, math.nan, "0.1", None, True])
def test_a_rate_that_is_none_is_one_clear_line(rate):
    with pytest.raises(AGI2Error, match=r"^rate must be a number in \[0, 1\), not "):
        Dropout(rate)


@pytest.mark.parametrize("shape", [(1000, 3, 2), (1000, 4), (1000,)])
def test_rows_are_dropped_as_one(shape):
    torch.manual_seed(0)
    x = torch.rand(shape) + 1.0
    out = drop_rows(x, 0.25)
    is_kept = (out.flatten(1) if x.dim() > 1 else out[:, None]) != 0
    assert torch.equal(is_kept.all(1), is_kept.any(1))
    kept = is_kept.all(1)
    assert torch.allclose(out[kept], x[kept] / 0.75)
    assert abs(1 - kept.double().mean() - 0.25) < by_chance(0.25, 1000)
