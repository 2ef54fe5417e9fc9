"""One optimizer step: gradient accumulation over micro-batches, then the update.

B batch, T time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..cuda_utils import autocast
from ..data.windows import IGNORE_INDEX
from ..utils import full_tensor
from .loss import LossFunction, count_targets
from .optimizer import Optimizer, can_skip_on_device

Batch = torch.Tensor | Sequence[torch.Tensor]
"""Windows (B, T); or inputs, targets and optionally what else the loss takes, (B, T) each."""

Count = Callable[[torch.Tensor], torch.Tensor]
"""Returns a number, a scalar, of targets (B, T) or rows."""

Backward = Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]
"""Adds the gradients of a micro-batch's share of the mean loss, and returns the share, a scalar.

It takes the parts of the micro-batch, (B, T) each, on the device, the number of its targets that
count, and that of the global batch; scalars."""

_EPSILON = 1e-6  # PyTorch adds it to the grad norm
# A disabled scaler is a no-op.
_NO_SCALING = torch.amp.GradScaler(enabled=False)


def split_batch(batch: Batch) -> tuple[torch.Tensor, ...]:
    """Return a batch as inputs, targets and document ids, if it has them.

    Of windows (B, T) they are (B, T - 1): each token's target is the next token.
    """
    if isinstance(batch, torch.Tensor):
        return batch[:, :-1], batch[:, 1:]
    return tuple(batch)


def cut_batch(batch: Batch, rows: int, tokens: int | None = None) -> Batch:
    """Return the first rows of a batch, and of each the first tokens."""
    if isinstance(batch, torch.Tensor):
        return batch[:rows, :tokens]
    return [part[:rows, :tokens] for part in batch]


def backward_of(
    loss_function: LossFunction,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler = _NO_SCALING,
) -> Backward:
    """Return the forward and backward pass of a micro-batch (see `Backward`).

    Args:
        loss_function: returns the mean loss of a micro-batch, given its parts.
        device: the device to compute on.
        precision: the autocast dtype.
        scaler: the loss scaler for fp16, in which small gradients underflow.
    """

    def backward(
        parts: Sequence[torch.Tensor], count: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        with autocast(device, precision):
            loss = loss_function(*parts)
        # Tensors: a number would need a synchronization if the targets are on a GPU.
        dtype = torch.promote_types(loss.dtype, torch.float32)
        loss = loss * (count.to(dtype) / total.to(dtype))
        scaler.scale(loss).backward()
        return loss.detach()

    return backward


def accumulate_gradients(
    loss_function: LossFunction,
    batch: Batch,
    device: torch.device,
    *,
    micro_batch_size: int | None = None,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler = _NO_SCALING,
    backward: Backward | None = None,
    no_sync: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    num_targets: torch.Tensor | None = None,
    world_size: int = 1,
    min_micro_batches: int = 1,
    is_padded: bool = False,
    count: Count = count_targets,
) -> torch.Tensor:
    """Accumulate a batch's gradients over micro-batches (gradient accumulation).

    Micro-batches are weighted by their number of targets, so that the result is the gradient of the
    mean loss over the targets of the global batch; those that are `IGNORE_INDEX` do not count.

    Args:
        loss_function: returns the mean loss of a batch, given its parts.
        batch: windows (B, T); or parts, (B, T) each: see `Batch`.
        device: the device to compute on.
        micro_batch_size: rows of a micro-batch; by default one micro-batch of all rows.
        precision: the autocast dtype.
        scaler: as for `backward_of`.
        backward: used in place of `backward_of`, of the arguments above.
        no_sync: the `no_sync` context of DDP or FSDP, entered for every micro-batch except the
            last, whose backward pass all-reduces the gradients.
        num_targets: the number of targets of the global batch that count, a scalar; by default
            those of `batch`. If it is 0, the loss and its gradients are 0.
        world_size: the number of ranks, a factor of the loss, because DDP averages the gradients.
        min_micro_batches: minimum number of micro-batches. All ranks need the same number, or the
            all-reduce hangs: a rank with fewer adds micro-batches of ignored targets.
        is_padded: whether to pad the last micro-batch to `micro_batch_size` rows, with ignored
            targets: code that is compiled for one shape needs no other.
        count: returns the number of what the loss is the mean of, by default targets.

    Returns:
        This rank's part of the mean loss times `world_size`, a scalar on `device` (no
        synchronization): the mean of it over all ranks is the loss of the global batch.
    """
    inputs, targets, *more = split_batch(batch)
    size = micro_batch_size or len(inputs) or 1
    if num_targets is None:
        num_targets = count(targets)
    num_targets = num_targets.clamp(min=1)
    min_micro_batches = max(min_micro_batches, -(-len(inputs) // size))
    rows = min_micro_batches * size if is_padded else (min_micro_batches - 1) * size + 1
    parts = (_pad(inputs, rows), _pad(targets, rows, IGNORE_INDEX), *(_pad(p, rows) for p in more))
    micro_batches = list(zip(*(part.split(size) for part in parts), strict=True))
    if backward is None:
        backward = backward_of(loss_function, device, precision, scaler)
    total = torch.zeros((), dtype=torch.float32, device=device)
    for index, micro_batch in enumerate(micro_batches, start=1):
        own = count(micro_batch[1])
        with contextlib.nullcontext() if index == len(micro_batches) else no_sync():
            total += backward(
                [part.to(device, non_blocking=True) for part in micro_batch],
                world_size * own,
                num_targets,
            )
    return total


def _pad(part: torch.Tensor, rows: int, value: int = 0) -> torch.Tensor:
    """Pad a part of a batch, (B, T), to at least `rows` rows."""
    missing = rows - len(part)
    if missing <= 0:
        return part
    return torch.cat([part, part.new_full((missing, part.size(1)), value)])


def apply_gradients(
    optimizers: Sequence[Optimizer],
    clip_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler = _NO_SCALING,
    precision: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, bool]:
    """Clip the gradient norm, step every optimizer, and zero the gradients.

    The step is skipped if the gradient norm is not finite.

    Args:
        optimizers: the optimizers, which together cover all parameters.
        clip_grad_norm: the maximum grad norm; `None` for no clipping and no check.
        scaler: as for `accumulate_gradients`.
        precision: the autocast dtype; the matrix products of Muon are in bf16 if this is.

    Returns:
        The grad norm before clipping (0 without clipping), and whether the step was taken.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    norm, finite = torch.zeros((), dtype=torch.float32, device="cpu"), True
    if clip_grad_norm is not None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        is_plain = type(norm) is torch.Tensor and norm.is_cuda  # not sharded by FSDP
        if is_plain and not scaler.is_enabled() and all(map(can_skip_on_device, optimizers)):
            return step_on_device(optimizers, clip_grad_norm, norm, precision)  # pragma: needs gpu
        value = full_tensor(norm).item()  # the only host-device synchronization of a step
        finite = math.isfinite(value)
        if finite and value + _EPSILON >= clip_grad_norm:  # a factor of 1 needs no pass over memory
            nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
        norm = full_tensor(norm)
    # In fp16 Muon's products would overflow.
    dtype = precision if precision == torch.bfloat16 else torch.float32
    for optimizer in optimizers:
        if finite:
            with autocast(parameters[0].device, dtype):
                scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return norm, finite


