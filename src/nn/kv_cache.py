"""KV cache: keys and values of earlier tokens, so that a decode step computes new tokens only.

Each row has a length of its own: sequences join, leave and slide their windows (see
`inference.sequence`) without moving others. B batch (rows), H heads, S capacity in tokens, T new
tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..arguments import PositiveInt, as_device, checked
from ..errors import AGI2Error

_CLEARED = 64
"""Columns that are cleared at a time in rows that are shorter than others."""


class _Rows:
    """The number of tokens of each row, which the layers of a cache share."""

    def __init__(self, lengths: list[int]) -> None:
        self.set(lengths)

    def set(self, lengths: list[int]) -> None:
        """Set all lengths."""
        self.lengths = lengths
        self.longest = max(lengths)
        self.is_ragged = min(lengths) != self.longest


class LayerCache:
    """One layer's keys and values, in two preallocated buffers of shape (B, H, S, D)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: _Rows | None = None) -> None:
        self.keys = keys
        self.values = values
        self.added = 0
        """Tokens that have been appended to each row since `rows` was set."""
        self._rows = rows or _Rows([0] * keys.size(0))
        self.cleared = np.zeros(keys.size(0), dtype=np.int64)
        """Columns of each row that are known to be initialized, if above its length."""

    def view(self, start: int, stop: int, rows: _Rows) -> LayerCache:
        """Return a view of some rows with lengths of its own."""
        part = LayerCache(self.keys[start:stop], self.values[start:stop], rows)
        part.cleared = self.cleared[start:stop]
        return part

    @property
    def length(self) -> int:
        """Number of tokens of the longest row."""
        return self._rows.longest + self.added

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row; not to be changed."""
        if not self.added:
            return self._rows.lengths
        return [length + self.added for length in self._rows.lengths]

    @property
    def is_ragged(self) -> bool:
        """Whether rows have different lengths."""
        return self._rows.is_ragged

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T tokens to each row, each (B, H, T, D).

        Returns:
            All keys and values, (B, H, length, D), views of the buffers. Past a row's own length
            they have no meaning, but are finite: `causal_mask` excludes them.

        Raises:
            AGI2Error: if the capacity is exceeded, or B, H or D is not the buffers'.
        """
        batch, heads, capacity, width = self.keys.shape
        expected = (batch, heads, key.size(2), width)  # other sizes could be broadcast to these
        if not key.shape == value.shape == expected:
            raise AGI2Error(
                f"cache is for keys and values {(batch, heads, capacity, width)}, not "
                f"{tuple(key.shape)} and {tuple(value.shape)}"
            )
        start, end = self.length, self.extend(key.size(2))
        if self.is_ragged:
            self._append_ragged(key, value, end)
        else:
            self.keys[:, :, start:end] = key
            self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]

    def extend(self, count: int) -> int:
        """Add `count` tokens to each row, whose keys and values the caller stores.

        Returns:
            The length of the longest row.

        Raises:
            AGI2Error: if the capacity is exceeded.
        """
        end = self.length + count
        if end > self.keys.size(2):
            raise AGI2Error(f"the cache holds {self.keys.size(2)} tokens, not {end}")
        self.added += count
        return end

    def clear(self, end: int) -> None:
        """Initialize what is behind each row's tokens, at least up to column `end`, unless it is.

        An attention weight of 0 does not hide NaN, which uninitialized memory may hold.
        """
        for row, length in enumerate(self.lengths):
            first = max(length, int(self.cleared[row]))
            if first < end:
                ahead = min(self.keys.size(2), -(-end // _CLEARED) * _CLEARED)
                self.keys[row, :, first:ahead] = 0
                self.values[row, :, first:ahead] = 0
                self.cleared[row] = ahead

    def causal_mask(self, queries: int) -> torch.Tensor | None:
        """Return the boolean mask (B, T, S) of T new tokens, each row up to its own length.

        Returns:
            The mask, S being the length with the new tokens; None if all rows are of one length.
        """
        if not self.is_ragged:
            return None
        device = self.keys.device
        last = torch.tensor(self.lengths, device=device)[:, None, None]
        last = last + torch.arange(queries, device=device)[:, None]
        return torch.arange(self.length + queries, device=device) <= last

    def _append_ragged(self, key: torch.Tensor, value: torch.Tensor, end: int) -> None:
        """Store T tokens, which `extend` has added, in each row behind its own tokens."""
        self.clear(end)
        starts = tuple(length - key.size(2) for length in self.lengths)
        rows, columns = _places(starts, key.size(2), self.keys.device)
        self.keys[rows, :, columns] = key.transpose(1, 2)
        self.values[rows, :, columns] = value.transpose(1, 2)


@lru_cache(maxsize=4)  # all layers of a forward pass need the same
@torch.inference_mode(False)
def _places(
    starts: tuple[int, ...], count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows (B, 1) and columns (B, T) of new tokens in rows of these lengths."""
    rows = torch.arange(len(starts), device=device).unsqueeze(1)
    first = torch.tensor(starts, device=device).unsqueeze(1)
    return rows, first + torch.arange(count, device=device)


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
        self._rows = _Rows([0] * batch_size)
        is_cleared = device.type == "cuda"
        # A GPU clears all at once in no time; on a CPU memory that is not written to costs nothing.
        new = torch.zeros if is_cleared else torch.empty
        # In one tensor, so that a GPU can store a token's key and value at once.
        buffers = [new((2, *shape), device=device, dtype=dtype) for _ in range(n_layers)]
        self.layers = [
            LayerCache(both[0].detach(), both[1].detach(), self._rows) for both in buffers
        ]
        for layer in self.layers:
            layer.cleared[:] = capacity if is_cleared else 0
        self.addresses: tuple[int, Any, Any] | None = None
        """Number of elements and addresses of the layers' buffers, which stay the same tensors; set
        by a decode backend."""
        self._views: dict[int, KVCache] = {}
        # Length of the prefix that every two rows are known to share, (B, B).
        self._shared_prefix = np.zeros((batch_size, batch_size), dtype=np.int64)

    def check(self, x: torch.Tensor, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Check that the buffers are those of a model and its embeddings, before a layer adds any.

        Args:
            x: embeddings of the new tokens, (B, T, C).
            n_layers, n_heads, head_dim: the model's.

        Raises:
            AGI2Error: if a size, the dtype or the device differs.
        """
        keys = self.layers[0].keys
        found = (len(self.layers), keys.size(0), keys.size(1), keys.size(3))
        expected = (n_layers, x.size(0), n_heads, head_dim)
        if found != expected:
            raise AGI2Error(
                f"cache has {found} layers, rows, heads and channels of a head, the model and its "
                f"tokens need {expected}: make it with model.new_cache({x.size(0)})"
            )
        is_cast = keys.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)
        if keys.device != x.device or is_cast:
            raise AGI2Error(
                f"cache is {keys.dtype} on {keys.device}, the model {x.dtype} on {x.device}: make "
                f"it with model.new_cache({x.size(0)})"
            )

    @torch.inference_mode()
    def reset(self) -> None:
        """Empty all rows and zero their memory: masks do not hide NaN, which it may hold."""
        self.set_lengths(dict.fromkeys(range(self.batch_size), 0))
        for layer in self.layers:
            layer.keys.zero_()
            layer.values.zero_()

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.layers[0].keys.device

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self._rows.lengths)

    @property
    def length(self) -> int:
        """Number of tokens of the longest row."""
        return self.layers[0].length

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row; not to be changed."""
        return self.layers[0].lengths

    @property
    def is_ragged(self) -> bool:
        """Whether rows have different lengths."""
        return self._rows.is_ragged

    def view(self, start: int, stop: int) -> KVCache:
        """Return a view of the rows from `start` to before `stop`, to append tokens to.

        It shares the buffers and has lengths of its own: `set_lengths` tells this cache how many of
        the tokens to keep. Until then a forward pass that is interrupted has changed nothing here.
        The first rows give the same object each time, to which a CUDA graph may belong.
        """
        lengths = self.lengths[start:stop]
        if start == 0 and stop in self._views:
            self._views[stop]._set_lengths(lengths)
            return self._views[stop]
        part = KVCache.__new__(KVCache)
        part.capacity, part._rows, part._views = self.capacity, _Rows(lengths), {}
        part.layers = [layer.view(start, stop, part._rows) for layer in self.layers]
        part.addresses = None
        part._shared_prefix = self._shared_prefix[start:stop, start:stop]
        if start == 0:
            self._views[stop] = part
        return part

    def set_lengths(self, changes: Mapping[int, int]) -> None:
        """Set the number of tokens of some rows: fewer, or more that a view has appended.

        Args:
            changes: the new lengths by row.

        Raises:
            AGI2Error: if the capacity is exceeded.
        """
        lengths = list(self.lengths)
        for row, length in changes.items():
            if not 0 <= length <= self.capacity:
                raise AGI2Error(
                    f"a row of the cache holds 0 to {self.capacity} tokens, not {length}"
                )
            if length < lengths[row]:
                np.minimum(self._shared_prefix[row], length, out=self._shared_prefix[row])
                np.minimum(self._shared_prefix[:, row], length, out=self._shared_prefix[:, row])
            lengths[row] = length
        self._set_lengths(lengths)

    def _set_lengths(self, lengths: list[int]) -> None:
        self._rows.set(lengths)
        for layer in self.layers:
            layer.added = 0

    def copy_row(self, source: int, target: int) -> None:
        """Replace the tokens of a row by a copy of another row's."""
        length = self.lengths[source]
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]
        self.set_lengths({target: length})
        self._shared_prefix[target] = self._shared_prefix[source]
        self._shared_prefix[:, target] = self._shared_prefix[:, source]
        self._shared_prefix[source, target] = self._shared_prefix[target, source] = length

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """Return a copy (L, 2, H, T, D) of a row's keys and values, from `start` to before `stop`.

        L layers; T = stop - start tokens, which the row must have.
        """
        parts = [
            torch.stack((layer.keys[row, :, start:stop], layer.values[row, :, start:stop]))
            for layer in self.layers
        ]
        return torch.stack(parts)

    def write(self, row: int, start: int, values: torch.Tensor) -> None:
        """Replace a row's tokens from `start` on by T tokens that `read` has returned."""
        stop = start + values.size(3)
        for layer, (keys, others) in zip(self.layers, values, strict=True):
            layer.keys[row, :, start:stop] = keys
            layer.values[row, :, start:stop] = others
        self.set_lengths({row: start})  # rows that shared more with it no longer do
        self.set_lengths({row: stop})

    def grow(self, batch_size: int) -> KVCache:
        """Return a cache of more rows, the first of which have the tokens of this one."""
        cache, count, length = self._empty(batch_size), self.batch_size, self.length
        for source, target in zip(self.layers, cache.layers, strict=True):
            target.keys[:count, :, :length] = source.keys[:, :, :length]
            target.values[:count, :, :length] = source.values[:, :, :length]
        cache._set_lengths(self.lengths + [0] * (batch_size - count))
        cache._shared_prefix[:count, :count] = self._shared_prefix
        return cache

    def select(self, rows: torch.Tensor) -> KVCache:
        """Return a cache whose row i is row `rows[i]` of this one, to reorder beams.

        This cache must not be used afterwards. If the number of rows is unchanged, it is updated in
        place, from the first token on at which a row may differ from its new content: beams share
        most of their tokens.
        """
        order = rows.tolist()
        count = self.batch_size
        if order == list(range(count)):
            return self
        length, lengths = self.length, self.lengths
        chosen = np.array(order)
        shared_prefix = self._shared_prefix[np.ix_(chosen, chosen)]
        for row in set(order):
            copies = np.flatnonzero(chosen == row)
            shared_prefix[np.ix_(copies, copies)] = lengths[row]
        if len(order) == count:
            cache = self
            first = min(int(self._shared_prefix[i, row]) for i, row in enumerate(order) if i != row)
        else:
            cache, first = self._empty(len(order)), 0
        # Indexing by `rows` copies, so source and target may be the same buffers.
        for source, target in zip(self.layers, cache.layers, strict=True):
            target.keys[:, :, first:length] = source.keys[rows, :, first:length]
            target.values[:, :, first:length] = source.values[rows, :, first:length]
            target.cleared[:] = 0
        cache._set_lengths([lengths[row] for row in order])
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
        self.set_lengths({row: min(each, length) for row, each in enumerate(self.lengths)})
