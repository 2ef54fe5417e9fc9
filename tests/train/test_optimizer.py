"""AdamW and Muon: parameter groups, updates, saved state."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from src.config import Config, GPT2Config
from src.errors import AGI2Error
from src.model import GPT2Model
from src.train.optimizer import (
    CautiousAdamW,
    Muon,
    even_rows,
    make_optimizers,
    orthogonalize,
    parameter_groups,
)
from tests.bounds import assert_same_in_float64, differs_in_float64


def make_model(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "max_seq_len": 8, "d_model": 16, "n_layers": 2, "n_heads": 2}
    return GPT2Model(GPT2Config(**{**sizes, **changes}))


def names_of(model, parameters):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [by_id[id(p)] for p in parameters]


def groups_of(optimizers):
    return [group for optimizer in optimizers for group in optimizer.param_groups]


ARCHITECTURES = [
    {},
    {"tie_weights": False},
    {"position_embedding": "learned"},
    {"bias": False},
    {"norm_position": "post"},
]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("changes", ARCHITECTURES)
def test_every_parameter_is_in_one_group(optimizer, changes):
    model = make_model(**changes)
    optimizers = make_optimizers(model, Config(optimizer=optimizer))
    covered = [p for group in groups_of(optimizers) for p in group["params"]]
    assert sorted(names_of(model, covered)) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_matrices_decay(optimizer):
    model = make_model(position_embedding="learned", tie_weights=False)
    optimizers = make_optimizers(model, Config(optimizer=optimizer, weight_decay=0.3))
    for group in groups_of(optimizers):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.dim() >= 2 else 0.0)


def test_groups_without_parameters_are_left_out():
    matrix = nn.Parameter(torch.zeros(2, 2))
    assert parameter_groups({"a": matrix}, 0.1) == [{"params": [matrix], "weight_decay": 0.1}]
    assert parameter_groups({}, 0.1) == []


def test_frozen_parameters_are_left_alone():
    model = make_model()
    model.token_embeddings.weight.requires_grad_(False)
    covered = [p for g in groups_of(make_optimizers(model, Config())) for p in g["params"]]
    assert len(covered) == len(list(model.parameters())) - 1


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = make_model(tie_weights=False)
    adamw, muon = make_optimizers(model, Config(optimizer="muon"))
    assert isinstance(adamw, torch.optim.AdamW)
    names = names_of(model, [p for group in muon.param_groups for p in group["params"]])
    kinds = ["attention.qkv", "attention.proj", "ffn.expand", "ffn.contract"]
    assert set(names) == {f"blocks.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    parts = [group["parts"] for group in muon.param_groups]
    assert parts == [3 if "qkv" in name else 1 for name in names]


def test_the_configuration_sets_the_rates():
    keys = {"learning_rate": 0.011, "muon_learning_rate": 0.022, "adam_beta2": 0.9}
    adamw, muon = make_optimizers(make_model(), Config(optimizer="muon", **keys))
    for group in adamw.param_groups:
        assert group["lr"] == group["initial_lr"] == 0.011
        assert group["betas"] == (0.9, 0.9)
    for group in muon.param_groups:
        assert group["lr"] == group["initial_lr"] == 0.022


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("changes", ARCHITECTURES)
def test_embeddings_head_and_norms_have_rates_of_their_own(optimizer, changes):
    model = make_model(**changes)
    is_tied = changes.get("tie_weights", True)
    factors = {"embedding_lr_factor": 2.0, "norm_lr_factor": 3.0}
    factors |= {} if is_tied else {"head_lr_factor": 5.0}
    keys = {"optimizer": optimizer, "learning_rate": 0.01, "tie_weights": is_tied, **factors}
    rates = {
        name: group["initial_lr"]
        for group in groups_of(make_optimizers(model, Config(**keys)))
        for name in names_of(model, group["params"])
    }
    for name, parameter in model.named_parameters():
        if "embeddings" in name:
            expected = 0.02
        elif name.startswith("head"):
            expected = 0.05
        elif parameter.dim() == 1:
            expected = 0.03
        else:
            expected = 0.01 if optimizer == "adamw" else 0.02
        assert rates[name] == pytest.approx(expected)
    for group in groups_of(make_optimizers(model, Config(**keys, weight_decay=0.3))):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.dim() >= 2 else 0.0)


def test_with_equal_rates_there_are_the_groups_of_weight_decay():
    model = make_model(tie_weights=False)
    [adamw] = make_optimizers(model, Config())
    assert len(adamw.param_groups) == 2
    with pytest.raises(AGI2Error, match="head_lr_factor is for a head of its own"):
        Config(head_lr_factor=2.0)


# Cautious weight decay


def adamw_in_numpy(weight, gradients, *, lr, weight_decay, betas=(0.9, 0.99), is_cautious=True):
    """Weights after steps of AdamW with cautious weight decay, by its formulas."""
    m = v = np.zeros_like(weight)
    for step, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        update = m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + 1e-8)
        mask = np.sign(update) * np.sign(weight) >= 0 if is_cautious else 1
        weight = weight - lr * (update + weight_decay * mask * weight)
    return weight


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("is_fused", [False, True])
def test_cautious_adamw_is_its_formulas(weight_decay, is_fused):
    weight = matrix(6, 5)
    weight[0] = 0
    gradients = [matrix(6, 5, seed) for seed in range(1, 6)]
    parameter, other = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    options = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    optimizer = CautiousAdamW([parameter, other], fused=is_fused, **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()  # the other one has none, and does not decay
        optimizer.step()
    expected = adamw_in_numpy(
        weight.numpy(), [g.numpy() for g in gradients], lr=0.1, weight_decay=weight_decay
    )
    assert_same_in_float64(parameter, torch.from_numpy(expected))
    assert torch.equal(other, weight)
    assert optimizer.param_groups[0]["weight_decay"] == weight_decay
    plain = adamw_in_numpy(
        weight.numpy(), [g.numpy() for g in gradients], lr=0.1, weight_decay=0.5, is_cautious=False
    )
    assert differs_in_float64(parameter, torch.from_numpy(plain))


def test_cautious_muon_decays_where_the_update_has_the_weights_sign():
    weight, gradient = matrix(6, 8), matrix(6, 8, 1)
    update = step([torch.zeros_like(weight)], [gradient], lr=1.0)  # subtracted
    mask = (-update * weight >= 0).double()
    assert 0 < mask.mean() < 1
    found = step([weight], [gradient], lr=0.1, weight_decay=0.5, is_cautious=True)
    assert_same_in_float64(found, weight * (1 - 0.05 * mask) + 0.1 * update)


def test_the_key_makes_both_optimizers_cautious():
    model = make_model()
    plain = make_optimizers(model, Config(optimizer="muon"))
    cautious = make_optimizers(model, Config(optimizer="muon", cautious_weight_decay=True))
    assert [type(each) for each in plain] == [torch.optim.AdamW, Muon]
    assert [type(each) for each in cautious] == [CautiousAdamW, Muon]
    assert [each._is_cautious for each in (plain[1], cautious[1])] == [False, True]


# Muon


def matrix(rows, columns, seed=0):
    """In float64, where a fault is far above the rounding (see `tests.bounds`)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def brought_near_one(singular_values):
    """What five steps of Jordan et al. make of singular values, as shares of their norm."""
    for _ in range(5):
        s = singular_values
        singular_values = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return singular_values


