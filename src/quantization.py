"""A model's matrices as a processor reads them fastest, a few rows at a time.

Writing a token reads every weight once, so its time is that of bringing them from memory: in the
layout of oneDNN, whose products of few rows read faster than those of PyTorch's own library, or in
8 or 4 bits instead of 32. N rows, I inputs, O outputs of a matrix.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable

import torch
from torch import nn

from .cuda_utils import first_line
from .errors import AGI2Error
from .model import GPT2Model

Product = Callable[[torch.Tensor], torch.Tensor]
"""From (..., I) to (..., O)."""

GROUP = 32
"""Weights of 4 bits, neighbours in a row of a matrix, that share a scale and a zero."""
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


def prepare_for_generation(model: GPT2Model, quantize: str = "none") -> GPT2Model:
    """Make a model fast at writing, in place; it can no longer be trained, moved or saved.

    On an x86 processor; elsewhere `none` changes nothing. The token embeddings stay as they are,
    and what is tied to them becomes a matrix of its own.

    Args:
        model: on the CPU for `int8` and `int4`.
        quantize: `none` keeps every weight; `int8` rounds each row of each matrix to 255 levels
            (and its inputs, as they come, to 128: together, so that in a batch a text's rounding
            depends on the others); `int4` rounds groups of 32 weights to 16 levels, but the head
            as `int8`.

    Raises:
        AGI2Error: where the device or the model's width has no such products, or a weight is not a
            finite number.
    """
    if model.device.type != "cpu":
        if quantize == "none":
            return model
        raise AGI2Error(
            f'quantize = "{quantize}" is for a CPU: set device = "cpu", or leave it out'
        )
    if quantize == "none" and not _has_onednn():
        return model
    config = model.config
    if quantize == "int4" and (config.d_model % GROUP or config.d_ff % GROUP):
        raise AGI2Error(f'quantize = "int4" needs model_embd and model_ff divisible by {GROUP}')
    inside = {"none": _packed, "int8": _int8, "int4": _int4}[quantize]
    at_the_end = _packed if quantize == "none" else _int8
    head = model.output_weight.detach()
    for block in model.blocks:
        for part, names in (
            (block.attention, ("qkv", "proj")),
            (block.ffn, ("expand", "contract")),
        ):
            for name in names:
                linear = getattr(part, name)
                bias = None if linear.bias is None else linear.bias.detach()
                setattr(part, name, FixedLinear(linear.weight.detach(), bias, inside))
    model.head = FixedLinear(head, None, at_the_end)
    return model.eval()


class FixedLinear(nn.Module):
    """A linear layer of weights that do not change any more, in a layout of their own.

    Args:
        weight: (O, I).
        bias: (O,), if any.
        arrange: makes the product of weight and bias.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        arrange: Callable[[torch.Tensor, torch.Tensor | None], Product],
    ) -> None:
        super().__init__()
        if not bool(weight.isfinite().all()):
            raise AGI2Error("the model has weights that are no finite numbers: train it again")
        try:
            self._product = arrange(weight, bias)
        except RuntimeError as error:
            raise AGI2Error(
                f"quantize: PyTorch has no such products on this machine ({first_line(error)}): "
                "leave it out"
            ) from error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        return self._product(x)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """The weights as they are, in blocks that oneDNN chooses."""
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight)

    def product(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")

    return product


def _int8(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """Rows of weights, and whole inputs, in 8 bits: integer products."""
    scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that these functions will have others
        rounded = torch.quantize_per_channel(
            weight, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8
        )
        packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def product(x: torch.Tensor) -> torch.Tensor:
        # Inputs of 7 bits: without special instructions sums of 8 bits would overflow.
        return torch.ops.quantized.linear_dynamic(x, packed, True)

    return product


def _int4(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """Groups of weights in 4 bits with a scale and a zero each; inputs in bf16."""
    outputs = len(weight)
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    middle = (low + high) / 2
    # The outermost weights may be cut, where that brings the others nearer.
    steps = torch.stack([(high - low).clamp(min=1e-12) * share / 15 for share in _SHARES])
    levels = ((groups - middle) / steps + 7.5).round().clamp(0, 15)
    errors = ((levels - 7.5) * steps + middle - groups).square().sum(dim=-1, keepdim=True)
    best = errors.argmin(dim=0, keepdim=True)
    step = steps.gather(0, best)[0]
    levels = levels.gather(0, best.expand(-1, -1, -1, GROUP))[0]
    zero = middle + 0.5 * step  # of level 8, which the product takes from each
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.flatten(1).int(), 1)
    scales = torch.cat([step, zero], dim=-1).transpose(0, 1).contiguous().bfloat16()

    def product(x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2).bfloat16()
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, scales)
        out = out.to(x.dtype).view(*x.shape[:-1], outputs)
        return out if bias is None else out + bias

    return product
