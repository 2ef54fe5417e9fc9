"""How long a run takes: steps measured on this machine, and the time to the end from them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from .loss import NextTokenLoss
from .step import accumulate_gradients, apply_gradients
from .trainer import Trainer

# What a disk takes with hashing and syncing, in bytes a second: only for the share of saving.
_DISK_SPEED = 200e6


def measure_step(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """Take real steps, without writing anything, and time them.

    Args:
        trainer: a run that has not begun. Its weights change.
        seconds: how long to go on; one step at least.

    Returns:
        The seconds of a whole optimizer step, and of that the optimizer's.
    """
    loss = NextTokenLoss(trainer.model.train())
    rows = trainer.micro_batch_size

    def micro_batch(batch: torch.Tensor) -> float:
        start = time.perf_counter()
        accumulate_gradients(loss, batch, trainer.device, precision=trainer.precision)
        _synchronize(trainer.device)
        return time.perf_counter() - start

    def optimizer_step() -> float:
        start = time.perf_counter()
        apply_gradients(trainer.optimizers, trainer.config.clip_grad_norm)
        _synchronize(trainer.device)
        return time.perf_counter() - start

    # What only the first step has to do (kernels are chosen, states made) is not counted.
    micro_batch(trainer.batches.batch(0)[:1, :65])
    optimizer_step()
    passes, updates = [], []
    until = time.monotonic() + seconds
    for step in range(trainer.total_steps):
        passes.append(micro_batch(trainer.batches.batch(step)[:rows]))
        updates.append(optimizer_step())
        if time.monotonic() + passes[-1] + updates[-1] > until:
            break
    update = statistics.median(updates)
    return statistics.median(passes) * (trainer.batches.batch_size / rows) + update, update


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":  # pragma: needs gpu
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Duration:
    """How long a run takes, and how far it comes."""

    seconds: float
    steps: int
    passes: float
    """Over the training text."""
    per_pass: float
    """Seconds."""


def predict_duration(
    trainer: Trainer, step_seconds: float, update_seconds: float, checkpoint_bytes: int
) -> Duration:
    """The time to the end, with validations and checkpoints roughly included."""
    config = trainer.config
    # A validation is a forward pass, a third of a training step's work; a sample is short.
    each = (step_seconds - update_seconds) / 3 / trainer.batches.batch_size
    windows = len(trainer.val_data) if trainer.val_data is not None else 0
    looked_at = windows
    if config.eval_tokens and trainer.val_data is not None:
        looked_at = min(windows, config.eval_tokens // (trainer.val_data.seq_len - 1))
    aside = looked_at * each / config.eval_interval
    aside += checkpoint_bytes / _DISK_SPEED / config.checkpoint_interval
    steps = trainer.total_steps
    if config.max_minutes is not None:
        steps = max(1, min(steps, int(60 * config.max_minutes / (step_seconds + aside))))
    per_epoch = trainer.batches.steps_per_epoch
    return Duration(
        steps * (step_seconds + aside) + windows * each,
        steps,
        steps / per_epoch,
        per_epoch * (step_seconds + aside),
    )
