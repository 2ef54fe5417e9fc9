"""The step runner: settings that affect rounding, skipped steps, and device failures."""

import logging

import pytest
import torch

from src.errors import AGI2Error
from src.train.setup import prepare
from src.training import make_trainer


@pytest.fixture
def runner(tiny_run):
    config = tiny_run(threads=1)
    return make_trainer(config, prepare(config)).runner


def test_the_settings_are_those_that_a_checkpoint_restores(runner):
    settings = runner.settings()
    assert settings == {
        "micro_batch_size": runner.micro_batch_size,
        "compiled": False,
        "precision": "float32",
        "processes": 1,
        "threads": 1,
    }
    changed = {**settings, "micro_batch_size": 1, "precision": "bfloat16", "scaler": {}}
    runner.restore(changed)
    assert runner.settings() == {**settings, "micro_batch_size": 1, "precision": "bfloat16"}


def test_more_steps_may_be_skipped_in_fp16_than_in_other_precisions(runner):
    assert runner.max_skipped_steps == 5
    runner.scaler = torch.amp.GradScaler("cpu")
    assert runner.max_skipped_steps == 30


def test_a_step_follows_the_learning_rate_factor_and_moves_the_weights(runner):
    peaks = [group["initial_lr"] for each in runner.optimizers for group in each.param_groups]
    before = [p.detach().clone() for p in runner.optimizers[0].param_groups[0]["params"]]
    loss, norm, is_taken = runner.run(0, 0.5)
    rates = [group["lr"] for each in runner.optimizers for group in each.param_groups]
    assert rates == [0.5 * peak for peak in peaks]
    assert is_taken
    assert loss.isfinite()
    assert norm > 0
    after = runner.optimizers[0].param_groups[0]["params"]
    assert not all(map(torch.equal, before, after))


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1.0), ("lr", 0.5)])
def test_weight_decay_may_follow_the_learning_rate(tiny_run, schedule, factor):
    """A step shrinks a weight without gradient by the rate and the decay of the schedule."""
    config = tiny_run(
        weight_decay_schedule=schedule, weight_decay=0.3, optimizer="muon", bias=False
    )
    runner = make_trainer(config, prepare(config)).runner
    runner.run(0, 0.5)
    for group in [group for each in runner.optimizers for group in each.param_groups]:
        is_matrix = all(parameter.dim() >= 2 for parameter in group["params"])
        assert group["weight_decay"] == (0.3 * factor if is_matrix else 0)
    [table] = runner.optimizers[0].param_groups[0]["params"]
    runner.optimizers[0].state.clear()
    before = table.detach().clone()
    table.grad = torch.zeros_like(table)
    runner.optimizers[0].step()
    shrunk = before * (1 - 0.5 * config.learning_rate * 0.3 * factor)
    assert torch.allclose(table, shrunk, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), r"^out of memory at step 3, with \d sequences at a time: "),
        (RuntimeError("CUDA error: unspecified launch failure\nand more"), "^cpu failed at step 3"),
        (RuntimeError("size mismatch"), None),
    ],
)
def test_a_failed_device_and_a_lack_of_memory_are_described(runner, error, line):
    failure = runner.describe_failure(error, 3)
    if line is None:
        assert failure is None
        return
    with pytest.raises(AGI2Error, match=line):
        raise failure


@pytest.mark.parametrize(("precision", "line"), [("fp32", None), ("bf16", "bf16")])
def test_the_log_says_which_precision_is_not_full(tiny_run, caplog, precision, line):
    config = tiny_run(threads=1, precision=precision)
    with caplog.at_level(logging.INFO, "agi2"):
        make_trainer(config, prepare(config)).runner.prepare()
    expected = [] if line is None else [f"matrix products in {line}, weights in fp32"]
    assert [each for each in caplog.messages if "matrix products" in each] == expected
