"""Weights for generation: the same model to rounding, or to the levels that were asked for."""

import copy
import sys
from pathlib import Path

import pytest
import torch

from src.errors import AGI2Error
from src.generation import generate_tokens
from src.model_folder import load_weights, save_weights
from src.native import LIBRARY
from src.quantization import GROUP, prepare_for_generation
from tests.tiny_models import random_model

SIZES = {"d_model": 64, "d_ff": 192, "n_heads": 4, "vocab_size": 83, "max_seq_len": 32}


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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("quantize", "worst"), [("int8", 0.1), ("int4", 0.7)])
def test_rounded_weights_change_the_probabilities_little(quantize, worst, tied):
    model = make(tie_weights=tied)
    expected = log_probs(model)
    difference = (log_probs(prepare_for_generation(model, quantize)) - expected).abs()
    assert 0 < float(difference.mean()) < worst * float(expected.std())


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_tied_embeddings_are_the_heads_rows(quantize):
    model = prepare_for_generation(make(), quantize)
    assert torch.equal(model.token_embeddings(tokens()), model.head.weight[tokens()])


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
@pytest.mark.skipif(LIBRARY is None, reason="no C compiler at installation")
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_keeps_nothing_of_the_file(quantize, tmp_path):
    """A tensor that was read from it, however small, would keep all of it in memory."""
    model = make(n_layers=2, position_embedding="sinusoidal")
    path = tmp_path / "model.safetensors"
    save_weights(model.state_dict(), path)
    load_weights(model, path, assign=True)
    maps = Path("/proc/self/maps")
    assert str(path) in maps.read_text()
    prepare_for_generation(model, quantize)
    assert str(path) not in maps.read_text()


def expanding(model):
    """The first layer's widening matrix, as it is multiplied with."""
    return model.blocks[0].ffn.expand.weight


def test_a_weight_of_8_bits_is_at_most_half_a_step_away():
    model = make(bias=False)
    before = expanding(model).detach().clone()
    after = expanding(prepare_for_generation(model, "int8"))
    step = before.abs().amax(dim=1, keepdim=True) / 127
    assert ((after - before).abs() <= 0.5001 * step).all()


def test_weights_of_4_bits_are_as_near_as_plain_rounding_brings_them():
    model = make(bias=False)
    before = expanding(model).detach().clone()
    after = expanding(prepare_for_generation(model, "int4"))
    groups = before.unflatten(1, (-1, GROUP))
    step = (groups.amax(dim=-1) - groups.amin(dim=-1)) / 15
    plain = (step.square() / 12).mean().sqrt()
    assert (after - before).square().mean().sqrt() < plain


def test_a_weight_of_16_levels_is_kept_in_4_bits():
    model = make(bias=False, n_heads=2)
    levels = torch.arange(16.0).repeat(4)
    exact = (levels - 8) / 8  # numbers that bfloat16 holds
    with torch.no_grad():
        expanding(model).copy_(exact.expand_as(expanding(model)))
    after = expanding(prepare_for_generation(model, "int4"))
    torch.testing.assert_close(after, exact.expand_as(after), atol=0, rtol=0)


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_writes_with_its_cache_what_it_says_without(quantize):
    model = prepare_for_generation(make(), quantize)
    written = list(generate_tokens(model, [1, 2, 3], 8, 0))
    text = [1, 2, 3]
    for token in written:
        with torch.inference_mode():
            logits = model(torch.tensor([text]))[0, -1]
        # Rounding differs with the number of rows: only a close call may be called otherwise.
        assert logits.max() - logits[token] < (1e-5 if quantize == "none" else 1e-3)
        text.append(token)


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_without_the_compiled_part_the_logits_are_the_same(quantize, monkeypatch, caplog):
    compiled = prepare_for_generation(make(), quantize)
    assert not caplog.messages
    monkeypatch.setattr("src.native.LIBRARY", None)
    plain = prepare_for_generation(make(), quantize)
    assert plain.few_tokens is None
    assert ("saves memory here, and no time" in caplog.text) == (quantize != "none")
    monkeypatch.undo()
    # The compiled part rounds what it multiplies with weights of 4 bits.
    slack = 2e-2 if quantize == "int4" else 2e-4
    torch.testing.assert_close(log_probs(compiled), log_probs(plain), atol=slack, rtol=slack)


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


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_reads_in_bfloat16_as_another_does(quantize):
    model = prepare_for_generation(make(), quantize)
    expected = log_probs(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_probs(model)
    assert (found - expected).abs().max() < 0.05 * (expected.max() - expected.min())
