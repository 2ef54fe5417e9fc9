"""Weights for generation: the same model to rounding, or to the levels that were asked for."""

import copy

import pytest
import torch
from torch import nn

from src.errors import AGI2Error
from src.generation import generate_tokens
from src.quantization import GROUP, FixedLinear, prepare_for_generation
from tests.tiny_models import random_model

SIZES = {"d_model": 64, "d_ff": 96, "n_heads": 4, "vocab_size": 83, "max_seq_len": 32}


def make(**changes):
    return random_model(**{**SIZES, "position_embedding": "learned", "std": 0.1, **changes})


def tokens(rows=3, length=20):
    return torch.randint(0, 83, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def log_probs(model, rows=3):
    return model(tokens(rows)).log_softmax(dim=-1)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": False}, {"bias": False}])
def test_weights_in_another_layout_give_the_same_logits(changes):
    model = make(**changes)
    expected = log_probs(model)
    prepared = prepare_for_generation(copy.deepcopy(model))
    torch.testing.assert_close(log_probs(prepared), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("quantize", "worst"), [("int8", 0.1), ("int4", 0.7)])
def test_rounded_weights_change_the_probabilities_little(quantize, worst):
    model = make()
    expected = log_probs(model)
    difference = (log_probs(prepare_for_generation(model, quantize)) - expected).abs()
    assert 0 < float(difference.mean()) < worst * float(expected.std())


def weight_of(layer: FixedLinear, inputs: int) -> torch.Tensor:
    """A layer's matrix, by what it makes of the unit vectors, one at a time."""
    with torch.inference_mode():
        return torch.cat([layer(row.unsqueeze(0)) for row in torch.eye(inputs)]).T


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_rounded_weight_is_at_most_half_a_step_away(quantize):
    model = make(bias=False)
    before = model.blocks[0].ffn.expand.weight.detach().clone()
    prepare_for_generation(model, quantize)
    after = weight_of(model.blocks[0].ffn.expand, before.size(1))
    if quantize == "int8":
        step = before.abs().amax(dim=1, keepdim=True) / 127
        slack = 1.02  # the unit vectors are rounded, too
        assert ((after - before).abs() <= slack * step / 2 + 0.01 * before.abs()).all()
    else:
        groups = before.unflatten(1, (-1, GROUP))
        step = (groups.amax(dim=-1) - groups.amin(dim=-1)) / 15
        error = (after - before).unflatten(1, (-1, GROUP))
        # As good as plain rounding; the outermost may be cut further. bf16 keeps 8 bits.
        plain = (step.square() / 12).mean().sqrt()
        assert error.square().mean().sqrt() < 1.1 * plain


def test_a_weight_of_16_levels_is_kept_in_4_bits():
    model = make(bias=False, d_model=GROUP, n_heads=2, d_ff=GROUP)
    levels = torch.arange(16.0).repeat(2)
    exact = (levels - 8) / 8  # numbers that bf16 holds
    linear = model.blocks[0].ffn.expand
    with torch.no_grad():
        linear.weight.copy_(exact.expand_as(linear.weight))
    prepare_for_generation(model, "int4")
    after = weight_of(model.blocks[0].ffn.expand, GROUP)
    torch.testing.assert_close(after, exact.expand_as(after), atol=1e-2, rtol=0)


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_writes_with_its_cache_what_it_says_without(quantize):
    model = prepare_for_generation(make(), quantize)
    written = list(generate_tokens(model, [1, 2, 3], 8, 0))
    text = [1, 2, 3]
    for token in written:
        with torch.inference_mode():
            logits = model(torch.tensor([text]))[0, -1]
        # Rounding differs with the number of rows: only a close call may be called otherwise.
        assert logits.max() - logits[token] < (1e-5 if quantize == "none" else 0.1)
        text.append(token)


def test_without_onednn_the_weights_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("src.quantization.platform.machine", lambda: "riscv64")
    model = make()
    assert prepare_for_generation(model) is model
    assert isinstance(model.blocks[0].attention.qkv, nn.Linear)
    assert model.head is None


def test_a_width_that_groups_do_not_divide_is_one_clear_line():
    with pytest.raises(AGI2Error, match=r'^quantize = "int4" needs model_embd and model_ff'):
        prepare_for_generation(make(d_ff=80), "int4")


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_weights_that_are_no_numbers_are_one_clear_line(quantize):
    model = make()
    with torch.no_grad():
        model.blocks[1].ffn.expand.weight[3, 4] = float("nan")
    with pytest.raises(AGI2Error, match="no finite numbers"):
        prepare_for_generation(model, quantize)


def test_another_device_keeps_its_weights():
    model = make().to("meta")
    assert prepare_for_generation(model) is model
    with pytest.raises(AGI2Error, match=r'^quantize = "int8" is for a CPU'):
        prepare_for_generation(model, "int8")


def test_a_machine_without_such_products_is_one_clear_line(monkeypatch):
    def missing(*_):
        raise RuntimeError("no engine\nfound")

    monkeypatch.setattr("src.quantization.torch.quantize_per_channel", missing)
    with pytest.raises(AGI2Error, match=r"^quantize: PyTorch has no such products .*no engine"):
        prepare_for_generation(make(), "int8")
