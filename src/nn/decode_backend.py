"""Decode backends: what computes the new tokens of a KV cache.

The interface, and `EagerBackend`; `inference.prepare` chooses one.

B batch (rows), T new tokens, S all tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from .kv_cache import KVCache


class DecodeBackend(Protocol):
    """Computes new tokens in place of the model's blocks, or a decode step in place of the model.

    Implementations: `EagerBackend`, `kernel_backend.KernelBackend` (compiled CPU kernels) and
    `inference.cuda_graph.GraphedBackend` (CUDA graphs).
    """

    batch_invariant: bool = False
    """Whether a row's output is bit for bit the same whatever other rows and tokens it is computed
    with."""
    keeps_caches: bool = False
    """Whether it prepares a KV cache, which takes time: one is worth keeping for another use."""
    runs_ahead: bool = False
    """Whether `decode` returns before a GPU has computed the step, and takes tokens that are
    computed before it: the next step can then be started before the tokens are read."""

    def __call__(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: KVCache
    ) -> torch.Tensor | None:
        """Return the blocks' output (B, T, C), or None if the blocks themselves must compute it.

        Args:
            x: embeddings of the new tokens, (B, T, C); may be overwritten.
            attention_mask: (B or 1, S), true for text and false for padding; None without padding.
            cache: the new keys and values are appended to it, in each row after its own tokens.
        """
        return None

    def decode(
        self, tokens: Sequence[int] | torch.Tensor, cache: KVCache, longest: int
    ) -> torch.Tensor | None:
        """Return the logits (B, V or more) after one new token of each row, or None.

        None: the model itself must compute them. There may be more columns than tokens in the
        vocabulary, to be dropped.

        Args:
            tokens: B token ids; if it `runs_ahead`, also a tensor of the first of them, which are
                those that matter.
            cache: the new keys and values are appended to it, in each row after its own tokens.
            longest: number of earlier tokens of the longest row whose logits are needed. Those of
                longer rows have no meaning.
        """
        return None

    def rows_of_step(self, first: int, stop: int) -> tuple[int, int]:
        """Return the rows, from first to before stop, that a decode step of these should compute.

        It may be more rows, whose tokens are then dropped, and more than the KV cache has.
        """
        return first, stop


class EagerBackend(DecodeBackend):
    """The model's blocks, in PyTorch."""


def weight_addresses(module: nn.Module) -> list[tuple[int, torch.dtype]]:
    """Return the addresses and dtypes of a module's weights: a CUDA graph reads these."""
    return [(each.data_ptr(), each.dtype) for each in (*module.parameters(), *module.buffers())]


@contextlib.contextmanager
def watching_weights(model: Any) -> Iterator[None]:
    """Let a `GPT2Model` decode by itself if the weights that its backend reads are gone then."""
    if isinstance(model.decode_backend, EagerBackend):
        yield
        return
    before = weight_addresses(model)
    yield
    if weight_addresses(model) != before:
        model.use_decode_backend(EagerBackend())
