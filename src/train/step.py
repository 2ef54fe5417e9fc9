"""One optimizer step: gradients a micro-batch at a time, then the update.

N tokens, B sequences, T tokens of each, C channels, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cuda_utils import LOGITS_AT_ONCE, autocast
from ..model import GPT2Model
from ..utils import whole
from .optimizer import Optimizer

Batch = torch.Tensor | Sequence[torch.Tensor]
"""Windows (B, T), or inputs and targets, (B, T) each."""
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From inputs and targets, (B, T) each, to the mean loss."""

# Passes everything on as it is.
_NO_SCALING = torch.amp.GradScaler(enabled=False)


class NextTokenLoss(nn.Module):
    """A model and its loss as one module: what is compiled, and what processes share.

    The logits never exist for more than `LOGITS_AT_ONCE` tokens at once.

    Args:
        model: a GPT-2.
    """

    def __init__(self, model: GPT2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Inputs and targets (B, T) to the mean cross-entropy in nats."""
        hidden = self.model.hidden_states(inputs).flatten(0, 1)
        weight, targets = self.model.output_weight, targets.flatten()
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype == torch.float16:
            # Its gradients vanish unless they are scaled before they leave fp32.
            return F.cross_entropy(F.linear(hidden, weight).float(), targets)
        loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)
        return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """cross_entropy(hidden @ weight.T, targets), whose gradients are made along with the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        """Hidden (N, C), weight (V, C) and targets (N,) to the mean loss; products in `dtype`."""
        vocabulary = len(weight)
        matrix = weight.detach()
        if dtype is not None:
            # Tensor cores want sizes that are multiples of 64; the copy is made anyway.
            matrix = F.pad(matrix.to(dtype), (0, 0, 0, -vocabulary % 64))
            hidden = hidden.to(dtype)
        loss = weight.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        # Of a head that is not trained, as with LoRA, nobody asks for it.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        rows = weight.new_empty(min(len(hidden), LOGITS_AT_ONCE), _row_length(vocabulary))
        for x, y, grad in zip(
            hidden.split(LOGITS_AT_ONCE),
            targets.split(LOGITS_AT_ONCE),
            grad_hidden.split(LOGITS_AT_ONCE),
            strict=True,
        ):
            rows = rows[: len(y)]
            scores = rows[:, :vocabulary]
            if dtype is None:
                torch.mm(x, matrix.T, out=scores)
            else:
                logits = x @ matrix.T
                scores.copy_(logits[:, :vocabulary])
            # In place, and over whole rows: on a CPU that takes a quarter of the time.
            rows[:, vocabulary:] = -torch.inf
            torch.log_softmax(rows, -1, out=rows)
            at = (torch.arange(len(y), device=y.device), y)
            loss -= scores[at].sum()
            # d loss / d logits = probability - 1 at the target.
            rows.exp_()
            scores[at] -= 1.0
            if dtype is None:
                if grad_weight is not None:
                    grad_weight.addmm_(scores.T, x)
            else:
                logits[:, :vocabulary].copy_(scores)
                scores = logits
                scores[:, vocabulary:] = 0.0
                if grad_weight is not None:
                    grad_weight += (scores.T @ x)[:vocabulary]
            grad.copy_(scores @ matrix)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss / len(targets)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        """Both gradients, scaled in place: nobody else holds them."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad / len(grad_hidden)
        if grad_weight is not None:
            grad_weight.mul_(scale)
        return grad_hidden.mul_(scale), grad_weight, None, None


def _row_length(vocabulary: int) -> int:
    """Room for a row of logits: an odd number of cache lines.

    A product whose rows begin anywhere, or all at the same places of the cache, takes up to half
    as long again.
    """
    return 16 * (-(-vocabulary // 16) | 1)


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch or Python says that there is no memory left, in any of their ways."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_device_failure(error: Exception) -> bool:
    """Whether PyTorch says that the device itself has failed: fallen off the bus, reset, lost."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
