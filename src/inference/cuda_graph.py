"""Decode steps as CUDA graphs (see `cuda_utils.capture_graph`).

They require static shapes and addresses: a graph is for the first columns of a KV cache, so many
that a few graphs serve all lengths, and those behind a row's own tokens are masked.

B batch, H heads, S columns of the KV cache, D head size, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from ..cuda_utils import CapturedGraph, capture_graph, to_device
from ..nn.decode_backend import DecodeBackend
from ..nn.kv_cache import KVCache, LayerCache
from ..nn.padded_weight import padded_rows

if TYPE_CHECKING:
    from ..embeddings import LearnedPositionEmbeddings, PositionEmbeddings
    from ..model import GPT2Model

CAPTURE_AFTER = 8
"""Decode steps of a shape before it is captured: a capture costs several steps."""
MIN_COLUMNS = 128
"""Columns of the narrowest step: the attention over fewer takes a GPU no less time."""


class StepModules(NamedTuple):
    """What a decode step needs of a model: not the model, whose decode backend would be a cycle."""

    token_embeddings: nn.Module
    scale: float
    position_embeddings: LearnedPositionEmbeddings | PositionEmbeddings
    blocks: list[nn.Module]
    final_norm: nn.Module
    head: nn.Module | None

    @classmethod
    def of(cls, model: GPT2Model) -> StepModules:
        """Return those of a model."""
        return cls(
            model.token_embeddings,
            model.embedding_scale,
            model.position_embeddings,
            list(model.blocks),
            model.final_norm,
            model.head,
        )

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, T, C) of tokens (B, T) at positions (B, T)."""
        x = self.token_embeddings(tokens)
        if self.scale != 1.0:
            x = x * self.scale
        return torch.add(x, self.position_embeddings.lookup(positions))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the head: (B, C) to (B, V), or more columns if its matrix is padded."""
        weight = (self.head or self.token_embeddings).weight
        assert isinstance(weight, torch.Tensor)
        return F.linear(hidden, padded_rows(weight))


class StaticLayerCache(LayerCache):
    """A static view of a layer's KV cache: updated at the columns in a tensor.

    Args:
        layer: the cache whose buffers are shared.
        places: column of each row's new token, (B,).
        columns: S, the number of columns that `append` returns.
    """

    def __init__(self, layer: LayerCache, places: torch.Tensor, columns: int) -> None:
        super().__init__(layer.keys, layer.values)
        # Masked positions have weight 0, but 0 * NaN is NaN: uninitialized memory must be cleared.
        layer.clear(columns)
        batch, heads, _, width = layer.keys.shape
        self._both = stacked(layer.keys, layer.values)
        self._places = places.view(1, batch, 1, 1, 1).expand(2, batch, heads, 1, width)
        self._seen = layer.keys[:, :, :columns], layer.values[:, :, :columns]

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one token's key and value, (B, H, 1, D); return the columns, (B, H, S, D)."""
        self._both.scatter_(3, self._places, stacked(key, value))
        return self._seen


