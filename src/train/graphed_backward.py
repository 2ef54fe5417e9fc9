"""The forward and backward pass of a micro-batch as a CUDA graph (see `cuda_utils.capture_graph`).

B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..cuda_utils import CapturedGraph, capture_graph
from ..nn.decode_backend import weight_addresses
from .step import Backward


class GraphedBackward:
    """A `step.Backward` that is captured as a CUDA graph on a GPU: micro-batches of one shape.

    The gradients are static, too: `attach` comes before the micro-batches of each step.

    Args:
        backward: what is captured.
        module: whose parameters it gives gradients.
    """

    def __init__(self, backward: Backward, module: nn.Module) -> None:
        self._backward, self._module = backward, module
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        # Gradients that exist are added to, at the same addresses.
        self._gradients = [torch.zeros_like(each) for each in self._parameters]
        self._parts: list[torch.Tensor] = []
        self._count, self._total = (torch.ones((), dtype=torch.int64, device="cpu"),) * 2
        # Also of the frozen weights, which the graph reads.
        self._addresses: list[tuple[int, torch.dtype]] = []
        self.graph: CapturedGraph | None = None
        """The captured graph, if it is."""

    def attach(self) -> None:
        """Give the parameters gradients of 0; forget the graph if a weight was moved."""
        if self.graph is not None and self._addresses != weight_addresses(
            self._module
        ):  # pragma: needs gpu
            self._parts, self.graph = [], None
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def __call__(
        self, parts: Sequence[torch.Tensor], count: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """See `step.Backward`; the result is overwritten by the next call."""
        if not self._parts:  # the first time: it compiles, and shows how much memory is needed
            self._parts = [part.clone() for part in parts]
            self._count, self._total = (each.to(parts[0].device).clone() for each in (count, total))
            loss = self._backward(parts, count, total)
            if parts[0].device.type == "cuda":  # pragma: needs gpu
                self._capture(parts[0].device)
            return loss
        for static, part in zip(self._parts, parts, strict=True):
            static.copy_(part, non_blocking=True)
        self._count.copy_(count, non_blocking=True)
        self._total.copy_(total, non_blocking=True)
        return self._compute() if self.graph is None else self.graph.replay()

    def _compute(self) -> torch.Tensor:
        return self._backward(self._parts, self._count, self._total)

    def _capture(self, device: torch.device) -> None:  # pragma: needs gpu
        """Capture the computation, unless its memory, which a graph keeps, is most of the GPU's."""
        capacity = torch.cuda.get_device_properties(device).total_memory
        if 2 * torch.cuda.max_memory_allocated(device) > capacity:
            return
        kept = [each.clone() for each in self._gradients]
        with torch.random.fork_rng([device]):
            self._addresses = weight_addresses(self._module)
            self.graph = capture_graph(self._compute, device, "training without")
        torch._foreach_copy_(self._gradients, kept)
