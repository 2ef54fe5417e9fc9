"""A model made fast at writing: weights packed or rounded for a CPU, steps recorded for a GPU.

To write a token reads every weight once, so its time is that of bringing them from memory. The
exponents of a matrix's row hardly differ: so 28 bits hold a weight of 32 exactly. Only weights are
rounded to be kept; what they are multiplied with has 16 bits in `cpu_kernels.c` (8 beside
weights of 4), by rows and groups of its own, so that a text of a batch is what it is alone. O
outputs and I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..arguments import checked
from ..console import busy, visible
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.cpu_kernels import (
    FEW,
    GROUP,
    LayerWeights,
    NativeLayers,
    NativeLinear,
    Norm,
    Weights,
    pack,
    unpack,
)
from ..transformer import TransformerBlock
from ..utils import log
from .cuda_graph import GraphedLayers

_WHOLE = 2 * GROUP
"""Weights of 4 bits that are kept together."""
_SHARES = (1.0, 0.95)
"""Of the way from the lowest to the highest weight of a group; more of them bring nothing."""


@checked
def prepare_for_generation(
    model: GPT2Model, quantize: str = "none", *, verbose: bool = True
) -> GPT2Model:
    """Make a model fast at writing, in place; on a CPU it can no longer be trained, moved or saved.

    A model on another device, or of other numbers than float32, is left as it is by `none`.

    Args:
        model: on the CPU, in float32, for `int8` and `int4`.
        quantize: `none` changes no weight; `int8` rounds each row of each matrix to 255 levels;
            `int4` rounds groups of 32 weights to 16 levels. Token embeddings are kept as the head
            is, which may be tied to them.
        verbose: whether to log (see `console.visible`).

    Raises:
        AGI2Error: where the device, the numbers or the model's width have no such weights, a
            weight is not a finite number, or the model was prepared in another way.
    """
    if quantize not in _BITS:
        raise AGI2Error(f"quantize must be one of {', '.join(_BITS)}, not {quantize!r}")
    if model.prepared is not None:
        if model.prepared != quantize:
            raise AGI2Error(f"{model.prepared_line}: load it again to quantize it otherwise")
        return model.eval()
    if model.device.type != "cpu":
        if quantize == "none":
            if model.device.type == "cuda":  # pragma: needs gpu
                model.few_tokens = GraphedLayers(model.blocks)
            return model.eval()
        raise AGI2Error(
            f'quantize = "{quantize}" is for a CPU: set device = "cpu", or leave it out'
        )
    others = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if others:
        if quantize == "none":
            return model.eval()
        raise AGI2Error(
            f'quantize = "{quantize}" needs a model in float32, not {", ".join(sorted(others))}: '
            "call model.float() first"
        )
    config = model.config
    if quantize == "int4" and (config.d_model % _WHOLE or config.d_ff % _WHOLE):
        raise AGI2Error(f'quantize = "int4" needs model_embd and model_ff divisible by {_WHOLE}')
    for name, weight in model.named_parameters():  # before anything is changed
        if weight.dim() == 2:
            _check_finite(name, weight.detach())
    with visible(verbose):
        _prepare(model, quantize)
    return model


def _prepare(model: GPT2Model, quantize: str) -> None:
    bits, parameters = _BITS[quantize], model.num_parameters()
    with busy("preparing the weights"):
        _fix_weights(model, bits)
    model.mark_prepared(quantize, parameters)
    if model.few_tokens is None and bits < 32:
        log.warning(
            "quantize saves memory here, and no time: the compiled part is not there, or the "
            "model's widths are not divisible by %d",
            16 if bits == 8 else _WHOLE,
        )


_BITS = {"none": 32, "int8": 8, "int4": 4}


def _fix_weights(model: GPT2Model, bits: int) -> None:
    """Set packed or rounded matrices in place of the model's, as far as there are such."""
    head = arrange(model.output_weight.detach(), None, bits)
    if head.bits < 32:
        embeddings = head
        if model.head is not None:
            embeddings = arrange(model.token_embeddings.weight.detach(), None, bits)
        model.add_module("token_embeddings", FixedEmbeddings(embeddings))
    blocks = list(cast(Iterable[TransformerBlock], model.blocks))
    layers = [_fixed_layer(block, bits) for block in blocks]
    model.head = FixedLinear(head)
    config, epsilons = model.config, {norm.eps for block in blocks for norm in block.norms}
    complete = [layer for layer in layers if layer is not None and layer.is_native]
    if len(complete) == len(layers) and len(epsilons) == 1:
        model.few_tokens = NativeLayers(
            complete, config.n_heads, config.activation, config.norm_position == "pre"
        )


def _fixed_layer(block: TransformerBlock, bits: int) -> LayerWeights | None:
    """What a layer consists of, or None where its norms are not those of the compiled part."""
    qkv, proj, expand, contract = (
        _fixed(owner, name, bits)
        for owner, name in (
            (block.attention, "qkv"),
            (block.attention, "proj"),
            (block.ffn, "expand"),
            (block.ffn, "contract"),
        )
    )
    first, second = (Norm.of(norm, proj.inputs) for norm in block.norms)
    if first is None or second is None:
        return None
    return LayerWeights(qkv, proj, expand, contract, first, second)