def stacked(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return a view (2, ...) of two tensors that lie in one, such as a projection's parts.

    Raises:
        ValueError: if they do not, or differ in shape or strides.
    """
    step = second.storage_offset() - first.storage_offset()
    is_one = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    if not is_one or step < 0 or (first.shape, first.stride()) != (second.shape, second.stride()):
        raise ValueError("the tensors are not parts of one")
    return first.as_strided((2, *first.shape), (step, *first.stride()))


class GraphedStep:
    """A decode step of a model over static tensors, captured as a CUDA graph on a GPU.

    Args:
        modules: of the model.
        cache: its buffers are read and updated; the caller updates its lengths. Must not be full.
        columns: S, the columns of the cache that are read. The logits of a row with as many tokens
            or more have no meaning.
    """

    def __init__(self, modules: StepModules, cache: KVCache, columns: int) -> None:
        like = cache.layers[0].keys
        self._modules = modules
        # Token ids, and lengths.
        self._inputs = torch.zeros(2, len(cache.lengths), dtype=torch.long, device=like.device)
        self._columns = torch.arange(columns, device=like.device)
        self._mask = torch.tensor([0.0, -torch.inf], dtype=like.dtype, device=like.device)
        self._layers = [StaticLayerCache(each, self._inputs[1], columns) for each in cache.layers]
        self.runs = 0
        """Number of steps so far."""
        self.address = like.data_ptr()
        """The same for all steps over rows of one cache."""
        self.graph: CapturedGraph | None = None
        """The captured graph, if it is."""

    def load(self, tokens: Sequence[int] | torch.Tensor, lengths: Sequence[int]) -> None:
        """Set the inputs of the next run.

        Args:
            tokens: B token ids, or a tensor of the first of them; then the others are any.
            lengths: number of earlier tokens of each row.
        """
        device = self._inputs.device
        if isinstance(tokens, torch.Tensor):
            self._inputs[0, : len(tokens)].copy_(tokens)
            self._inputs[1].copy_(to_device(lengths, device))
        else:
            self._inputs.copy_(to_device([tokens, lengths], device))

    def run(self) -> torch.Tensor:
        """Return the logits (B, V or more) after one token of each row."""
        self.runs += 1
        if self.graph is None:
            return self._compute()
        with torch.cuda.device(self._inputs.device):  # pragma: needs gpu
            return self.graph.replay().clone()

    def _compute(self) -> torch.Tensor:
        tokens, lengths = self._inputs.unsqueeze(-1)
        x = self._modules.embed(tokens, lengths)
        # An additive mask: every layer would convert a boolean one again.
        is_free = self._columns > lengths
        mask = torch.where(is_free, self._mask[1], self._mask[0])[:, None, None]
        for block, layer in zip(self._modules.blocks, self._layers, strict=True):
            x = block(x, mask, causal=False, cache=layer)
        return self._modules.logits(self._modules.final_norm(x.squeeze(1)))

    def capture(self, pool: Any) -> bool:  # pragma: needs gpu
        """Capture the step; return whether that works.

        Load its inputs before: the step is also computed.

        Args:
            pool: memory pool for intermediate tensors, of another graph, which is never replayed at
                the same time; None for a new one.
        """
        self.graph = capture_graph(self._compute, self._inputs.device, "decoding without", pool)
        return self.graph is not None


class GraphedBackend(DecodeBackend):
    """CUDA-graph decode backend: the complete decode step of a model.

    A graph belongs to a KV cache and is freed with it. There are few, as numbers of rows and of
    columns are rounded up to powers of two. A copy of the backend has none. Until its capture a
    step runs over the same static tensors.

    Args:
        modules: of the model.
        after: decode steps of a shape before it is captured.
        min_columns: columns of the narrowest step.
    """

    keeps_caches = True
    runs_ahead = True

    def __init__(
        self, modules: StepModules, after: int = CAPTURE_AFTER, min_columns: int = MIN_COLUMNS
    ) -> None:
        self._modules = modules
        self._after = after
        self._min_columns = min_columns
        self._steps: WeakKeyDictionary[KVCache, dict[int, GraphedStep]] = WeakKeyDictionary()
        self._works = True
        # Another thread may use the same model with another runner.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._modules, self._after, self._min_columns)

    def rows_of_step(self, first: int, stop: int) -> tuple[int, int]:
        """Return the first rows, a power of two: one graph serves several numbers of rows."""
        return 0, 1 << (stop - 1).bit_length()

    def decode(
        self, tokens: Sequence[int] | torch.Tensor, cache: KVCache, longest: int
    ) -> torch.Tensor | None:
        """Return the logits after one new token of each row; see `DecodeBackend.decode`.

        None outside inference mode, where inference tensors cannot be updated in place, under
        autocast, if a row is full, and if a capture has failed.
        """
        device = cache.device.type
        if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device):
            return None
        if not self._works or cache.length == cache.capacity:
            return None
        columns = min(cache.capacity, max(self._min_columns, 1 << longest.bit_length()))
        with self._lock:
            steps = self._steps.setdefault(cache, {})
            if columns not in steps:
                steps[columns] = GraphedStep(self._modules, cache, columns)
            step = steps[columns]
        step.load(tokens, cache.lengths)
        if device == "cuda" and step.graph is None and step.runs >= self._after:
            self._works = self._capture(step)  # pragma: needs gpu
        logits = step.run()
        for layer in cache.layers:
            layer.extend(1)
        return logits

    def _capture(self, step: GraphedStep) -> bool:  # pragma: needs gpu
        """Capture a step; return whether that works here. The graphs of a cache share memory."""
        with self._lock:
            others = [each for steps in self._steps.values() for each in steps.values()]
        pools = [
            each.graph.graph.pool()
            for each in others
            if each.graph is not None and each.address == step.address
        ]
        return step.capture(pools[0] if pools else None)
