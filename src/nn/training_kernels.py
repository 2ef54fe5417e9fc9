"""CPU kernels of a training step: GELU, dropout, gradient of the cross-entropy.

See `kernel_training.h`. N rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .cpu_library import LIBRARY, address_of, is_plain

_DTYPES = (torch.float32, torch.bfloat16)


def has_kernels(x: torch.Tensor) -> bool:
    """Return whether the library is loaded and its kernels support this tensor."""
    if LIBRARY is None or torch.compiler.is_compiling():
        return False
    return any(is_plain(x, dtype) for dtype in _DTYPES)


def _call(name: str, out: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Call a kernel of elements; tensors of the dtype of `out` are passed by their address."""
    count, dtype = out.numel(), out.dtype
    passed = (
        (
            address_of(each, each.dtype if each.dtype == torch.int16 else dtype, count)
            if isinstance(each, torch.Tensor)
            else each
        )
        for each in (*arguments, out)
    )
    is_bfloat16 = dtype == torch.bfloat16
    getattr(LIBRARY, name)(count, *passed, is_bfloat16, torch.get_num_threads())
    return out


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class Gelu(torch.autograd.Function):
    """GELU with the tanh approximation, in a third of PyTorch's time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Apply GELU to a tensor of any shape for which `has_kernels` is true."""
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _call("agi2_gelu", _empty_like(x), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the input."""
        (x,) = ctx.saved_tensors
        return _call("agi2_gelu_backward", _empty_like(x), x, grad.contiguous())


class ScaleKept(torch.autograd.Function):
    """Dropout with given random numbers, in one pass over memory."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, numbers: torch.Tensor, lowest: int, scale: float
    ) -> torch.Tensor:
        """Scale the elements whose number is at least `lowest`; multiply the others by 0.

        Args:
            x: of any shape, and `has_kernels` is true for it.
            numbers: int16, one for each element, contiguous.
            lowest: the lowest number that is kept.
            scale: the factor.
        """
        ctx.save_for_backward(numbers)
        ctx.lowest, ctx.scale = lowest, scale
        return _call("agi2_dropout", _empty_like(x), x.contiguous(), numbers, lowest, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the gradient of the input, of the elements that were kept."""
        (numbers,) = ctx.saved_tensors
        arguments = (grad.contiguous(), numbers, ctx.lowest, ctx.scale)
        return _call("agi2_dropout", _empty_like(grad), *arguments), None, None, None


def softmax_gradient_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Replace logits by the gradient of their cross-entropy, softmax - one-hot.

    Args:
        logits: bf16, contiguous, (N, V), and `has_kernels` is true for it.
        targets: int64, (N,), below V; negative ones are ignored.

    Returns:
        The losses (N,), in fp32; 0 for targets that are ignored.

    Raises:
        IndexError: if a target is not below V.
    """
    assert LIBRARY is not None
    rows, vocabulary = logits.shape
    if bool((targets >= vocabulary).any()):
        raise IndexError(f"a target is not below {vocabulary}")
    losses = torch.empty(rows, dtype=torch.float32, device="cpu")
    LIBRARY.agi2_softmax_gradient(
        *(rows, vocabulary, address_of(targets.contiguous(), torch.int64, rows)),
        address_of(logits, torch.bfloat16, rows * vocabulary),
        address_of(losses, torch.float32, rows),
        torch.get_num_threads(),
    )
    return losses