def test_five_steps_bring_singular_values_near_one():
    values = brought_near_one(torch.linspace(0.03, 1, 10_000, dtype=torch.float64))
    # The smallest ones take more steps.
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (1, 5), (24, 48)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonalize_keeps_directions_and_changes_singular_values(shape, scale):
    batch = torch.stack([matrix(*shape, seed=seed) * scale for seed in range(3)])
    results = orthogonalize(batch)
    for before, result in zip(batch, results, strict=True):
        u, s, vt = torch.linalg.svd(before, full_matrices=False)
        assert_same_in_float64(result, u @ brought_near_one(s / s.norm()).diag() @ vt)


def test_orthogonalize_under_autocast_is_in_bf16_and_near_the_same():
    batch = torch.stack([matrix(24, 48, seed=seed).float() for seed in range(3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = orthogonalize(batch)
    assert found.dtype == torch.bfloat16
    expected = orthogonalize(batch)
    assert float((found.float() - expected).norm() / expected.norm()) < 0.05


def test_orthogonalize_leaves_a_zero_matrix_zero():
    assert orthogonalize(torch.zeros(1, 4, 4)).abs().max() == 0


def step(weights, gradients, *, steps=1, **options):
    """Weights after some steps, as (parts,) matrices on top of each other in one parameter."""
    parameter = nn.Parameter(torch.cat(weights).clone())
    optimizer = Muon([{"params": [parameter], "parts": len(weights)}], **options)
    for _ in range(steps):
        parameter.grad = torch.cat(gradients).clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(12, 12), (8, 24), (24, 8)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_muon_is_pytorchs(monkeypatch, shape, weight_decay):
    """But that PyTorch orthogonalises in bfloat16, this project in the weights' own type."""
    monkeypatch.setattr(torch, "bfloat16", torch.float64)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    ours = nn.Parameter(matrix(*shape))
    theirs = nn.Parameter(matrix(*shape))
    options = {"lr": 0.1, "weight_decay": weight_decay, "momentum": 0.9}
    mine = Muon([ours], **options)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="original", **options)
    for seed in range(1, 4):
        ours.grad = matrix(*shape, seed=seed)
        theirs.grad = matrix(*shape, seed=seed)
        mine.step()
        reference.step()
    assert_same_in_float64(ours, theirs)


def test_parts_of_a_parameter_are_orthogonalised_apart():
    weights = [matrix(6, 6, seed) for seed in range(3)]
    gradients = [matrix(6, 6, 10 + seed) * 10**seed for seed in range(3)]
    together = step(weights, gradients, steps=3, lr=0.1, weight_decay=0.1)
    apart = [
        step([w], [g], steps=3, lr=0.1, weight_decay=0.1)
        for w, g in zip(weights, gradients, strict=True)
    ]
    assert_same_in_float64(together, torch.cat(apart))
    whole = step([torch.cat(weights)], [torch.cat(gradients)], steps=3, lr=0.1, weight_decay=0.1)
    assert differs_in_float64(together, whole)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (5, 1), (1, 5)])
