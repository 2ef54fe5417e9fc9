"""Keeps the KV cache of a model's last runner for the next one, on a GPU.

CUDA graphs belong to a KV cache. A runner that takes a kept one has them from its first step on:
capturing them takes as long as dozens of steps. A model has at most one that no runner uses.
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch

from ..cuda_utils import available_memory
from ..model import GPT2Model
from ..nn.decode_backend import weight_addresses
from ..nn.kv_cache import KVCache

MEMORY_FRACTION = 16
"""A cache is kept if it takes at most this part of the memory: others may need the rest."""


class _Kept(NamedTuple):
    cache: KVCache
    runner: ReferenceType[object]
    weights: list[tuple[int, torch.dtype]]


_LOCK = threading.Lock()
_kept: WeakKeyDictionary[GPT2Model, _Kept] = WeakKeyDictionary()


def keep(model: GPT2Model, cache: KVCache, runner: object) -> None:
    """Keep the KV cache that a runner of a model uses until another one is kept.

    Args:
        model: with the weights that its CUDA graphs use.
        cache: of the model. One that takes much memory is not kept, but the earlier one neither.
        runner: while it exists, no other gets the cache.
    """
    keys = cache.layers[0].keys
    size = 2 * len(cache.layers) * keys.numel() * keys.element_size()
    with _LOCK:
        _kept.pop(model, None)
        if size * MEMORY_FRACTION <= available_memory(cache.device):
            _kept[model] = _Kept(cache, ref(runner), weight_addresses(model))


def take(model: GPT2Model, rows: int) -> KVCache | None:
    """Return the kept cache of a model, without tokens, or None.

    None if it has another number of rows, a runner uses it, or the weights are no longer the same
    tensors. One that nothing uses is freed then.
    """
    with _LOCK:
        kept = _kept.get(model)
        if kept is None or kept.runner() is not None:
            return None
        del _kept[model]
    if kept.cache.batch_size != rows or kept.weights != weight_addresses(model):
        return None
    kept.cache.reset()
    return kept.cache
