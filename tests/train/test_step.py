"""One optimizer step: loss, gradient accumulation, update."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config, GPT2Config
from src.model import GPT2Model
from src.train.loss import IGNORE_INDEX, NextTokenLoss, count_targets
from src.train.optimizer import can_skip_on_device, make_optimizers
from src.train.step import (
    accumulate_gradients,
    apply_gradients,
    cut_batch,
    split_batch,
    step_on_device,
)
from tests.bounds import assert_same_in_float64, gamma

CPU = torch.device("cpu")


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 20, "max_seq_len": 8, "d_model": 16, "n_layers": 1, "n_heads": 2}
    return GPT2Model(GPT2Config(**{**sizes, "dropout": 0.0, **changes}))


def exact_model(**changes):
    """In float64, where a fault is far above the rounding (see `tests.bounds`)."""
    return tiny_model(**changes).double()


def tokens(rows, seed=0):
    return torch.randint(20, (rows, 9), generator=torch.Generator().manual_seed(seed))


def plain_loss(model):
    """The loss from all logits at once."""
    return lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


# Gradients.


@given(rows=st.integers(1, 7), micro=st.integers(1, 8))
@settings(max_examples=12, deadline=None)
def test_accumulated_gradients_are_those_of_the_whole_batch(rows, micro):
    results, losses = [], []
    for size in (None, micro):
        model = exact_model()
        loss = accumulate_gradients(
            NextTokenLoss(model), tokens(rows, seed=rows), CPU, micro_batch_size=size
        )
        losses.append(loss.item())
        results.append(gradients(model))
    # Losses are weighted and added in float32: two roundings each.
    assert losses[1] == pytest.approx(losses[0], rel=gamma(2 * rows + 2), abs=0)
    for name, expected in results[0].items():
        assert_same_in_float64(results[1][name], expected)


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_weighted_parts_of_a_batch_have_together_its_gradients(rows, micro, processes):
    """Parts of unequal size and numbers of targets, or of none: what DDP and FSDP average."""
    inputs, targets = tokens(rows, seed=rows)[:, :-1], tokens(rows, seed=rows)[:, 1:]
    targets = targets.masked_fill(targets < 3 * torch.arange(rows)[:, None], IGNORE_INDEX)
    batch = inputs, targets
    whole = exact_model()
    expected_loss = accumulate_gradients(NextTokenLoss(whole), batch, CPU)
    loss, calls = 0.0, []
    shared = {name: torch.zeros_like(p) for name, p in whole.named_parameters()}
    for rank in range(processes):
        own = slice(-(-rows * rank // processes), -(-rows * (rank + 1) // processes))
        model = exact_model()
        loss_of = NextTokenLoss(model)
        loss_of.register_forward_hook(lambda *_, rank=rank: calls.append(rank))
        loss += accumulate_gradients(
            loss_of,
            (inputs[own], targets[own]),
            CPU,
            micro_batch_size=micro,
            num_targets=count_targets(targets),
            world_size=processes,
            min_micro_batches=-(-rows // (processes * micro)),
        )
        for name, gradient in gradients(model).items():
            shared[name] += gradient / processes
    # Each process takes part in as many products as any other.
    assert len({calls.count(rank) for rank in range(processes)}) == 1
    # Losses are weighted and added in float32: a few roundings for each row.
    near = pytest.approx(expected_loss.item(), rel=gamma(4 * (rows + processes)), abs=0)
    assert float(loss / processes) == near
    for name, expected in gradients(whole).items():
        assert_same_in_float64(shared[name], expected)


@given(
    ignored=st.lists(st.booleans(), min_size=40, max_size=40),
    micro=st.integers(1, 6),
    is_padded=st.booleans(),
)
@settings(max_examples=15)
def test_micro_batches_count_by_their_targets_and_padding_does_not(ignored, micro, is_padded):
    inputs, targets = tokens(5).split([8, 1], dim=1)[0], tokens(5)[:, 1:]
    batch = inputs, targets.masked_fill(torch.tensor(ignored).view(5, 8), IGNORE_INDEX)
    results, shapes = [], set()
    for size, padded in ((None, False), (micro, is_padded)):
        model = exact_model()
        loss_of = NextTokenLoss(model)
        loss_of.register_forward_pre_hook(lambda _, given: shapes.add(tuple(given[0].shape)))
        loss = accumulate_gradients(loss_of, batch, CPU, micro_batch_size=size, is_padded=padded)
        results.append({"loss": loss.item(), **gradients(model)})
    if is_padded:  # compiled code needs one shape
        assert shapes == {(5, 8), (micro, 8)}
    assert results[1].pop("loss") == pytest.approx(results[0].pop("loss"), rel=gamma(12), abs=0)
    for name, expected in results[0].items():
        assert_same_in_float64(results[1][name], expected)


@pytest.mark.parametrize(("micro", "processes"), [(None, 1), (1, 1), (2, 1), (2, 2), (3, 2)])
def test_packed_documents_have_the_loss_and_the_gradients_that_they_have_alone(micro, processes):
    documents = [[3, 5], [2, 2, 4], [8], [1]]  # inputs of each document in each row
    ids = torch.tensor([np.repeat(range(len(n) + 1), [*n, 8 - sum(n)]).tolist() for n in documents])
    inputs, targets = tokens(4, seed=1)[:, :-1], tokens(4, seed=2)[:, 1:]
    is_padding = torch.tensor([[place >= sum(n) for place in range(8)] for n in documents])
    targets = targets.masked_fill(is_padding, IGNORE_INDEX)
    alone = exact_model()
    count, total = count_targets(targets), 0.0
    for row, lengths in enumerate(documents):
        for number in range(len(lengths)):
            own = ids[row] == number
            loss = NextTokenLoss(alone)(inputs[row, own][None], targets[row, own][None])
            total += loss.item() * int(own.sum()) / int(count)
            (loss * own.sum() / count).backward()
    shared = {name: torch.zeros_like(p) for name, p in alone.named_parameters()}
    packed = 0.0
    for rank in range(processes):
        model, own = exact_model(), slice(4 * rank // processes, 4 * (rank + 1) // processes)
        packed += accumulate_gradients(
            NextTokenLoss(model),
            (inputs[own], targets[own], ids[own]),
            CPU,
            micro_batch_size=micro,
            num_targets=count,
            world_size=processes,
            min_micro_batches=2,
            is_padded=micro is not None,
        )
        for name, gradient in gradients(model).items():
            shared[name] += gradient / processes
    assert packed.item() / processes == pytest.approx(total, rel=gamma(16), abs=0)
    for name, expected in gradients(alone).items():
        assert_same_in_float64(shared[name], expected)


def test_a_batch_is_cut_to_its_first_rows_and_tokens():
    windows, parts = tokens(4), split_batch(tokens(4))
    assert torch.equal(cut_batch(windows, 2), windows[:2])
    assert torch.equal(cut_batch(windows, 1, 3), windows[:1, :3])
    assert all(map(torch.equal, cut_batch(parts, 2, 3), [part[:2, :3] for part in parts]))


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model = exact_model()
    batch = tokens(3)[:, :-1], torch.full((3, 8), IGNORE_INDEX)
    assert accumulate_gradients(NextTokenLoss(model), batch, CPU, micro_batch_size=2) == 0
    assert not any(gradient.any() for gradient in gradients(model).values())


def test_windows_and_pairs_are_the_same_batch():
    windows = tokens(3)
    losses = [
        accumulate_gradients(NextTokenLoss(tiny_model()), batch, CPU)
        for batch in (windows, (windows[:, :-1], windows[:, 1:]))
    ]
    assert losses[0] == losses[1]


def test_mixed_precision_keeps_the_weights_in_fp32():
    losses = []
    for precision in (torch.float32, torch.bfloat16):
        model = tiny_model()
        losses.append(
            accumulate_gradients(NextTokenLoss(model), tokens(4), CPU, precision=precision)
        )
        apply_gradients([torch.optim.SGD(model.parameters(), lr=0.1)])
        assert all(p.dtype == torch.float32 for p in model.parameters())
    # Five matrices, whose inputs and results are rounded; a loss is off by what two logits are.
    largest = float(tiny_model()(tokens(4)[:, :-1]).detach().abs().max())
    assert abs(losses[0] - losses[1]) <= 2 * gamma(10, torch.bfloat16) * largest
    assert losses[0] != losses[1]


# The update.


def test_the_norm_is_the_one_before_clipping_and_gradients_end_unset():
    model = exact_model()
    accumulate_gradients(NextTokenLoss(model), tokens(4), CPU)
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    norm, taken = apply_gradients([torch.optim.SGD(model.parameters(), lr=1.0)], 1e-3)
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert_same_in_float64(norm, expected)
    assert taken
    # PyTorch divides by a little more than the norm.
    assert_same_in_float64((after - before).norm(), 1e-3 * expected / (expected + 1e-6))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(tiny_run, kind, bad):
    model = tiny_model()
    optimizers = make_optimizers(model, tiny_run(optimizer=kind))
    accumulate_gradients(NextTokenLoss(model), tokens(4), CPU)
    assert apply_gradients(optimizers, 1.0)[1]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = [str(optimizer.state_dict()) for optimizer in optimizers]
    accumulate_gradients(NextTokenLoss(model), tokens(4), CPU)
    next(model.parameters()).grad[3, 3] = bad
    norm, taken = apply_gradients(optimizers, 1.0)
    assert not taken
    assert not norm.isfinite()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert state == [str(optimizer.state_dict()) for optimizer in optimizers]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_scaled_step_that_overflows_changes_nothing(tiny_run, clip, kind):
    model = tiny_model()
    optimizers = make_optimizers(model, tiny_run(optimizer=kind))
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)

    def step():
        # A loss above 3.4 is beyond the largest float once it is scaled.
        loss = NextTokenLoss(model)
        accumulate_gradients(lambda x, y: 10 * loss(x, y), tokens(4), CPU, scaler=scaler)
        apply_gradients(optimizers, clip, scaler)

    step()
    assert all(map(torch.equal, before, model.parameters()))
    assert scaler.get_scale() == torch.tensor(1e38).item() / 2  # to the last bit
    scaler.update(1024.0)
    step()
    assert not any(map(torch.equal, before, model.parameters()))
    assert all(p.isfinite().all() for p in model.parameters())


def optimizer_state(model, optimizers):
    """The weights and all tensors of the optimizers' state."""
    tensors = [p.detach().clone() for p in model.parameters()]
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors += [value.clone() for value in state.values()]
    return tensors


