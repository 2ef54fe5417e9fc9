"""Recomputing a tensor in the backward pass."""

import torch

from src.nn.recompute import recomputed


def test_a_tensor_is_recomputed_once_for_the_gradient_and_not_kept():
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    ((x.sin() @ weight) ** 2).sum().backward()
    expected = x.grad, weight.grad
    x.grad = weight.grad = None
    calls = []

    def compute():
        calls.append(torch.is_grad_enabled())
        return x.detach().sin()

    y = x.sin()
    with recomputed(y, compute):
        out = y @ weight
    saved = [out.grad_fn._saved_self, out.grad_fn._saved_mat2]
    assert saved[1].data_ptr() == weight.data_ptr()
    assert calls == [False]
    assert saved[0].data_ptr() != y.data_ptr()
    (out**2).sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])


def test_a_view_of_it_is_recomputed_and_a_part_is_kept():
    y = torch.ones(2, 3, 4, requires_grad=True) * 2
    other = torch.ones(12, 2, requires_grad=True)
    with recomputed(y, lambda: torch.full((2, 3, 4), 5.0)):
        flat, part = y.view(2, 12) @ other, y[:1].view(1, 12) @ other
    assert flat.grad_fn._saved_self.tolist() == [[5.0] * 12] * 2
    assert part.grad_fn._saved_self.tolist() == [[2.0] * 12]