@pytest.mark.parametrize("parts", [1, 3])
def test_normuon_is_its_formulas(shape, parts):
    """Of each matrix by itself: the rows' second moments, and an update of the same norm."""
    weights = [matrix(*shape, seed) for seed in range(parts)]
    gradients = [matrix(*shape, 10 + seed) * 10**seed for seed in range(parts)]
    found = step(weights, gradients, steps=4, lr=0.1, weight_decay=0.5, has_even_rows=True)
    for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        expected, rows = weight.numpy(), np.zeros((shape[0], 1))
        for steps in range(1, 5):
            # The orthogonalized momentum, as plain Muon makes it in this step.
            ends = [
                step([torch.zeros_like(weight)], [gradient], steps=n, lr=1.0)
                for n in (steps - 1, steps)
            ]
            update = (ends[0] - ends[1]).numpy()
            rows = 0.95 * rows + 0.05 * np.square(update).mean(axis=1, keepdims=True)
            even = update / np.sqrt(rows)
            even *= np.linalg.norm(update) / np.linalg.norm(even)
            expected = expected * (1 - 0.05) - 0.1 * even
        own = found[number * shape[0] : (number + 1) * shape[0]]
        assert torch.allclose(own, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_rows_of_zeros_stay_and_the_key_selects_normuon():
    update, squares = torch.zeros(4, 3), torch.zeros(4)
    even_rows(update, squares, 2)
    assert update.abs().max() == squares.abs().max() == 0
    model = make_model()
    _, muon = make_optimizers(model, Config(optimizer="muon", normuon=True))
    assert muon._has_even_rows
    assert not make_optimizers(model, Config(optimizer="muon"))[1]._has_even_rows
    with pytest.raises(AGI2Error, match="normuon goes with Muon"):
        Config(normuon=True)


def test_parameters_of_many_shapes_and_groups_do_not_disturb_each_other():
    shapes = [(6, 6), (6, 9), (9, 6), (6, 6), (9, 6), (5, 1), (1, 5)]
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    weights = [matrix(*shape, seed) for seed, shape in enumerate(shapes)]
    gradients = [matrix(*shape, 20 + seed) for seed, shape in enumerate(shapes)]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Muon(
        [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for weight, gradient, rate, parameter in zip(
        weights, gradients, rates, parameters, strict=True
    ):
        assert_same_in_float64(parameter, step([weight], [gradient], lr=rate))


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_the_size_of_an_update_depends_on_the_columns_alone(shape):
    """Where all directions are as strong."""
    gradient = nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64))
    update = step([torch.zeros_like(gradient)], [gradient], lr=0.5)
    value = brought_near_one(torch.tensor(min(shape), dtype=torch.float64).rsqrt())
    assert_same_in_float64(update.square().mean().sqrt(), value * 0.5 / math.sqrt(shape[1]))


def test_weight_decay_shrinks_by_the_rate_and_needs_a_gradient():
    weight = matrix(4, 4)
    decayed = step([weight], [torch.zeros_like(weight)], lr=0.1, weight_decay=0.5)
    assert torch.equal(decayed, weight * (1 - 0.1 * 0.5))
    untouched = nn.Parameter(weight.clone())
    Muon([untouched], weight_decay=0.5).step()
    assert torch.equal(untouched, weight)


def test_muon_goes_on_from_its_saved_state():
    def run(interrupted):
        parameter = nn.Parameter(matrix(6, 4))
        optimizer = Muon([parameter], lr=0.1)
        for seed in range(4):
            if interrupted and seed == 2:
                state = optimizer.state_dict()
                optimizer = Muon([parameter], lr=0.9)
                optimizer.load_state_dict(state)
            parameter.grad = matrix(6, 4, seed)
            optimizer.step()
        return parameter

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_few_steps_lower_the_loss(optimizer):
    model = make_model(dropout=0.0)
    optimizers = make_optimizers(model, Config(optimizer=optimizer, learning_rate=1e-2))
    tokens = torch.arange(8).repeat(2, 1)
    losses = []
    for _ in range(20):
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
    # Better than what is best without a look at the token before: a seventh for each target.
    assert losses[-1] < math.log(7) < losses[0]
