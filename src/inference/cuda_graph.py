"""Decode steps as CUDA graphs (see `cuda_utils.capture_graph`).

Attention runs over the full capacity of the KV cache, with the unused columns masked: shapes are
static.

B batch, C channels, H heads, S capacity in tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..cuda_utils import capture_graph
from ..nn.decode_backend import DecodeBackend
from ..nn.kv_cache import KVCache, LayerCache

CAPTURE_AFTER = 8
"""Decode steps of a KV cache before its step is captured: a capture costs several steps."""


class StaticLayerCache(LayerCache):
    """A static view of a layer's KV cache: updated at the columns in a tensor, returned in full.

    Args:
        layer: the cache whose buffers are shared.
        columns: column of each row's new token, (B,).
    """

    def __init__(self, layer: LayerCache, columns: torch.Tensor) -> None:
        super().__init__(layer.keys, layer.values)
        batch, heads, _, width = layer.keys.shape
        self._columns = columns.view(batch, 1, 1, 1).expand(batch, heads, 1, width)
        # Masked positions have weight 0, but 0 * NaN is NaN: uninitialized memory must be cleared.
        for row, length in enumerate(layer.lengths):
            self.keys[row, :, length:] = 0
            self.values[row, :, length:] = 0

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one token's key and value, (B, H, 1, D); return the buffers, (B, H, S, D)."""
        self.keys.scatter_(2, self._columns, key)
        self.values.scatter_(2, self._columns, value)
        return self.keys, self.values


class GraphedStep:
    """A decode step of a model's blocks over static tensors, captured as a CUDA graph on a GPU.

    Args:
        blocks: of the model.
        cache: its buffers are read and updated; the caller updates its length. Must not be full.
    """

    def __init__(self, blocks: Sequence[nn.Module], cache: KVCache) -> None:
        batch, heads, capacity, width = cache.layers[0].keys.shape
        like = cache.layers[0].keys
        self._blocks = blocks
        self._x = like.new_zeros(batch, 1, heads * width)
        # Free columns from the start: the warm-up before a capture writes to them.
        self._lengths = torch.tensor(cache.lengths, device=like.device)
        self._columns = torch.arange(capacity, device=like.device)
        self._is_text = torch.ones(batch, 1, 1, capacity, dtype=torch.bool, device=like.device)
        self._layers = [StaticLayerCache(layer, self._lengths) for layer in cache.layers]
        self.replay: Callable[[], torch.Tensor] | None = None
        if like.device.type == "cuda":  # pragma: needs gpu
            self.replay = capture_graph(self._compute, like.device, "decoding without")

    def __call__(
        self, x: torch.Tensor, is_text: torch.Tensor | None, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Return the blocks' output (B, 1, C) for embeddings (B, 1, C) of one token of each row.

        Args:
            x: the embeddings.
            is_text: (B or 1, S), false for padding, if all rows have the same length; None if there
                is no padding.
            lengths: number of earlier tokens of each row.
        """
        self._x.copy_(x)
        self._lengths.copy_(torch.tensor(lengths, device="cpu"))
        seen = self._is_text[..., : max(lengths) + 1]
        if is_text is None:
            seen.fill_(True)
        else:
            seen.copy_(is_text[:, None, None])
        return (self.replay or self._compute)().clone()

    def _compute(self) -> torch.Tensor:
        # A token attends to itself, even padding: the softmax of a fully masked row is NaN.
        last = self._lengths[:, None, None, None]
        is_seen = self._is_text & (self._columns < last) | (self._columns == last)
        # An additive float mask: every layer would convert a boolean one again.
        mask = torch.zeros_like(is_seen, dtype=self._x.dtype).masked_fill_(~is_seen, -torch.inf)
        x = self._x
        for block, layer in zip(self._blocks, self._layers, strict=True):
            x = block(x, mask, causal=False, cache=layer)
        return x


class GraphedBackend(DecodeBackend):
    """CUDA-graph decode backend for all layers of a model.

    A graph belongs to a KV cache and is freed with it. There are few, as numbers of rows are
    rounded up to powers of two. A copy of the backend has none.

    Args:
        blocks: of the model.
        after: decode steps of a cache before its step is captured.
    """

    def __init__(self, blocks: Iterable[nn.Module], after: int = CAPTURE_AFTER) -> None:
        self._blocks = list(blocks)
        self._after = after
        self._steps: WeakKeyDictionary[KVCache, GraphedStep | int] = WeakKeyDictionary()
        self._works = True

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._blocks, self._after)

    def rows_of_step(self, first: int, stop: int) -> tuple[int, int]:
        """Return the first rows, a power of two: one graph serves several numbers of rows."""
        return 0, 1 << (stop - 1).bit_length()

    def __call__(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: KVCache
    ) -> torch.Tensor | None:
        """Return the layers' output (B, 1, C), or None if the step must run eagerly.

        Args:
            x: embeddings of the new tokens, (B, T, C).
            attention_mask: (B or 1, S), true for text and false for padding.
            cache: the new keys and values are appended to it.
        """
        is_own = attention_mask is not None and attention_mask.dim() > 2
        if x.size(1) > 1 or is_own or cache.length == cache.capacity or not self._works:
            return None
        # Inference tensors cannot be updated in place outside inference mode.
        if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled(x.device.type):
            return None
        step = self._steps.get(cache, 0)
        if isinstance(step, int):
            if step < self._after:
                self._steps[cache] = step + 1
                return None
            step = self._steps[cache] = GraphedStep(self._blocks, cache)
            if x.device.type == "cuda" and step.replay is None:  # pragma: needs gpu
                self._works = False
                return None
        out = step(x, attention_mask, cache.lengths)
        for layer in cache.layers:
            layer.extend(1)
        return out
