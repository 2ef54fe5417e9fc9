"""Benchmarks of training steps on this machine, and estimates of a run's duration from them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from .loss import NextTokenLoss
from .preference_loss import make_loss
from .step import Batch, accumulate_gradients, apply_gradients, cut_batch
from .trainer import Trainer

# Rough speed of writing a checkpoint, with hashing and fsync, in bytes per second.
_DISK_SPEED = 200e6


def measure_step(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """Benchmark training steps, without writing to disk.

    Args:
        trainer: a trainer before `fit`. Its weights are modified.
        seconds: the duration of the measurement; at least one step.

    Returns:
        The seconds of a complete step (all micro-batches and the update), and of the update alone.
    """
    loss = make_loss(trainer.model.train(), trainer.config)
    if isinstance(loss, NextTokenLoss) and trainer.config.self_distillation:
        loss.set_teacher(trainer.model)  # as fast as its average
    rows = trainer.runner.micro_batch_size

    def micro_batch(batch: Batch) -> float:
        start = time.perf_counter()
        accumulate_gradients(
            loss,
            batch,
            trainer.runner.device,
            precision=trainer.runner.precision,
            count=loss.count,
        )
        _synchronize(trainer.runner.device)
        return time.perf_counter() - start

    def optimizer_step() -> float:
        start = time.perf_counter()
        runner, clip = trainer.runner, trainer.config.clip_grad_norm
        apply_gradients(runner.optimizers, clip, precision=runner.precision)
        _synchronize(trainer.runner.device)
        return time.perf_counter() - start

    # Warm up: the first step selects kernels and allocates the optimizer state.
    micro_batch(cut_batch(trainer.batches.batch(0), 1, 64))
    optimizer_step()
    micro_batch_seconds, update_seconds = [], []
    deadline = time.monotonic() + seconds
    for step in range(trainer.total_steps):
        micro_batch_seconds.append(micro_batch(cut_batch(trainer.batches.batch(step), rows)))
        update_seconds.append(optimizer_step())
        if time.monotonic() + micro_batch_seconds[-1] + update_seconds[-1] > deadline:
            break
    update = statistics.median(update_seconds)
    return (
        statistics.median(micro_batch_seconds) * (trainer.batches.batch_size / rows) + update,
        update,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":  # pragma: needs gpu
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Duration:
    """The estimated duration and number of steps and epochs of a run."""

    seconds: float
    steps: int
    epochs: float
    seconds_per_epoch: float


def predict_duration(
    trainer: Trainer, step_seconds: float, update_seconds: float, checkpoint_bytes: int
) -> Duration:
    """Estimate a run's duration, including validations and checkpoints.

    Args:
        trainer: a trainer before `fit`.
        step_seconds: duration of a complete step.
        update_seconds: duration of the optimizer update.
        checkpoint_bytes: size of a checkpoint.
    """
    config = trainer.config
    # Validation is forward only, a third of the FLOPs of forward and backward; samples are short.
    window_seconds = (step_seconds - update_seconds) / 3 / trainer.batches.batch_size
    windows = len(trainer.val_windows) if trainer.val_windows is not None else 0
    evaluated_windows = windows
    if config.eval_tokens and trainer.val_windows is not None:
        evaluated_windows = min(windows, config.eval_tokens // (trainer.val_windows.seq_len - 1))
    overhead = evaluated_windows * window_seconds / config.eval_interval
    overhead += checkpoint_bytes / _DISK_SPEED / config.checkpoint_interval
    steps = trainer.total_steps
    if config.max_minutes is not None:
        steps = max(1, min(steps, int(60 * config.max_minutes / (step_seconds + overhead))))
    if config.eval_tokens:  # as `final_eval_tokens`
        windows = min(windows, max(evaluated_windows, steps * trainer.batches.batch_size))
    per_epoch = trainer.batches.steps_per_epoch
    return Duration(
        steps * (step_seconds + overhead) + windows * window_seconds,
        steps,
        steps / per_epoch,
        per_epoch * (step_seconds + overhead),
    )
