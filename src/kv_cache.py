"""Keys and values of tokens already seen, so that each new token costs one token's work.

B batch, H heads, S capacity in tokens, T new tokens, D head size.
"""

from __future__ import annotations

import torch

from .errors import AGI2Error


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
        end = self.length + key.size(2)
        if end > self.keys.size(2):
            raise AGI2Error(f"the cache holds {self.keys.size(2)} tokens, not {end}")
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The keys and values of every layer of a model."""

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        capacity: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (batch_size, n_heads, capacity, head_dim)
        self.capacity = capacity
        self.layers = [
            LayerCache(
                torch.empty(shape, device=device, dtype=dtype),
                torch.empty(shape, device=device, dtype=dtype),
            )
            for _ in range(n_layers)
        ]

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[0].length

    def select(self, rows: torch.Tensor) -> KVCache:
        """A cache whose row i is this one's row `rows[i]`: beams go on from other beams.

        Rows may be more or fewer than there were. Where the order is unchanged this is `self`.
        """
        old = self.layers[0].keys
        if rows.tolist() == list(range(old.size(0))):
            return self
        _, n_heads, capacity, head_dim = old.shape
        new = KVCache(
            len(self.layers), len(rows), n_heads, capacity, head_dim, old.device, old.dtype
        )
        for source, target in zip(self.layers, new.layers, strict=True):
            target.append(
                source.keys[rows, :, : source.length], source.values[rows, :, : source.length]
            )
        return new

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on.

        Raises:
            AGI2Error: where fewer are held.
        """
        if not 0 <= length <= self.length:
            raise AGI2Error(f"cannot cut a cache of {self.length} tokens to {length}")
        for layer in self.layers:
            layer.length = length
