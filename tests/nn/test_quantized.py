import torch

from src.inference.prepare import prepare_for_generation
from src.nn.quantized import GROUP
from tests.bounds import gamma
from tests.inference.test_prepare import expanding, make


def test_a_weight_of_8_bits_is_at_most_half_a_step_away():
    model = make(bias=False)
    before = expanding(model).detach().clone()
    after = expanding(prepare_for_generation(model, "int8"))
    step = before.abs().amax(dim=1, keepdim=True) / 127
    # The step, the quotient and the product are rounded: 127 levels by three u at most.
    assert ((after - before).abs() <= (0.5 + 127 * gamma(4)) * step).all()


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
    assert torch.equal(after, exact.expand_as(after))
