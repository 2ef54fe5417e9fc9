"""Keys and values of tokens already seen, so that each new token costs one token's work.

B batch, H heads, S capacity in tokens, T new tokens, D head size.
"""

from __future__ import annotations

import torch

from ..arguments import PositiveInt, as_device, checked
from ..errors import AGI2Error


class LayerCache:
    """One layer's keys and values, in two buffers of shape (B, H, S, D) allocated once."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add T tokens, each (B, H, T, D); return all so far, as views of the buffers.

        Raises:
            AGI2Error: where they do not fit.
        """
        start, end = self.length, self.extend(key.size(2))
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]

    def extend(self, count: int) -> int:
        """Let `count` tokens more be held, for the caller to write; return how many now are.

        Raises:
            AGI2Error: where they do not fit.
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
        # How many tokens every two rows are known to begin with alike, (B, B).
        self._alike = torch.zeros(batch_size, batch_size, dtype=torch.long, device="cpu")

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[0].length

    def select(self, rows: torch.Tensor) -> KVCache:
        """A cache whose row i is this one's row `rows[i]`: beams go on from other beams.

        This one is not to be used any more. Where the number of rows stays it is changed in place,
        and only from the first token on in which a row differs from the one that it becomes:
        beams have most of their text in common.
        """
        order = rows.tolist()
        count = self.layers[0].keys.size(0)
        if order == list(range(count)):
            return self
        length = self.length
        chosen = torch.tensor(order, device="cpu")
        alike = self._alike[chosen][:, chosen]
        alike[chosen.unsqueeze(1) == chosen] = length
        if len(order) == count:
            cache = self
            first = min(int(self._alike[i, row]) for i, row in enumerate(order) if i != row)
        else:
            cache, first = self._empty(len(order)), 0
        for source, target in zip(self.layers, cache.layers, strict=True):
            target.keys[:, :, first:length] = source.keys[rows, :, first:length]
            target.values[:, :, first:length] = source.values[rows, :, first:length]
            target.length = length
        cache._alike = alike
        return cache

    def _empty(self, batch_size: int) -> KVCache:
        """A cache like this one with another number of rows."""
        _, n_heads, capacity, head_dim = (old := self.layers[0].keys).shape
        return KVCache(
            len(self.layers), batch_size, n_heads, capacity, head_dim, old.device, old.dtype
        )

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on.

        Raises:
            AGI2Error: where fewer are held.
        """
        if not 0 <= length <= self.length:
            raise AGI2Error(f"cannot cut a cache of {self.length} tokens to {length}")
        for layer in self.layers:
            layer.length = length
        self._alike.clamp_(max=length)