def step_on_device(
    optimizers: Sequence[Optimizer],
    clip_grad_norm: float,
    norm: torch.Tensor,
    precision: torch.dtype,
) -> tuple[torch.Tensor, bool]:
    """Clip, step and zero the gradients as `apply_gradients` does, skipping the step on the device.

    All kernels are launched before the norm is waited for, while a GPU is still busy with the
    backward pass.

    Args:
        optimizers: those with `can_skip_on_device`.
        clip_grad_norm: the maximum grad norm.
        norm: the grad norm, a scalar on the device.
        precision: the autocast dtype.
    """
    value = torch.empty_like(norm, device="cpu", pin_memory=norm.is_cuda)
    value.copy_(norm, non_blocking=True)
    is_known = torch.cuda.Event() if norm.is_cuda else None
    if is_known is not None:  # pragma: needs gpu
        is_known.record(torch.cuda.current_stream(norm.device))
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    found_inf = (~norm.isfinite()).to(torch.float32)
    for optimizer in optimizers:
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        with autocast(norm.device, precision):
            optimizer.step()
        optimizer.found_inf = None  # type: ignore[attr-defined]
        optimizer.zero_grad(set_to_none=True)
    if is_known is not None:  # pragma: needs gpu
        is_known.synchronize()
    return norm, math.isfinite(value.item())
