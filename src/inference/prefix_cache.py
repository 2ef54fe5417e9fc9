"""Prefix cache: keys and values of blocks of tokens, for later sequences that begin alike.

A block is known by its tokens and by the block before it, so that a prefix that sequences share,
such as a system message, is stored once. The idea is that of vLLM's automatic prefix caching.

L layers, H heads, D head size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch

from ..arguments import NonNegativeInt, PositiveInt, checked

_ROOT = 0
"""In place of the number of the block before the first."""


class _Block(NamedTuple):
    number: int
    """Never used again, so that a block is not taken for the parent of another one's children."""
    values: torch.Tensor


class PrefixCache:
    """Blocks of keys and values, of which the least recently used are evicted.

    It is not thread-safe: one engine uses it.

    Args:
        max_bytes: maximum size of all keys and values together.
        block: tokens of a block; only complete blocks are stored.
    """

    @checked
    def __init__(self, max_bytes: NonNegativeInt, block: PositiveInt = 32) -> None:
        self.max_bytes = max_bytes
        self.block = block
        self.bytes = 0
        """Size of the keys and values that are stored."""
        # By the number of the block before and the tokens, which are compared, not their hash
        # alone. The least recently used first; every block after those that continue it, so that
        # the first is never another one's parent.
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], _Block] = OrderedDict()
        self._count = _ROOT

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def match(self, tokens: SequenceOf[int]) -> list[torch.Tensor]:
        """Return the stored blocks that tokens begin with, each (L, 2, H, block, D).

        They must not be changed.
        """
        found = self._find(tokens)
        self._touch([key for key, _ in found])
        return [block.values for _, block in found]

    def insert(self, tokens: SequenceOf[int], read: Callable[[int, int], torch.Tensor]) -> None:
        """Store the complete blocks of tokens that are not stored yet, as far as they fit.

        Args:
            tokens: from the beginning of a row of the KV cache.
            read: returns a copy (L, 2, H, block, D) of the keys and values of the tokens from a
                place to before another.
        """
        found = self._find(tokens)
        keys = [key for key, _ in found]
        self._touch(keys)  # so that none of them is evicted for those that continue it
        parent = found[-1][1].number if found else _ROOT
        for start, piece in self._pieces(tokens, len(found)):
            values = read(start, start + self.block)
            if (len(keys) + 1) * values.nbytes > self.max_bytes:
                break
            while self.bytes + values.nbytes > self.max_bytes:
                self.bytes -= self._blocks.popitem(last=False)[1].values.nbytes
            self._count += 1
            keys.append((parent, piece))
            parent = self._count
            self._blocks[keys[-1]] = _Block(parent, values)
            self.bytes += values.nbytes
        self._touch(keys)

    def _find(self, tokens: SequenceOf[int]) -> list[tuple[tuple[int, tuple[int, ...]], _Block]]:
        """Return the stored blocks that tokens begin with, and their keys."""
        found: list[tuple[tuple[int, tuple[int, ...]], _Block]] = []
        parent = _ROOT
        for _, piece in self._pieces(tokens, 0):
            block = self._blocks.get((parent, piece))
            if block is None:
                break
            found.append(((parent, piece), block))
            parent = block.number
        return found

    def _pieces(self, tokens: SequenceOf[int], first: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the place and the tokens of each complete block, from number `first` on."""
        for start in range(first * self.block, len(tokens) - self.block + 1, self.block):
            yield start, tuple(tokens[start : start + self.block])

    def _touch(self, keys: SequenceOf[tuple[int, tuple[int, ...]]]) -> None:
        """Mark blocks, each the one before the next, as the most recently used."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)
