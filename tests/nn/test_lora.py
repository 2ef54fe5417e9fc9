"""LoRA: initialization, trained parameters, and merging."""

import pytest
import torch
from torch import nn

from src.inference.cuda_graph import GraphedBackend, StepModules
from src.nn.decode_backend import EagerBackend
from src.nn.lora import LoRALinear, add_lora, merge_lora, merged
from tests.bounds import assert_same_in_float64
from tests.tiny_models import random_model

TOKENS = torch.arange(24).view(2, 12)


def adapted(**changes):
    """A model with LoRA that has learned something: its matrices are random."""
    model = random_model(**changes)
    add_lora(model, 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    return model


def test_a_model_with_new_lora_gives_the_same_logits_bit_for_bit():
    model = random_model()
    before = model(TOKENS)
    add_lora(model, 4)
    assert torch.equal(model(TOKENS), before)


def test_only_lora_is_trained_on_every_linear_layer_of_the_blocks():
    model = adapted(n_layers=2, tie_weights=False)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    layers = ("attention.qkv", "attention.proj", "ffn.expand", "ffn.contract")
    assert trained.keys() == {
        f"blocks.{block}.{layer}.{part}"
        for block in (0, 1)
        for layer in layers
        for part in ("lora_down", "lora_up")
    }
    model(TOKENS).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


def test_a_layer_adds_the_product_of_its_two_matrices():
    linear = nn.Linear(6, 4)
    layer = LoRALinear(linear, 2)
    with torch.no_grad():
        layer.lora_up.normal_()
    assert layer.lora_down.abs().sum() > 0
    layer.double()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = x @ (linear.weight + layer.lora_up @ layer.lora_down).T + linear.bias
    assert_same_in_float64(layer(x), expected)


def test_merging_keeps_the_logits_and_leaves_a_plain_model():
    for options in ({}, {"bias": False}):
        model, plain = adapted(**options).double(), random_model(**options).double()
        before = model(TOKENS).detach()
        assert (before - plain(TOKENS)).abs().max() > 0.1
        plain.load_state_dict(merged(model.state_dict()))
        assert_same_in_float64(plain(TOKENS), before)
        model.use_decode_backend(GraphedBackend(StepModules.of(model)))  # reads the weights
        merge_lora(model)
        assert isinstance(model.decode_backend, EagerBackend)
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(model(TOKENS), plain(TOKENS))
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_without_lora_are_merged_into_themselves():
    weights = random_model().state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in merged(weights).items())
    assert merged(weights).keys() == weights.keys()


def test_a_layer_tells_its_sizes_and_its_rank():
    told = repr(LoRALinear(nn.Linear(4, 6), 2))
    assert "in_features=4, out_features=6" in told
    assert "rank=2" in told


@pytest.mark.parametrize("is_tied", [True, False])
def test_only_the_rows_of_new_tokens_are_trained_until_lora_is_merged(is_tied):
    model = random_model(tie_weights=is_tied)
    add_lora(model, 3, [5, 7])
    weights = [model.token_embeddings.weight] + ([] if is_tied else [model.head.weight])
    model(TOKENS).square().sum().backward()
    for weight in weights:
        assert weight.grad[[5, 7]].abs().sum(1).all()
        weight.grad[[5, 7]] = 0
        assert not weight.grad.any()
    merge_lora(model)
    model(TOKENS).square().sum().backward()
    assert model.output_weight.grad.abs().sum(1).all()
