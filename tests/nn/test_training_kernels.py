"""The CPU kernels of a training step, compared with PyTorch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.nn.cpu_library import LIBRARY
from src.nn.training_kernels import Gelu, ScaleKept, has_kernels, softmax_gradient_
from tests.bounds import TINY, assert_within, gamma, unit
from tests.nn.kernels import needs_library, random


@needs_library
@given(st.integers(0, 5000), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_gelu_and_its_gradient_are_pytorchs(count, std, seed):
    x = random(2, count, seed=seed, std=std).T.requires_grad_()  # not in one piece
    grad = random(count, 2, seed=seed + 1)
    doubled = x.detach().double().requires_grad_()
    # PyTorch's own form, 0.5 x (1 + tanh), loses all of a small share even in float64.
    expected = doubled * torch.sigmoid(1.5957691216057308 * (doubled + 0.044715 * doubled**3))
    expected.backward(grad.double())
    found = Gelu.apply(x)
    found.backward(grad)
    value, slope = gelu_bounds(x.detach().double())
    assert_within(found.detach(), expected.detach(), value)
    assert_within(x.grad, doubled.grad, slope * grad.double().abs() + 2 * TINY)


def gelu_bounds(x):
    """Of GELU at x, and of its slope there.

    GELU is x s with s = 1 / (1 + e^-a), a = 2 sqrt(2 / pi) (x + 0.044715 x^3). Six roundings lie
    before e, whose series ends at r^6 with |r| <= ln 2 / 2: its rest is r^7 / 5040 < 1.2e-7, its
    roundings six more. e^-a is held between e^-87 and e^40.
    """
    a = 1.5957691216057308 * (x + 0.044715 * x**3)
    share, power = torch.sigmoid(a), torch.exp(-a)
    relative = torch.expm1(a.abs().clamp(max=90) * gamma(6)) + 1.2e-7 + gamma(6)
    of_share = share * (1 - share) * relative + gamma(2) * share + math.exp(-40) * (a < -39)
    # Where 1 + e^-a is rounded to 1, what is lost is e^-a.
    of_share = torch.where(power < unit() / 2, torch.minimum(of_share, power), of_share)
    steep = 1.5957691216057308 * (1 + 0.134145 * x**2) * x.abs()
    rest = (1 - share) * steep
    slope = of_share * (1 + rest) + (share + of_share) * (of_share * steep + gamma(8) * rest)
    slope = slope + gamma(4) * (share + of_share) * (1 + rest + of_share * steep)
    return x.abs() * of_share + gamma(1) * x.abs() * (share + of_share) + TINY, slope


@needs_library
def test_gelu_far_from_zero():
    found = Gelu.apply(torch.tensor([math.nan, math.inf, 1e30, 0.0, -1e4]))
    assert found[0].isnan()
    assert found[1:4].tolist() == [math.inf, float(torch.tensor(1e30)), 0]
    assert abs(float(found[4])) <= 1e4 * math.exp(-40) * (1 + gamma(16))  # e^40 is the greatest


@needs_library
@given(st.integers(0, 5000), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_gelu_in_bf16_is_that_of_fp32_rounded(count, std, seed):
    x = random(count, seed=seed, std=std).bfloat16()
    x[: min(count, 3)] = torch.tensor([math.nan, math.inf, -math.inf])[: min(count, 3)]
    grad = random(count, seed=seed + 1).bfloat16()
    results = []
    for each in (x.float().requires_grad_(), x.clone().requires_grad_()):
        out = Gelu.apply(each)
        out.backward(grad.to(each.dtype))
        results.append((out.detach().bfloat16(), each.grad.bfloat16()))
    for found, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def test_other_types_and_devices_have_no_kernels():
    for x in (random(3), random(3).bfloat16()):
        assert has_kernels(x) == (LIBRARY is not None)
    assert not has_kernels(random(3).double())
    assert not has_kernels(random(3).to("meta"))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(count=st.integers(0, 9000), lowest=st.integers(-(2**15), 2**15 - 1), seed=st.integers(0, 99))
def test_dropout_is_pytorchs_product_bit_for_bit(dtype, count, lowest, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-(2**15), 2**15, (count, 2), generator=generator).to(torch.int16)
    x = random(2, count, seed=seed).T.to(dtype).requires_grad_()  # not contiguous
    grad = random(count, 2, seed=seed + 1).to(dtype)
    found = ScaleKept.apply(x, numbers, lowest, 1.1)
    found.backward(grad)
    factor = (numbers >= lowest).float() * 1.1
    assert found.dtype == x.grad.dtype == dtype
    assert torch.equal(found.detach(), (x.detach().float() * factor).to(dtype))
    assert torch.equal(x.grad, (grad.float() * factor).to(dtype))


def losses_and_gradient(logits, targets):
    """In float64, of logits (N, V) and targets (N,), of which negative ones are ignored."""
    exact = logits.double().log_softmax(-1)
    ignored = targets < 0
    rows, places = torch.arange(len(targets)), targets.clamp(min=0)
    gradient = exact.exp()
    one_hot = exact[rows, places].expm1()
    gradient[rows, places] = torch.where(ignored, gradient[rows, places], one_hot)
    return -exact[rows, places].masked_fill(ignored, 0.0), gradient


@needs_library
@given(
    rows=st.integers(1, 9),
    vocabulary=st.integers(1, 700),
    std=st.floats(0.01, 20),
    seed=st.integers(0, 99),
)
def test_the_gradient_of_the_cross_entropy_is_that_in_float64(rows, vocabulary, std, seed):
    logits = random(rows, vocabulary, seed=seed, std=std).bfloat16()
    targets = random(rows, seed=seed + 1).abs().mul(1e6).long() % vocabulary
    targets[rows // 2 :: 3] = -100
    losses, expected = losses_and_gradient(logits, targets)
    found = softmax_gradient_(logits, targets)
    # Of exp, its sum and its logarithm; differences of up to 200 are rounded before exp.
    error = 700 * gamma(1) + 400 * gamma(1)
    assert_within(found, losses, error * (1 + losses.abs()))
    # A target's is a difference, of the logarithm's error.
    absolute = error * (expected < 0) + 2e-37
    assert_within(logits, expected, (unit(torch.bfloat16) + error) * expected.abs() + absolute)


@needs_library
def test_the_gradient_of_a_likely_target_is_not_rounded_to_zero():
    logits = torch.tensor([[12.0, 0.0, 0.0]]).bfloat16()
    losses, expected = losses_and_gradient(logits, torch.tensor([0]))
    assert softmax_gradient_(logits, torch.tensor([0])).item() == pytest.approx(
        losses.item(), rel=0.02
    )
    assert logits[0, 0].item() == pytest.approx(expected[0, 0].item(), rel=0.02)
    assert logits[0, 0] < 0


@needs_library
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_not_hidden(bad):
    logits = torch.tensor([[1.0, bad, 2.0], [1.0, 0.0, 2.0]]).bfloat16()
    losses = softmax_gradient_(logits, torch.tensor([0, 0]))
    assert losses.isfinite().tolist() == [False, True]
    assert logits.isfinite().all(dim=1).tolist() == [False, True]


@needs_library
def test_a_target_outside_the_vocabulary_is_an_error():
    with pytest.raises(IndexError, match="a target is not below 3"):
        softmax_gradient_(torch.zeros(1, 3).bfloat16(), torch.tensor([3]))


@needs_library
def test_results_are_the_same_with_any_number_of_threads(monkeypatch):
    x, logits = random(20_000), random(8, 5000).bfloat16()
    numbers = random(20_000, seed=1).mul(9000).to(torch.int16)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        gradient = logits.clone()
        losses = softmax_gradient_(gradient, torch.arange(8))
        results.append((Gelu.apply(x), ScaleKept.apply(x, numbers, 0, 2.0), losses, gradient))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
