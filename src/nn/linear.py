"""Linear layers whose matrix products in training are oneDNN's where those are faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# oneDNN's `F.linear` of tensors in PyTorch's layout; `None` if PyTorch has none.
_product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies fp32 matrices faster than PyTorch does on this CPU.

    PyTorch takes MKL's products, which are AVX2 code on processors that are not Intel's. oneDNN
    generates code for what the processor has.
    """
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_both and has_avx512 and _product is not None


_PREFERS_ONEDNN = prefers_onednn()


class Linear(nn.Linear):
    """`nn.Linear` in fp32, faster in training on some CPUs (see `prefers_onednn`).

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.
        device: where its parameters are.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer: (..., inputs) to (..., outputs)."""
        if _PREFERS_ONEDNN and _is_trained_in_fp32(x, self.weight):
            out: torch.Tensor = OneDNNLinear.apply(x, self.weight, self.bias)
            return out
        return super().forward(x)


def _is_trained_in_fp32(x: torch.Tensor, weight: torch.Tensor) -> bool:
    is_plain = all(
        each.dtype == torch.float32 and each.device.type == "cpu" and type(each) in _PLAIN
        for each in (x, weight)
    )
    if not (is_plain and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return False
    return (x.requires_grad or weight.requires_grad) and not torch.is_autocast_enabled("cpu")


_PLAIN = (torch.Tensor, nn.Parameter)


class OneDNNLinear(torch.autograd.Function):
    """`F.linear` by oneDNN, and the gradient of its input, too."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return x @ weight.T + bias, of fp32 tensors on the CPU."""
        ctx.save_for_backward(x, weight)
        out: torch.Tensor = _product(x, weight, bias, "none", [], "")
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of those of the arguments that need one."""
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(grad, weight.t(), None, "none", [], "")
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            of_weight = rows.t() @ x.flatten(0, -2)  # no faster by oneDNN
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias
