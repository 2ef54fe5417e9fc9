"""Attention by blocks of queries, next to PyTorch's attention and to the derivatives of PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F

from src.nn import block_attention
from src.nn.block_attention import attention_in_blocks
from src.nn.dropout import dropout
from tests.bounds import assert_same_in_float64


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(block_attention, "_BLOCK_TOKENS", 4)


def attend(function, parts, weight):
    """The output of a function of Q, K and V, and the gradients of a weighted sum of it."""
    given = parts.clone().requires_grad_()
    torch.manual_seed(1)
    out = function(*given)
    (out * weight).sum().backward()
    return out.detach(), given.grad


def by_pytorch(q, k, v, rate):
    """The same blocks, without a derivative of their own."""
    parts = []
    for start in range(0, q.size(2), 4):
        rows = q[:, :, start : start + 4]
        end = start + rows.size(2)
        scores = rows @ k[:, :, :end].mT / math.sqrt(q.size(3))
        later = torch.ones(rows.size(2), end, dtype=torch.bool).triu(start + 1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        weights = dropout(weights.flatten(0, 1), rate).view_as(weights)
        parts.append(weights @ v[:, :, :end])
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("length", [1, 4, 5, 11])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_it_is_causal_attention_with_its_gradients(length, rate):
    torch.manual_seed(0)
    parts = torch.randn(3, 2, 3, length, 8, dtype=torch.float64)
    weight = torch.randn(2, 3, length, 8, dtype=torch.float64)
    found = attend(lambda q, k, v: attention_in_blocks(q, k, v, rate), parts, weight)
    others = [lambda q, k, v: by_pytorch(q, k, v, rate)]
    if not rate:
        others.append(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    for other in others:
        for ours, expected in zip(found, attend(other, parts, weight), strict=True):
            assert_same_in_float64(ours, expected)


def test_parts_of_one_projection_are_taken_as_they_are():
    """As in the layer: Q, K and V are not in one piece, and neither is the gradient."""
    torch.manual_seed(0)
    joined = torch.randn(2, 6, 3 * 2 * 4, dtype=torch.float64)
    weight = torch.randn(2, 6, 2 * 4, dtype=torch.float64)
    found = []
    for function in (attention_in_blocks, lambda q, k, v: by_pytorch(q, k, v, 0.0)):
        given = joined.clone().requires_grad_()
        parts = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in given.chunk(3, dim=-1))
        (function(*parts).transpose(1, 2).flatten(2) * weight).sum().backward()
        found.append(given.grad)
    assert_same_in_float64(*found)