@pytest.mark.parametrize("clip", [1e-3, 1e3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_skipped_on_the_device_is_the_step_or_nothing(clip, value):
    results = []
    for on_device in (False, True):
        model = tiny_model()
        options = {"optimizer": "muon", "weight_decay": 0.3, "clip_grad_norm": clip}
        optimizers = make_optimizers(model, Config(**options))
        assert all(map(can_skip_on_device, optimizers))
        for step in range(4):
            accumulate_gradients(NextTokenLoss(model), tokens(4, seed=step), CPU)
            before = optimizer_state(model, optimizers)
            if step == 2:
                model.blocks[0].ffn.expand.weight.grad[0, 0] = value
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            if on_device:
                found = step_on_device(optimizers, clip, norm, torch.float32)
            else:
                found = apply_gradients(optimizers, clip)
            assert found[1] == (step != 2)
            assert all(p.grad is None for p in model.parameters())
            if step == 2:
                for old, new in zip(before, optimizer_state(model, optimizers), strict=True):
                    assert torch.equal(old, new)
        results.append(optimizer_state(model, optimizers))
    for plain, skipped in zip(*results, strict=True):
        torch.testing.assert_close(skipped, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"normuon": True}, {"cautious_weight_decay": True}])
def test_options_that_read_the_update_are_not_skipped_on_the_device(options):
    optimizers = make_optimizers(tiny_model(), Config(optimizer="muon", **options))
    assert not all(map(can_skip_on_device, optimizers))


def test_an_optimizer_that_has_loaded_an_unfused_state_is_not_skipped_on_the_device():
    model = tiny_model()
    (fused,) = make_optimizers(model, Config(optimizer="adamw"))
    plain = torch.optim.AdamW(fused.param_groups[0]["params"], fused=False)
    groups = [{**group, "fused": None} for group in fused.state_dict()["param_groups"]]
    assert can_skip_on_device(fused)
    assert not can_skip_on_device(plain)
    fused.load_state_dict({"state": {}, "param_groups": groups})
    assert not can_skip_on_device(fused)
