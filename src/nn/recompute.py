"""Recomputing a tensor in the backward pass, in place of keeping it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch


@contextlib.contextmanager
def recomputed(tensor: torch.Tensor, compute: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Context manager in which an operation that needs a tensor for its gradient does not keep it.

    Args:
        tensor: an argument of the operation, as it is or in another shape.
        compute: returns it once more, of the same values, in the backward pass.
    """
    address, count = tensor.data_ptr(), tensor.numel()

    def pack(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        is_kept = saved.data_ptr() != address or saved.numel() != count
        return saved if is_kept or not saved.is_contiguous() else saved.shape

    def unpack(packed: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        with torch.no_grad():
            return compute().view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
