"""KV cache: keys and values of earlier tokens, so that a decode step computes new tokens only.

B batch, H heads, S capacity in tokens, T new tokens, D head size.
"""

from __future__ import annotations

import torch

from ..arguments import PositiveInt, as_device, checked
from ..errors import AGI2Error


class LayerCache:
    """One layer's keys and values, in two preallocated buffers of shape (B, H, S, D)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T tokens, each (B, H, T, D); return all, (B, H, length, D), views of the buffers.

        Raises:
            AGI2Error: if the capacity is exceeded.
        """
        start, end = self.length, self.extend(key.size(2))
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]

    def extend(self, count: int) -> int:
        """Add `count` tokens, whose keys and values the caller stores; return the new length.

        Raises:
            AGI2Error: if the capacity is exceeded.
        """
        end = self.length + count
        if end > self.keys.size(2):
            raise AGI2Error(f"the cache holds {self.keys.size(2)} tokens, not {end}")
        self.length = end
        return end


class KVCache:
    """The keys and values of every layer of a model."""

    @checked
    def __init__(
        self,
        n_layers: PositiveInt,
        batch_size: PositiveInt,
        n_heads: PositiveInt,
        capacity: PositiveInt,
        head_dim: PositiveInt,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = as_device("device", device)
        shape = (batch_size, n_heads, capacity, head_dim)
        self.capacity = capacity
        self.layers = [
            LayerCache(
                torch.empty(shape, device=device, dtype=dtype),
                torch.empty(shape, device=device, dtype=dtype),
            )
            for _ in range(n_layers)
        ]
        # Length of the prefix that every two rows are known to share, (B, B).
        self._shared_prefix = torch.zeros(batch_size, batch_size, dtype=torch.long, device="cpu")

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return self.layers[0].length

    def select(self, rows: torch.Tensor) -> KVCache:
        """Return a cache whose row i is row `rows[i]` of this one, to reorder beams.

        This cache must not be used afterwards. If the number of rows is unchanged, it is updated in
        place, from the first token on at which a row may differ from its new content: beams share
        most of their tokens.
        """
        order = rows.tolist()
        count = self.layers[0].keys.size(0)
        if order == list(range(count)):
            return self
        length = self.length
        chosen = torch.tensor(order, device="cpu")
        shared_prefix = self._shared_prefix[chosen][:, chosen]
        shared_prefix[chosen.unsqueeze(1) == chosen] = length
        if len(order) == count:
            cache = self
            first = min(int(self._shared_prefix[i, row]) for i, row in enumerate(order) if i != row)
        else:
            cache, first = self._empty(len(order)), 0
        # Indexing by `rows` copies, so source and target may be the same buffers.
        for source, target in zip(self.layers, cache.layers, strict=True):
            target.keys[:, :, first:length] = source.keys[rows, :, first:length]
            target.values[:, :, first:length] = source.values[rows, :, first:length]
            target.length = length
        cache._shared_prefix = shared_prefix
        return cache

    def _empty(self, batch_size: int) -> KVCache:
        """Return an empty cache like this one with another batch size."""
        _, n_heads, capacity, head_dim = (old := self.layers[0].keys).shape
        return KVCache(
            len(self.layers), batch_size, n_heads, capacity, head_dim, old.device, old.dtype
        )

    def truncate(self, length: int) -> None:
        """Remove every token from `length` on.

        Raises:
            AGI2Error: if the cache has fewer tokens.
        """
        if not 0 <= length <= self.length:
            raise AGI2Error(f"cannot cut a cache of {self.length} tokens to {length}")
        for layer in self.layers:
            layer.length = length
        self._shared_prefix.clamp_(max=length)