def _fixed(owner: nn.Module, name: str, bits: int) -> Weights:
    """The weights of a linear layer of `owner`, which is replaced where they are rounded."""
    linear = getattr(owner, name)
    bias = None if linear.bias is None else linear.bias.detach().contiguous()
    weights = arrange(linear.weight.detach(), bias, bits)
    if weights.bits < 32:
        setattr(owner, name, FixedLinear(weights))
    return weights


class FixedEmbeddings(nn.Module):
    """Token embeddings, each of which is a row of a packed or rounded matrix."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) to embeddings (B, T, C)."""
        return restore(self._weights, tokens.flatten()).unflatten(0, tokens.shape)

    def extra_repr(self) -> str:
        """The sizes."""
        return _sizes(self._weights)


class FixedLinear(nn.Module):
    """A linear layer of weights that do not change any more."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights
        self._few = NativeLinear(weights) if weights.is_native else None

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (O, I) as it is multiplied with."""
        return restore(self._weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        few = self._weights.bits < 28 or x.numel() <= FEW * self._weights.inputs
        # Autocasting gives other types: those are PyTorch's, and so are gradients.
        if self._few is not None and few and self._few.suits(x):
            return self._few(x)
        return F.linear(x, self.weight, self._weights.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return _sizes(self._weights)


def _sizes(weights: Weights) -> str:
    return f"inputs={weights.inputs}, outputs={weights.outputs}, bits={weights.bits}"


def arrange(weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Weights:
    """A matrix (O, I) of finite numbers in 8 or 4 bits; for 32 packed in 28, or as it is."""
    outputs, inputs = weight.shape
    if bits == 32:
        whole = Weights(weight.contiguous(), None, bias, inputs, outputs, bits)
        return pack(weight, bias) or whole
    in_bits = _in_8_bits if bits == 8 else _in_4_bits
    # In parts that a processor's cache holds.
    parts = [in_bits(rows) for rows in weight.split(256)]
    values, scale = (torch.cat(each) for each in zip(*parts, strict=True))
    return Weights(values, scale, bias, inputs, outputs, bits)


def restore(weights: Weights, rows: torch.Tensor | None = None) -> torch.Tensor:
    """The matrix (O, I), or those of its rows (N,), in 32 bits: what rounding has left of it."""
    if weights.bits == 28:
        return unpack(weights, rows)
    if rows is not None:
        # `index_select` refuses rows that are not there, the negative ones among them.
        scale = None if weights.scale is None else weights.scale.index_select(0, rows)
        weights = weights._replace(values=weights.values.index_select(0, rows), scale=scale)
    if weights.bits == 32:
        return weights.values
    assert weights.scale is not None
    if weights.bits == 8:
        return weights.values * weights.scale.unsqueeze(1)
    halves = weights.values.unflatten(1, (-1, GROUP))
    levels = torch.stack([halves & 15, halves >> 4], dim=2).flatten(1)
    step, lowest = (part.float().unsqueeze(-1) for part in _halves(weights.scale))
    return (levels.unflatten(1, (-1, GROUP)) * step + lowest).flatten(1)


def _check_finite(name: str, weight: torch.Tensor) -> None:
    # The least and the greatest are NaN where any weight is: twenty times as fast as to ask each.
    if not bool(torch.stack(weight.aminmax()).isfinite().all()):
        raise AGI2Error(
            f"{name} of the model has weights that are no finite numbers: train it again"
        )


def _in_8_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of -127 to 127, and the size of a level in each row."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale.unsqueeze(1)).round().to(torch.int8), scale


def _in_4_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of 0 to 15, and each group's step and lowest value."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    middle = (low + high) / 2
    # The outermost weights may be cut, where that brings the others nearer.
    steps = [((high - low).clamp(min=1e-12) * share / 15).bfloat16().float() for share in _SHARES]
    lowests = [(middle - 7.5 * step).bfloat16().float() for step in steps]
    errors = [
        (_levels(groups, *pair) * pair[0]).add_(pair[1]).sub_(groups).square_().sum(-1, True)
        for pair in zip(steps, lowests, strict=True)
    ]
    best = torch.cat(errors, dim=-1).argmin(dim=-1, keepdim=True)
    step, lowest = (torch.cat(each, dim=-1).gather(-1, best) for each in (steps, lowests))
    levels = _levels(groups, step, lowest)
    # 64 neighbours in 32 bytes: 32 in the lower halves, 32 in the upper ones.
    low, high = levels.to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    upper_and_lower = torch.cat([lowest, step], dim=-1).bfloat16()
    return (low | high << 4).flatten(1), upper_and_lower.view(torch.int32).squeeze(-1)


def _levels(groups: torch.Tensor, step: torch.Tensor, lowest: torch.Tensor) -> torch.Tensor:
    return (groups - lowest).div_(step).round_().clamp_(0, 15)


def _halves(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and lowest values (O, I / 32), bfloat16, that `_in_4_bits` has put together."""
    lowest, step = scale.unsqueeze(-1).view(torch.bfloat16).unbind(-1)
    return step, lowest
