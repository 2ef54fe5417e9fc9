"""Chunks: tokens to compute in rows of the KV cache, divided into forward passes. T tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..nn.kv_cache import KVCache

RECORDED_TOKENS = 64
"""Tokens of a prompt whose logits are recorded at a time: it limits the memory."""
PADDING = 16
"""Tokens of padding that take a CPU about as long as one more forward pass."""


class Chunk(NamedTuple):
    """Tokens to compute in a row of the KV cache, behind the first `offset` that it holds."""

    row: int
    offset: int
    tokens: list[int]
    record: Callable[[int, torch.Tensor], None] | None = None
    """Called with the place of the first of T of the tokens and their logits (T, V), if given."""


def padded(chunks: Sequence[Chunk], first: int, stop: int, width: int) -> list[list[int]]:
    """Return the tokens (B, T) of rows `first` to before `stop`, zeros where a chunk has none."""
    if width == 1 and len(chunks) == stop - first:
        return [chunk.tokens for chunk in chunks]
    rows = [[0] * width for _ in range(first, stop)]
    for chunk in chunks:
        rows[chunk.row - first][: len(chunk.tokens)] = chunk.tokens
    return rows


def record_logits(
    chunks: Sequence[Chunk],
    hidden: torch.Tensor,
    first: int,
    logits: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Record the logits of those chunks that ask for it.

    Args:
        chunks: computed together.
        hidden: final hidden states of their tokens, (B, T, C), padded on the right.
        first: the row of the cache that is the first of these.
        logits: the head: (T, C) to (T, V).
    """
    for row, offset, tokens, record in chunks:
        if record is not None:
            parts = hidden[row - first, : len(tokens)].split(RECORDED_TOKENS)
            for index, part in enumerate(parts):
                record(offset + index * RECORDED_TOKENS, logits(part))


def grouped(chunks: Sequence[Chunk], cache: KVCache) -> Iterator[list[Chunk]]:
    """Divide chunks into forward passes, padded on the right.

    One if there is little padding; otherwise one of the decode steps, others of adjacent rows.
    """
    if _is_dense(chunks, cache):
        yield list(chunks)
        return
    if single := [chunk for chunk in chunks if len(chunk.tokens) == 1]:
        yield single
    group: list[Chunk] = []
    for chunk in chunks:
        if len(chunk.tokens) > 1:
            if group and not _is_dense([*group, chunk], cache):
                yield group
                group = []
            group.append(chunk)
    if group:
        yield group


def _is_dense(chunks: Sequence[Chunk], cache: KVCache) -> bool:
    """Return whether a forward pass of these rows, and those between, has little padding.

    At most half, on a CPU at most `PADDING` tokens, too; it must fit behind every row's tokens.
    """
    first, last = chunks[0].row, chunks[-1].row
    width = max(len(chunk.tokens) for chunk in chunks)
    needed = sum(len(chunk.tokens) for chunk in chunks)
    padding = (last - first + 1) * width - needed
    if padding > needed or (padding > PADDING and cache.device.type == "cpu"):
        return False
    return max(cache.lengths[first : last + 1]) + width <= cache.capacity
