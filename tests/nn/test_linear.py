"""Linear layers by oneDNN, next to `nn.Linear`."""

import copy

import pytest
import torch
from torch import nn

from src.nn import linear
from src.nn.linear import Linear, prefers_onednn
from tests.bounds import assert_within, gamma

needs_onednn = pytest.mark.skipif(linear._product is None, reason="PyTorch without oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN's products, on any processor."""
    monkeypatch.setattr(linear, "_PREFERS_ONEDNN", True)


def product_bound(a, b):
    """The error of a @ b, whose sums have as many terms as b has rows, in any order."""
    return gamma(b.size(0) + 2) * (a.double().abs() @ b.double().abs())


@needs_onednn
@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 1, 7), (0, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_a_linear_layer(onednn, shape, bias):
    torch.manual_seed(0)
    layer = Linear(6, 10, bias)
    x = torch.randn(*shape, 6, requires_grad=True)
    grad = torch.randn(*shape, 10)
    out = layer(x)
    assert out.grad_fn.name() == "OneDNNLinearBackward"
    out.backward(grad)
    weight, rows = layer.weight.detach(), x.detach().flatten(0, -2)
    of_rows = grad.flatten(0, -2)
    exact = rows.double() @ weight.double().T
    size = rows.double().abs() @ weight.double().abs().T
    if bias:
        exact, size = exact + layer.bias.double(), size + layer.bias.double().abs()
        of_bias = of_rows.double().sum(0)
        assert_within(layer.bias.grad, of_bias, gamma(9) * of_rows.double().abs().sum(0))
    assert_within(out.detach().flatten(0, -2), exact.detach(), gamma(9) * size.detach())
    of_x = of_rows.double() @ weight.double()
    assert_within(x.grad.flatten(0, -2), of_x, product_bound(of_rows, weight))
    of_weight = of_rows.double().T @ rows.double()
    assert_within(layer.weight.grad, of_weight, product_bound(of_rows.T, rows))


@needs_onednn
def test_only_what_needs_a_gradient_gets_one(onednn):
    layer = Linear(3, 4).requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is layer.bias.grad is None
    layer.requires_grad_()
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


@needs_onednn
def test_it_is_for_training_in_fp32_alone(onednn):
    layer = Linear(3, 4)
    x = torch.randn(2, 3)
    assert isinstance(layer, nn.Linear)
    assert layer(x).grad_fn.name() == "OneDNNLinearBackward"
    with torch.no_grad():
        plain = layer(x)
    assert torch.equal(plain, nn.functional.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).grad_fn.name() != "OneDNNLinearBackward"
    half = copy.deepcopy(layer).double()
    assert half(x.double()).grad_fn.name() != "OneDNNLinearBackward"
    assert layer.to("meta")(x.to("meta")).is_meta


@pytest.mark.parametrize(
    ("capability", "has_mkl", "has_onednn", "expected"),
    [
        ("AVX512", True, True, True),
        ("AVX2", True, True, False),
        ("AVX512", False, True, False),
        ("AVX512", True, False, False),
    ],
)
def test_the_processor_and_pytorch_decide(monkeypatch, capability, has_mkl, has_onednn, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    monkeypatch.setattr(linear, "_product", torch.nn.functional.linear)
    assert prefers_onednn() is expected
