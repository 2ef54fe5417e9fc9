"""One optimizer step: gradients a micro-batch at a time, then the update.

N tokens, B sequences, T tokens of each, C channels, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..cuda_utils import autocast
from ..utils import whole
from .loss import LossFunction
from .optimizer import Optimizer

Batch = torch.Tensor | Sequence[torch.Tensor]
"""Windows (B, T), or inputs and targets, (B, T) each."""

# Passes everything on as it is.
_NO_SCALING = torch.amp.GradScaler(enabled=False)


def split_batch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets: each token's target is the one after it."""
    if isinstance(batch, torch.Tensor):
        return batch[:, :-1], batch[:, 1:]
    inputs, targets = batch
    return inputs, targets


def accumulate_gradients(
    loss_function: LossFunction,
    batch: Batch,
    device: torch.device,
    *,
    micro_batch_size: int | None = None,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler = _NO_SCALING,
    keep_local: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    weight: float = 1.0,
    rounds: int = 1,
) -> torch.Tensor:
    """Add a batch's gradients to the parameters', a micro-batch at a time.

    Micro-batches are weighted by their rows, so that the gradient is the whole batch's.

    Args:
        loss_function: mean loss of inputs and targets.
        batch: windows (B, T) that are shifted, or inputs and targets.
        device: where to compute.
        micro_batch_size: rows at a time; all by default.
        precision: of matrix products.
        scaler: for fp16, whose small gradients would vanish.
        keep_local: entered for every micro-batch but the last, whose backward pass is the one
            that shares the gradients among processes.
        weight: of the loss and its gradients: of several processes, each has the part of the rows
            that its batch is, times their number.
        rounds: micro-batches at least. Processes that share gradients need equally many: a process
            that has fewer adds one that counts nothing.

    Returns:
        The mean loss times `weight`, a scalar that stays on the device.
    """
    inputs, targets = split_batch(batch)
    rows = inputs.size(0)
    size = micro_batch_size or rows or 1
    total = torch.zeros((), dtype=torch.float32, device=device)
    ends = max(rows, rounds * size)
    for first in range(0, ends, size):
        x = inputs[first : first + size].to(device, non_blocking=True)
        y = targets[first : first + size].to(device, non_blocking=True)
        share = weight * len(x) / rows if len(x) else 0.0
        if not len(x):
            x = y = inputs.new_zeros(1, inputs.size(1)).to(device)
        with contextlib.nullcontext() if first + size >= ends else keep_local():
            with autocast(device, precision):
                loss = loss_function(x, y) * share
            scaler.scale(loss).backward()
        total += loss.detach()
    return total


def apply_gradients(
    optimizers: Sequence[Optimizer],
    clip_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler = _NO_SCALING,
) -> tuple[torch.Tensor, bool]:
    """Clip the gradients, step every optimizer, and unset the gradients.

    A gradient that is not finite would spoil every weight: the step is then left out.

    Args:
        optimizers: together over all parameters.
        clip_grad_norm: the largest gradient norm, if any; without it nothing is checked.
        scaler: as for `accumulate_gradients`.

    Returns:
        The gradient norm before clipping (0 without clipping), and whether the step was taken.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    norm, finite = torch.zeros((), dtype=torch.float32, device="cpu"), True
    if clip_grad_norm is not None:
        norm = whole(nn.utils.clip_grad_norm_(parameters, clip_grad_norm))
        finite = bool(norm.isfinite())  # the one place where the host waits for the device
    for optimizer in optimizers:
        if finite:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return norm, finite
