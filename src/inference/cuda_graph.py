"""A pass over one new token of each text, recorded once on a GPU and then replayed.

To start a hundred small kernels takes a processor longer than a GPU takes to run them; a CUDA graph
starts all of them at once. It wants tensors of one shape that stay in their places: attention sees
the whole of a cache, whose columns that hold nothing yet are masked.

B rows, C channels, H heads, S capacity in tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..cuda_utils import first_line
from ..nn.kv_cache import KVCache, LayerCache
from ..utils import log

RECORDED_AFTER = 8
"""Single tokens in a cache before its step is recorded, which takes the time of some of them."""


class FixedLayerCache(LayerCache):
    """A layer's buffers, written in the column that a tensor names and always shown whole.

    Args:
        layer: whose buffers they are.
        column: the new token's, (1,).
    """

    def __init__(self, layer: LayerCache, column: torch.Tensor) -> None:
        super().__init__(layer.keys, layer.values)
        self._column = column
        # What attention gives no weight must be a number all the same.
        self.keys[:, :, layer.length :] = 0
        self.values[:, :, layer.length :] = 0

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token, (B, H, 1, D); return the buffers, (B, H, S, D)."""
        self.keys.index_copy_(2, self._column, key)
        self.values.index_copy_(2, self._column, value)
        return self.keys, self.values


class FixedStep:
    """A model's blocks over one new token of each row, in tensors that stay where they are.

    Args:
        blocks: of the model.
        cache: whose buffers are read and written; those who use it keep its length. Not full.
    """

    def __init__(self, blocks: Sequence[nn.Module], cache: KVCache) -> None:
        batch, heads, capacity, width = cache.layers[0].keys.shape
        like = cache.layers[0].keys
        self._blocks = blocks
        self._x = like.new_zeros(batch, 1, heads * width)
        # From the start one that is free: to record a step it is taken once for its own sake.
        self._column = torch.tensor([cache.length], device=like.device)
        self._columns = torch.arange(capacity, device=like.device)
        self._is_text = torch.ones(batch, 1, 1, capacity, dtype=torch.bool, device=like.device)
        self._layers = [FixedLayerCache(layer, self._column) for layer in cache.layers]
        self.replay: Callable[[], torch.Tensor] | None = None
        if like.device.type == "cuda":  # pragma: needs gpu
            self.replay = self._recorded()

    def __call__(self, x: torch.Tensor, is_text: torch.Tensor | None, column: int) -> torch.Tensor:
        """Embeddings (B, 1, C) of the token in a column to what the blocks make of them."""
        self._x.copy_(x)
        self._column.fill_(column)
        seen = self._is_text[..., : column + 1]
        if is_text is None:
            seen.fill_(True)
        else:
            seen.copy_(is_text[:, None, None])
        return (self.replay or self._compute)().clone()

    def _compute(self) -> torch.Tensor:
        # A token sees itself, be it padding: nothing has no softmax.
        is_seen = self._is_text & (self._columns < self._column) | (self._columns == self._column)
        # As what is added to the scores: each layer would make that anew of a boolean one.
        mask = torch.zeros_like(is_seen, dtype=self._x.dtype).masked_fill_(~is_seen, -torch.inf)
        x = self._x
        for block, layer in zip(self._blocks, self._layers, strict=True):
            x = block(x, mask, causal=False, cache=layer)
        return x

    def _recorded(self) -> Callable[[], torch.Tensor] | None:  # pragma: needs gpu
        """`_compute` as a graph, or nothing, with one line of warning, where that fails."""
        device = self._x.device
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            # One for all: libraries keep memory for each stream that they have worked in.
            if device not in _STREAMS:
                _STREAMS[device] = torch.cuda.Stream()
            beside = _STREAMS[device]
            # Libraries make their preparations at the first use, which cannot be recorded.
            beside.wait_stream(before)
            with torch.cuda.stream(beside):
                self._compute()
            before.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            try:
                # Another thread may go on using the GPU.
                with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                    out = self._compute()
            except RuntimeError as error:
                torch.cuda.set_stream(before)
                log.warning("CUDA graphs do not work here (%s): writing without", first_line(error))
                return None

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}
"""What steps are recorded in, for each device."""


class GraphedLayers:
    """All layers of a model for one new token of each row; see `GPT2Model.few_tokens`.

    A graph belongs to a cache, and is gone when that is.

    Args:
        blocks: of the model.
        after: single tokens that a cache gets before its step is recorded.
    """

    def __init__(self, blocks: Iterable[nn.Module], after: int = RECORDED_AFTER) -> None:
        self._blocks = list(blocks)
        self._after = after
        self._steps: WeakKeyDictionary[KVCache, FixedStep | int] = WeakKeyDictionary()
        self._works = True

    def __call__(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: KVCache
    ) -> torch.Tensor | None:
        """What the layers make of embeddings (B, T, C), or None where that is not recorded.

        Args:
            x: of the new tokens.
            attention_mask: (B or 1, S), true for text and false for padding.
            cache: gets the new keys and values.
        """
        is_own = attention_mask is not None and attention_mask.dim() > 2
        if x.size(1) > 1 or is_own or cache.length == cache.capacity or not self._works:
            return None
        # Tensors that were made in the one mode cannot be written in another.
        if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled(x.device.type):
            return None
        step = self._steps.get(cache, 0)
        if isinstance(step, int):
            if step < self._after:
                self._steps[cache] = step + 1
                return None
            step = self._steps[cache] = FixedStep(self._blocks, cache)
            if x.device.type == "cuda" and step.replay is None:  # pragma: needs gpu
                self._works = False
                return None
        out = step(x, attention_mask, cache.length)
        for layer in cache.layers:
            layer.extend(1)
        return out
