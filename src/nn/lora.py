"""LoRA (Hu et al., 2021): a trained model learns more through a few small matrices.

r the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

_DOWN, _UP = "lora_down", "lora_up"


class LoRALinear(nn.Linear):
    """A linear layer whose weight W (outputs, inputs) stays, beside B A, which is trained.

    `lora_down`, A, is (r, inputs) and drawn at random; `lora_up`, B, is (outputs, r) and begins as
    zeros, so that nothing changes at first. The paper's alpha is r: the learning rate does the
    same.

    Args:
        linear: the layer whose weight and bias are taken over, and no longer trained.
        rank: r.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        new = linear.weight.new_zeros
        self.lora_down = nn.Parameter(new(rank, linear.in_features))
        self.lora_up = nn.Parameter(new(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))  # as PyTorch's linear layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_down), self.lora_up)

    def extra_repr(self) -> str:
        """The sizes and the rank."""
        return f"{super().extra_repr()}, rank={self.lora_down.size(0)}"

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.addmm(self.weight, self.lora_up, self.lora_down))
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, rank: int) -> None:
    """Freeze a model, and set a `LoRALinear` in place of each linear layer of its blocks.

    Args:
        model: a `GPT2Model`.
        rank: r.
    """
    model.requires_grad_(False)
    for parent in list(model.get_submodule("blocks").modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child, rank))


def merge_lora(model: nn.Module) -> None:
    """Make a model's `LoRALinear` plain linear layers again, with W + B A; all is then trained."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    model.requires_grad_(True)


def merged(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A `state_dict` without LoRA of the same model: W + B A. Others are as they were."""
    plain = {name: w for name, w in weights.items() if not name.endswith((_DOWN, _UP))}
    for name, down in weights.items():
        layer, _, kind = name.rpartition(".")
        if kind == _DOWN:
            plain[f"{layer}.weight"] = torch.addmm(
                plain[f"{layer}.weight"], weights[f"{layer}.{_UP}"], down
            )
    return plain


def lora_shapes(
    found: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that LoRA's matrices must have beside the weights of their layers.

    Args:
        found: the shapes of a file's tensors, which give each layer's rank.
        layers: the shapes of a model's weights without LoRA.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        layer, _, kind = name.rpartition(".")
        weight = layers.get(f"{layer}.weight", ())
        if kind == _DOWN and len(shape) == len(weight) == 2:
            shapes[name] = (shape[0], weight[1])
            shapes[f"{layer}.{_UP}"] = (weight[0], shape[0])
    return shapes
