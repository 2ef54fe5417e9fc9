"""Weights with unused rows in their storage."""

import copy
import io

import pytest
import torch
from torch import nn

from src.nn.padded_weight import ROWS, pad_rows, padded_rows


@pytest.mark.parametrize(("count", "padded"), [(1, 64), (63, 64), (64, 64), (65, 128)])
def test_a_weight_is_what_it_was_and_has_zero_rows_behind_it(count, padded):
    layer = nn.Linear(3, count, bias=False)
    weight, before = layer.weight, layer.weight.detach().clone()
    pad_rows(weight)
    assert layer.weight is weight
    assert weight.requires_grad
    assert torch.equal(weight, before)
    assert weight.is_contiguous()
    view = padded_rows(weight)
    assert view.shape == (padded, 3)
    assert view.data_ptr() == weight.data_ptr()
    assert not view[count:].any()
    assert padded % ROWS == 0


def test_a_training_step_of_the_weight_is_one_of_the_padded_matrix():
    layer = nn.Linear(3, 5, bias=False)
    pad_rows(layer.weight)
    layer(torch.ones(2, 3)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert torch.equal(padded_rows(layer.weight)[:5], layer.weight)


def test_a_weight_without_unused_rows_is_returned_itself():
    weight = torch.ones(5, 3)
    assert padded_rows(weight) is weight
    assert padded_rows(torch.ones(70, 64).t()).shape == (64, 70)
    last = torch.ones(70, 3)[65:]  # the rows of its storage are before it
    assert padded_rows(last) is last


def test_an_inference_tensor_stays_as_it_is():
    with torch.inference_mode():
        layer = nn.Linear(3, 5, bias=False)
    pad_rows(layer.weight)
    assert padded_rows(layer.weight).shape == (5, 3)
    layer = nn.Linear(3, 5, bias=False)
    with torch.inference_mode():
        pad_rows(layer.weight)
    assert not layer.weight.is_inference()
    assert padded_rows(layer.weight).shape == (64, 3)


def test_a_padded_weight_is_copied_saved_and_loaded_as_any():
    layer = nn.Linear(3, 5, bias=False)
    pad_rows(layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert torch.equal(torch.load(file)["weight"], layer.weight)
