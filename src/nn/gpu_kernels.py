"""GPU kernels of a training step, in Triton, which comes with PyTorch for NVIDIA's and AMD's GPUs.

N rows, V columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Columns that a program reads at once, and its warps; a row stays in the L2 cache between passes.
_COLUMNS, _WARPS = 4096, 8


@triton.jit
def _softmax_gradient_row(  # type: ignore[no-untyped-def]  # pragma: needs gpu
    logits, targets, losses, stride, columns, block: tl.constexpr
):
    """Replace a row of logits by softmax - one-hot; store its loss, or 0 without a target."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    highest = -3.0e38  # not -inf, because -inf - -inf is NaN
    total = tl.zeros([block], tl.float32)
    for start in range(0, columns, block):
        at = start + tl.arange(0, block)
        x = tl.load(logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        above = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - above) + tl.exp(x - above)
        highest = above
    sum_of_all = tl.sum(total, 0)
    has_target = target >= 0
    chosen = tl.load(logits + target, mask=has_target, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(has_target, tl.log(sum_of_all) + (highest - chosen), 0.0))
    tl.debug_barrier()  # the target's logit is read before another thread replaces it
    for start in range(0, columns, block):
        at = start + tl.arange(0, block)
        x = tl.load(logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(x - highest) / sum_of_all - tl.where(at == target, 1.0, 0.0)
        tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < columns)


def softmax_gradient_(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # pragma: needs gpu
    """Replace logits (N, V) by their gradient, softmax - one-hot, computed in fp32.

    A row is read from memory once and written once: the second pass finds it in the cache.

    Args:
        logits: half precision or fp32, rows contiguous; -inf for padding.
        targets: (N,), int64. A row whose target is negative has no loss, and its softmax is left.

    Returns:
        The sum of the losses, and the logits' tensor.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        _softmax_gradient_row[(len(logits),)](
            logits,
            targets,
            losses,
            logits.stride(0),
            logits.size(1),
            block=_COLUMNS,
            num_warps=_WARPS,
        )
    return losses.sum(), logits
