"""CPU decode backend: all layers of a model in one call of the library. See `cpu_kernels.c`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from .cpu_kernels import ACTIVATIONS, MAX_KERNEL_TOKENS, Weights
from .cpu_library import LIBRARY, LayerStruct, ModelStruct, address_of, is_plain
from .decode_backend import DecodeBackend
from .kv_cache import KVCache


class Norm(NamedTuple):
    """A layer norm's weight (C,) and bias (C,), each optional."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module, width: int) -> Norm | None:
        """Return the parameters of a module, or None if it is not a supported `nn.LayerNorm`.

        They are kept alive here: parameters assigned to the module later are not used.
        """
        if type(module) is not nn.LayerNorm or module.normalized_shape != (width,):
            return None
        weight, bias = (
            None if part is None else part.detach().contiguous()
            for part in (module.weight, module.bias)
        )
        are_plain = all(part is None or is_plain(part, torch.float32) for part in (weight, bias))
        return cls(weight, bias, module.eps) if are_plain else None


class LayerWeights(NamedTuple):
    """The weights of one transformer layer."""

    qkv: Weights
    proj: Weights
    expand: Weights
    contract: Weights
    attention_norm: Norm
    ffn_norm: Norm

    @property
    def has_kernel(self) -> bool:
        """Whether the library supports every matrix, and their shapes match."""
        width, hidden = self.proj.inputs, self.expand.outputs
        shapes = [(part.inputs, part.outputs) for part in self[:4]]
        fit = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
        return shapes == fit and all(part.has_kernel for part in self[:4])


class KernelBackend(DecodeBackend):
    """CPU decode backend for all layers of a model.

    Args:
        layers: with `has_kernel` true, all of one shape and format.
        n_heads: attention heads of a layer; divides the width.
        activation: one of `ACTIVATIONS`.
        pre_norm: pre-norm (GPT-2) or post-norm.
    """

    batch_invariant = True

    def __init__(
        self, layers: Sequence[LayerWeights], n_heads: int, activation: str, pre_norm: bool
    ) -> None:
        self._layers = list(layers)  # keeps alive what the pointers below point to
        first = layers[0]
        width = first.proj.inputs
        array = (LayerStruct * len(layers))()
        for struct, layer in zip(array, layers, strict=True):
            for name in ("qkv", "proj", "expand", "contract"):
                setattr(struct, name, getattr(layer, name).struct())
            for name in ("attention_norm", "ffn_norm"):
                norm = getattr(layer, name)
                parts = (address_of(part, torch.float32, width) for part in norm[:2])
                setattr(struct, name, (c_void_p * 2)(*parts))
        self._model = ModelStruct(
            *(array, len(layers), width, n_heads),
            *(ACTIVATIONS.index(activation), pre_norm, first.ffn_norm.epsilon),
        )

    def __call__(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: KVCache
    ) -> torch.Tensor | None:
        """Return the layers' output (B, T, C), or None if PyTorch must compute it.

        Args:
            x: embeddings of the new tokens, (B, T, C); overwritten.
            attention_mask: (B or 1, S), true for text and false for left padding.
            cache: the new keys and values are appended to it, in each row after its own tokens.
        """
        batch, tokens, _ = x.shape
        if not is_plain(x, torch.float32) or torch.is_grad_enabled():
            return None
        if not is_plain(cache.layers[0].keys, torch.float32) or x.numel() == 0:
            return None
        starts = _starts(attention_mask, batch)
        if starts is None:
            return None
        most = max(1, MAX_KERNEL_TOKENS // batch)
        if tokens <= most:
            return self._run_layers(x.contiguous(), starts, cache)
        parts = x.split(most, dim=1)
        return torch.cat(
            [self._run_layers(part.contiguous(), starts, cache) for part in parts], dim=1
        )

    def _run_layers(self, x: torch.Tensor, starts: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Run the layers in place on new tokens (B, T, C) of sequences that begin at `starts`."""
        assert LIBRARY is not None
        batch, tokens, _ = x.shape
        width = self._model.channels
        if len(cache.layers) != len(self._layers):
            raise TypeError(f"a cache of {len(cache.layers)} layers, not {len(self._layers)}")
        elements = batch * cache.capacity * width
        if cache.addresses is None or cache.addresses[0] != elements:
            cache.addresses = (elements, *_cache_addresses(cache, elements))
        _, keys, values = cache.addresses
        lengths = (c_int64 * batch)(*cache.lengths)
        # Raises if the tokens do not fit, before the library writes to the buffers.
        for layer in cache.layers:
            layer.extend(tokens)
        failed = LIBRARY.agi2_layers(
            byref(self._model),
            address_of(x, torch.float32, batch * tokens * width),
            *(keys, values, address_of(starts, torch.int64, batch)),
            *(lengths, batch, tokens, cache.capacity),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for a pass of the model")
        return x


def _cache_addresses(cache: KVCache, elements: int) -> tuple[Any, Any]:
    """Return the addresses of all layers' keys, and of their values, of so many elements each."""
    addresses = c_void_p * len(cache.layers)
    keys, values = (
        addresses(*(address_of(part, torch.float32, elements) for part in parts))
        for parts in zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
    )
    return keys, values


def _starts(attention_mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """Return the padding before each sequence (B,), or None if the mask is not left padding."""
    if attention_mask is None:
        return _no_padding(batch)
    if attention_mask.dim() != 2:
        return None
    is_text = attention_mask.bool()
    if bool((is_text[:, :-1] & ~is_text[:, 1:]).any()) or not bool(is_text[:, -1].all()):
        return None
    return (~is_text).sum(dim=1).expand(batch).contiguous()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _no_padding(batch: int) -> torch.Tensor:
    """Return zeros (B,); not to be changed."""
    return torch.zeros(batch, dtype=torch.int64, device="cpu")
