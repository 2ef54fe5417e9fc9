"""Quantizes weights to int8 or int4; linear layers and embeddings over such weights.

O output features, I input features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import AGI2Error
from .cpu_kernels import GROUP, PANEL, KernelLinear, Weights, pack, unpack

# More rows of packed weights, as in an evaluation, are left to PyTorch, which is faster then. Fewer
# are those of an engine's step, which must not depend on each other in the last bits.
_MAX_KERNEL_ROWS = 256
_ZERO_LEVEL = 128
"""Added to the levels of int8 weights: VNNI multiplies unsigned with signed numbers."""
_RANGE_FRACTIONS = (1.0, 0.95)
"""Fractions of a group's range that its levels may cover; more candidates do not help."""


class QuantizedEmbeddings(nn.Module):
    """Token embeddings over a packed or quantized matrix (V, C)."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up token ids (B, T): embeddings (B, T, C)."""
        return dequantize(self._weights, tokens.flatten()).unflatten(0, tokens.shape)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return _sizes(self._weights)


class QuantizedLinear(nn.Module):
    """A linear layer over packed or quantized weights, for inference only."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights
        self._kernel = KernelLinear(weights) if weights.has_kernel else None

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized matrix (O, I)."""
        return dequantize(self._weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer: (..., I) to (..., O)."""
        is_small = self._weights.bits < 28 or x.numel() <= _MAX_KERNEL_ROWS * self._weights.inputs
        # PyTorch computes other dtypes (autocast) and gradients.
        if self._kernel is not None and is_small and self._kernel.supports(x):
            return self._kernel(x)
        return F.linear(x, self.weight, self._weights.bias)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return _sizes(self._weights)


def _sizes(weights: Weights) -> str:
    return f"inputs={weights.inputs}, outputs={weights.outputs}, bits={weights.bits}"


def quantize_weight(weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Weights:
    """Quantize a finite matrix (O, I) to 8 or 4 bits; for 32, pack it into 28 if supported."""
    outputs, inputs = weight.shape
    if bits == 32:
        unpacked = Weights(weight.contiguous(), None, bias, inputs, outputs, bits)
        return pack(weight, bias) or unpacked
    quantize = _quantize_int8 if bits == 8 else _quantize_int4
    # In chunks of whole panels that fit into the CPU cache.
    parts = [quantize(rows) for rows in weight.split(16 * PANEL)]
    values, scale = (torch.cat(each) for each in zip(*parts, strict=True))
    return Weights(values, scale, bias, inputs, outputs, bits)


def dequantize(weights: Weights, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Dequantize or unpack a matrix, or some of its rows (N,), to float32: (O or N, I).

    Raises:
        IndexError: if a row is out of range.
    """
    if weights.bits == 28:
        return unpack(weights, rows)
    if weights.bits == 32:
        return weights.values if rows is None else weights.values.index_select(0, rows)
    assert weights.scale is not None
    if rows is None:
        rows = torch.arange(weights.outputs, device=weights.values.device)
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < weights.outputs:
        raise IndexError(f"a row is not below {weights.outputs}, the rows of the matrix")
    # A panel has its rows in the last dimension but one: see `kernel_quantized.h`.
    panels, places = rows // PANEL, rows % PANEL
    values = weights.values[panels, ..., places, :]
    if weights.bits == 8:
        levels = (values.float() - _ZERO_LEVEL).flatten(1)
        return (levels * weights.scale[rows].unsqueeze(1))[:, : weights.inputs]
    levels = torch.stack([values & 15, values >> 4], dim=2).flatten(2)
    step, lowest = (
        part.float().unsqueeze(-1) for part in _unpack_scales(weights.scale[panels, :, places])
    )
    return (levels * step + lowest).flatten(1)[:, : weights.inputs]


def check_finite(name: str, weight: torch.Tensor) -> None:
    """Check that a weight has neither infinity nor NaN.

    Raises:
        AGI2Error: if it has.
    """
    # Minimum and maximum are NaN if any element is: twenty times as fast as isfinite on all.
    if not bool(torch.stack(weight.aminmax()).isfinite().all()):
        raise AGI2Error(f"{name} of the model has weights that are not finite: train it again")


def _quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to int8, symmetric: levels from -127 to 127, and a scale for each row."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    levels = (weight / scale.unsqueeze(1)).round() + _ZERO_LEVEL
    return (
        _panels(levels.to(torch.uint8), _ZERO_LEVEL),
        _pad(scale.unsqueeze(1), PANEL, 1).flatten(),
    )


def _quantize_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to int4, asymmetric: levels from 0 to 15, a scale and a minimum for each group."""
    # Repeating the last weight does not widen the range of the group.
    missing = -weight.size(1) % GROUP
    weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], dim=1)
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    middle = (low + high) / 2
    # Clip the outermost weights if this lowers the squared error of the group.
    steps = [
        ((high - low).clamp(min=1e-12) * fraction / 15).bfloat16().float()
        for fraction in _RANGE_FRACTIONS
    ]
    lowests = [(middle - 7.5 * step).bfloat16().float() for step in steps]
    errors = [
        (_levels(groups, *pair) * pair[0]).add_(pair[1]).sub_(groups).square_().sum(-1, True)
        for pair in zip(steps, lowests, strict=True)
    ]
    best = torch.cat(errors, dim=-1).argmin(dim=-1, keepdim=True)
    step, lowest = (torch.cat(each, dim=-1).gather(-1, best) for each in (steps, lowests))
    levels = _panels(_levels(groups, step, lowest).to(torch.uint8).flatten(1), 0)
    low, high = levels.chunk(2, dim=2)
    scale = torch.cat([lowest, step], dim=-1).bfloat16().view(torch.int32).squeeze(-1)
    # (O / 16, G, 16)
    panels = _pad(scale, PANEL, 1).unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
    return low | high << 4, panels


def _pad(matrix: torch.Tensor, rows: int, columns: int, value: int = 0) -> torch.Tensor:
    """Pad a matrix at its end to multiples of rows and of columns."""
    missing = (-matrix.size(1) % columns, -matrix.size(0) % rows)
    return F.pad(matrix, (0, missing[0], 0, missing[1]), value=value)


def _panels(levels: torch.Tensor, zero: int) -> torch.Tensor:
    """Arrange levels (O, I) in panels, padded by `zero`: (O / 16, G, 8, 16, 4)."""
    levels = _pad(levels, PANEL, GROUP, zero).unflatten(0, (-1, PANEL))
    return levels.unflatten(2, (-1, GROUP // 4, 4)).permute(0, 2, 3, 1, 4).contiguous()


def _levels(groups: torch.Tensor, step: torch.Tensor, lowest: torch.Tensor) -> torch.Tensor:
    return (groups - lowest).div_(step).round_().clamp_(0, 15)


def _unpack_scales(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the scale tensor of `_quantize_int4`, of any shape, into scales and minimums."""
    lowest, step = scale.unsqueeze(-1).view(torch.bfloat16).unbind(-1)
    return step, lowest
