"""The average of the weights: its values, what validation keeps of it, and exact resume."""

import numpy as np
import pytest
import torch
from torch import nn

from src.evaluation.loss import evaluate
from src.formats.model_dir import load_model, load_tensors
from src.train.averaging import WeightAverage
from src.train.checkpoint import TENSORS, checkpoint_folder
from src.train.estimates import model_sizes
from src.train.optimizer import AVERAGE, make_optimizers
from src.train.setup import prepare
from src.train.trackers import read_metrics
from src.training import train_from_config
from tests.bounds import assert_same_in_float64
from tests.tiny_models import tiny_config, tiny_model

CONSTANT = {"lr_schedule": "constant", "warmup_steps": 0, "ema_decay": 0.9}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_is_that_of_a_loop_over_the_weights(optimizer):
    model = tiny_model(optimizer=optimizer).double()
    optimizers = make_optimizers(model, tiny_config(optimizer=optimizer))
    average = WeightAverage(optimizers, 0.5)
    assert not average.exists
    assert average.evaluate(lambda: 1) is None
    history = []
    for step in range(12):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for each in optimizers:
            each.step()
        average.update(step)
        history.append([parameter.detach().clone().numpy() for parameter in model.parameters()])
    expected = history[0]
    for step, weights in enumerate(history[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, weights, strict=True)]
    assert average.exists

    def weights():
        return [parameter.detach().clone() for parameter in model.parameters()]

    for found, value in zip(average.evaluate(weights), expected, strict=True):
        assert_same_in_float64(found, torch.from_numpy(value))
    for found, value in zip(weights(), history[-1], strict=True):
        assert np.array_equal(found.numpy(), value)
    with average.swapped(False):
        assert torch.equal(weights()[0], torch.from_numpy(history[-1][0]))


def test_without_a_decay_there_is_none():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    average = WeightAverage([optimizer], None)
    average.update(0)
    assert not average.exists
    assert AVERAGE not in optimizer.state[parameter]


def test_the_better_of_weights_and_average_is_kept(tiny_run):
    """With a rate that is too high the average is; both losses are those of their weights."""
    config = tiny_run(max_steps=30, eval_interval=30, learning_rate=0.3, eval_tokens=0, **CONSTANT)
    run = train_from_config(config)
    [entry] = [each for each in read_metrics(run.folder / "metrics.jsonl") if "val_loss" in each]
    assert entry["average_val_loss"] < entry["weights_val_loss"]
    assert entry["val_loss"] == entry["average_val_loss"] == run.history["best_val_loss"]
    data, kept = prepare(config).val_data, load_model(run.folder)
    assert evaluate(kept.model, data, kept.tokenizer).loss == pytest.approx(entry["val_loss"])
    saved = checkpoint_folder(run.folder, 30)
    current = load_model(saved)
    found = evaluate(current.model, data, kept.tokenizer).loss
    assert found == pytest.approx(entry["weights_val_loss"])
    averages = load_tensors(saved / TENSORS)
    for name, weight in kept.model.named_parameters():
        assert torch.equal(averages[f"optimizer.{name}.{AVERAGE}"], weight)


def test_training_is_not_changed_by_it(tiny_run):
    keys = {"max_steps": 6, "eval_interval": 2, "optimizer": "muon", "dropout": 0.1}
    runs = [
        train_from_config(tiny_run(name, **keys, ema_decay=decay))
        for name, decay in (("without", None), ("with", 0.9))
    ]
    weights = [load_tensors(checkpoint_folder(run.folder, 6) / TENSORS) for run in runs]
    assert {name for name in weights[1] if not name.endswith(AVERAGE)} == weights[0].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor)
    assert runs[0].history["train_loss"] == runs[1].history["train_loss"]
    # The current weights, which are worse or better than the average.
    logs = [read_metrics(run.folder / "metrics.jsonl") for run in runs]
    without, both = ([e for e in log if "val_loss" in e] for log in logs)
    for one, other in zip(without, both, strict=True):
        assert one["val_loss"] == other["weights_val_loss"]
        assert other["val_loss"] == min(other["weights_val_loss"], other["average_val_loss"])


def test_resuming_is_exact_and_the_key_may_change(tiny_run):
    keys = {"eval_interval": 2, "checkpoint_interval": 2, **CONSTANT}
    complete = train_from_config(tiny_run("complete", max_steps=6, **keys))
    train_from_config(tiny_run("cut", max_steps=4, **keys))
    resumed = train_from_config(tiny_run("cut", max_steps=6, resume="auto", **keys))
    tensors = [
        load_tensors(checkpoint_folder(run.folder, 6) / TENSORS) for run in (complete, resumed)
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert any(name.endswith(AVERAGE) for name in tensors[0])
    for name, tensor in tensors[0].items():
        assert torch.equal(tensors[1][name], tensor)
    # Without it from now on, then with a new one.
    keys["ema_decay"] = None
    run = train_from_config(tiny_run("cut", max_steps=7, resume="auto", **keys))
    names = load_tensors(checkpoint_folder(run.folder, 7) / TENSORS)
    assert not any(name.endswith(AVERAGE) for name in names)
    keys["ema_decay"] = 0.5
    run = train_from_config(tiny_run("cut", max_steps=8, resume="auto", **keys))
    tensors = load_tensors(checkpoint_folder(run.folder, 8) / TENSORS)
    weights = load_model(checkpoint_folder(run.folder, 8)).model.state_dict()
    for name in weights:
        assert torch.equal(tensors[f"optimizer.{name}.{AVERAGE}"], weights[name])


def test_a_run_with_its_average_as_teacher_is_resumed_exactly(tiny_run):
    keys = {"eval_interval": 2, "checkpoint_interval": 2, "self_distillation": 0.5, **CONSTANT}
    complete = train_from_config(tiny_run("complete", max_steps=6, **keys))
    train_from_config(tiny_run("cut", max_steps=4, **keys))
    resumed = train_from_config(tiny_run("cut", max_steps=6, resume="auto", **keys))
    keys["self_distillation"] = 0.0
    without = train_from_config(tiny_run("without", max_steps=6, **keys))
    tensors, again, others = (
        load_tensors(checkpoint_folder(run.folder, 6) / TENSORS)
        for run in (complete, resumed, without)
    )
    assert tensors.keys() == again.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor)
    assert not all(torch.equal(others[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_copy_of_a_model_shares_its_average(tie_weights):
    model = tiny_model(tie_weights=tie_weights, dropout=0.5).train()
    frozen = next(model.parameters()).requires_grad_(False) if not tie_weights else None
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    average = WeightAverage([optimizer], 0.5)
    assert average.model_of(model) is None
    for step in range(3):
        model(torch.tensor([[1, 2, 3]])).sum().backward()
        optimizer.step()
        average.update(step)
        if step == 0:
            copied = average.model_of(model)
    assert not copied.training
    assert model.training
    assert (copied.output_weight is next(copied.parameters())) == tie_weights
    for name, parameter in copied.named_parameters():
        original = model.get_parameter(name)
        if original is frozen:
            assert parameter is frozen
        else:
            assert torch.equal(parameter, optimizer.state[original][AVERAGE])
            assert not torch.equal(parameter, original)
            assert not parameter.requires_grad


def test_its_memory_is_estimated():
    sizes, more = model_sizes(tiny_config()), model_sizes(tiny_config(ema_decay=0.9))
    assert more.optimizer - sizes.optimizer == sizes.trainable
    assert more.muon_buffers == sizes.muon_buffers
