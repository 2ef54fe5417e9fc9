"""LoRA (Hu et al., 2021): fine-tuning through low-rank updates of linear layers. r the rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from .decode_backend import EagerBackend
from .linear import Linear

_DOWN, _UP = "lora_down", "lora_up"


class LoRALinear(Linear):
    """A linear layer with a frozen weight W (outputs, inputs) and a trained update B A.

    `lora_down`, A, is (r, inputs), initialized at random; `lora_up`, B, is (outputs, r),
    initialized to zeros, so that the output is unchanged at first. The paper's alpha is r (a scale
    of 1): the learning rate has the same effect.

    Args:
        linear: the layer whose weight and bias are used.
        rank: r.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        new = linear.weight.new_zeros
        self.lora_down = nn.Parameter(new(rank, linear.in_features))
        self.lora_up = nn.Parameter(new(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))  # as in nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply W + B A and the bias: (..., inputs) to (..., outputs)."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_down), self.lora_up)

    def extra_repr(self) -> str:
        """Return the sizes and the rank."""
        return f"{super().extra_repr()}, rank={self.lora_down.size(0)}"

    @torch.no_grad()
    def merged(self) -> Linear:
        """Return an equivalent `Linear` with the weight W + B A."""
        linear = Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.addmm(self.weight, self.lora_up, self.lora_down))
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, rank: int, tokens: Sequence[int] = ()) -> None:
    """Freeze a model, and replace each linear layer of its blocks by a `LoRALinear`.

    Args:
        model: a `GPT2Model`.
        rank: r.
        tokens: ids of new tokens, whose embeddings are trained, too.
    """
    model.requires_grad_(False)
    if tokens:
        for layer in _vocabulary_layers(model):
            _train_rows(layer.get_parameter("weight"), tokens)
    for parent in list(model.get_submodule("blocks").modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child, rank))
    _forget_prepared(model)


def _vocabulary_layers(model: nn.Module) -> list[nn.Module]:
    """Return the token embeddings, and the head if it is not tied to them."""
    layers = [model.get_submodule("token_embeddings"), getattr(model, "head", None)]
    return [layer for layer in layers if layer is not None]


def _train_rows(weight: nn.Parameter, rows: Sequence[int]) -> None:
    """Train some rows of a frozen matrix: the gradient of the others is zero."""
    is_trained = torch.zeros(len(weight), 1, dtype=torch.bool, device="cpu")
    is_trained[list(rows)] = True
    on_device = {is_trained.device: is_trained}  # a copy in each step would wait for a GPU

    def keep_rows(grad: torch.Tensor) -> torch.Tensor:
        if grad.device not in on_device:
            on_device[grad.device] = is_trained.to(grad.device)  # pragma: needs gpu
        return grad * on_device[grad.device]

    weight.requires_grad_(True)
    weight.register_hook(keep_rows)


def is_lora(name: str) -> bool:
    """Return whether a parameter of a model is a matrix of a `LoRALinear`, by its name."""
    return name.endswith((_DOWN, _UP))


def merge_lora(model: nn.Module) -> None:
    """Merge each `LoRALinear` of a model into an `nn.Linear`, and unfreeze the model."""
    model.requires_grad_(True)
    for layer in _vocabulary_layers(model):
        weight = layer.get_parameter("weight")
        layer.weight = nn.Parameter(weight.detach())  # without the hook of `_train_rows`
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    _forget_prepared(model)


def _forget_prepared(model: nn.Module) -> None:
    """Decode without CUDA graphs from now on: they read the weights that the model had."""
    cast(Any, model).use_decode_backend(EagerBackend())


def merged(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a `state_dict` with LoRA merged into the weights, W + B A; others are unchanged."""
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
    """Return the shapes that the LoRA matrices must have to match their layers' weights.

    Args:
        found: shapes of the tensors in a file, which give the rank of each layer.
        layers: shapes of a model's weights without LoRA.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        layer, _, kind = name.rpartition(".")
        weight = layers.get(f"{layer}.weight", ())
        if kind == _DOWN and len(shape) == len(weight) == 2:
            shapes[name] = (shape[0], weight[1])
            shapes[f"{layer}.{_UP}"] = (weight[0], shape[0])
    return shapes
