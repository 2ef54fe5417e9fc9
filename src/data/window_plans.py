"""What the windows of an epoch contain: a stream of tokens, documents, or a mixture of sources.

R rows, P pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .batches import FeistelPermutation
from .conversation_windows import ConversationRow
from .packing import best_fit
from .shards import ShardedTokens
from .windows import Stream

Row = list[tuple[int, int]]
"""The pieces of the text in a window: the index of the first input, and the number of inputs.

As many targets follow, one token later.
"""


class Plan(Protocol):
    """The windows of an epoch."""

    def __len__(self) -> int:
        """Return the number of windows."""

    @property
    def longest(self) -> int:
        """Number of inputs of the longest window."""

    @property
    def targets(self) -> float:
        """Number of targets of all windows, also of those that do not count."""

    def attention_length(self, is_masked: bool) -> float:
        """Return the mean length of the sequence in which a target's input attends."""

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return the offset of an epoch."""

    def rows(self, order: torch.Tensor, offset: int) -> Sequence[Row | ConversationRow]:
        """Return windows of an epoch, by their indices (R,)."""


@dataclass(frozen=True)
class DocumentRange:
    """Consecutive documents of a text, which are followed by an end-of-text token each.

    A document's inputs begin with the end-of-text token before it; its last target is the one
    after it, except at the end of the text.
    """

    tokens: ShardedTokens
    documents: range

    @property
    def first(self) -> int:
        """Index of the first input."""
        return self._start_of(self.documents.start) - 1

    @property
    def last(self) -> int:
        """Index of the last target."""
        return self._start_of(self.documents.stop) - 1

    def _start_of(self, document: int) -> int:
        starts = self.tokens.document_starts
        return int(starts[document]) if document < len(starts) else len(self.tokens)

    def pieces(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the documents into pieces of at most `width` inputs.

        Returns:
            The index of the first input of each piece, int64, and the number of inputs, int32.
        """
        starts = self.tokens.document_starts[self.documents.start : self.documents.stop]
        bounds = np.append(starts.astype(np.int64) - 1, self.last)
        lengths = np.diff(bounds)
        counts = -(-lengths // width)
        before = np.cumsum(counts) - counts
        offsets = (np.arange(counts.sum()) - np.repeat(before, counts)) * width
        remaining = np.repeat(lengths, counts) - offsets
        firsts = np.repeat(bounds[:-1], counts) + offsets
        return firsts, np.minimum(remaining, width).astype(np.int32)


class StreamPlan:
    """Windows of the text as one stream of tokens, cut anywhere.

    Args:
        text: the text.
        width: inputs of a window.
    """

    def __init__(self, text: DocumentRange, width: int) -> None:
        self._text, self._first = text, text.first
        tokens = text.last - text.first + 1
        self.longest = min(width, tokens - 1)
        self._stream = Stream(tokens, self.longest + 1, self.longest) if tokens > 1 else None

    def __len__(self) -> int:
        return 0 if self._stream is None else len(self._stream)

    @property
    def targets(self) -> int:
        """Number of targets of all windows."""
        return len(self) * self.longest

    def attention_length(self, is_masked: bool) -> float:
        """Return the length of a window, or the mean length of a target's document in it.

        The latter is rounded up: as if each document were at the start of a window.
        """
        if is_masked:
            return DocumentPlan(self._text, self.longest).attention_length(True)
        return self.longest

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Draw the start of the second window."""
        assert self._stream is not None
        return self._stream.draw_offset(generator)

    def rows(self, order: torch.Tensor, offset: int) -> list[Row]:
        """Return windows of an epoch, by their indices (R,)."""
        assert self._stream is not None
        starts = self._stream.starts(order, offset).tolist()
        return [[(self._first + start, self.longest)] for start in starts]


class DocumentPlan:
    """Windows of documents, the same in every epoch: 12 bytes per piece, and 8 per packed window.

    A document longer than a window is cut into pieces, all but the last as long as a window.

    Args:
        text: the text.
        width: inputs of a window.
        is_packed: whether a window contains all pieces that best-fit decreasing packs into it
            (Ding et al., 2024), or one.
    """

    def __init__(self, text: DocumentRange, width: int, is_packed: bool = False) -> None:
        self._firsts, self._lengths = text.pieces(width)
        self._bounds: np.ndarray | None = None
        """The pieces of window i are those from `bounds[i]` to `bounds[i + 1]`."""
        if is_packed:
            order, self._bounds = best_fit(self._lengths, width)
            self._firsts, self._lengths = self._firsts[order], self._lengths[order]

    def __len__(self) -> int:
        return len(self._firsts) if self._bounds is None else len(self._bounds) - 1

    def _window_lengths(self) -> np.ndarray:
        if self._bounds is None:
            return self._lengths
        return np.add.reduceat(self._lengths, self._bounds[:-1], dtype=np.int64)

    @property
    def longest(self) -> int:
        """Number of inputs of the longest window."""
        return int(self._window_lengths().max(initial=0))

    @property
    def targets(self) -> int:
        """Number of targets of all windows."""
        return int(self._lengths.sum(dtype=np.int64))

    def attention_length(self, is_masked: bool) -> float:
        """Return the mean length of the piece of a target, or of all pieces in its window."""
        lengths = (self._lengths if is_masked else self._window_lengths()).astype(np.float64)
        return float((lengths**2).sum() / max(lengths.sum(), 1))

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return 0: the windows are the same in every epoch."""
        return 0

    def rows(self, order: torch.Tensor, offset: int) -> list[Row]:
        """Return windows, by their indices (R,)."""
        rows = []
        for index in order.tolist():
            pieces = slice(index, index + 1)
            if self._bounds is not None:
                pieces = slice(self._bounds[index], self._bounds[index + 1])
            rows.append(
                list(
                    zip(self._firsts[pieces].tolist(), self._lengths[pieces].tolist(), strict=True)
                )
            )
        return rows


class MixturePlan:
    """A mixture of sources, each of which has a share of the targets of an epoch.

    An epoch has about as many targets as the sources together, or as `total` says. A source
    contributes the same number of windows to each epoch, and at least one; epoch after epoch, it
    continues through its own windows. When all were used, they are used again in another order. So
    the windows of an epoch are a pure function of its number.

    Args:
        plans: the windows of each source.
        weights: the sources' shares of the targets, in any unit.
        seed: seed of the orders.
        total: number of targets of an epoch, approximately.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        weights: Sequence[float],
        seed: int,
        total: float | None = None,
    ) -> None:
        self.plans, self._seed = plans, seed
        self._mean_targets = [plan.targets / len(plan) for plan in plans]
        total = sum(plan.targets for plan in plans) if total is None else total
        weight = sum(weights)
        self.counts = [
            max(1, round(total * (each / weight) / mean))
            for each, mean in zip(weights, self._mean_targets, strict=True)
        ]
        """Windows of each source in an epoch."""
        self._bounds = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def longest(self) -> int:
        """Number of inputs of the longest window."""
        return max(plan.longest for plan in self.plans)

    @property
    def shares(self) -> list[float]:
        """Each source's share of the targets, which sum to 1."""
        targets = [n * mean for n, mean in zip(self.counts, self._mean_targets, strict=True)]
        return [each / sum(targets) for each in targets]

    @property
    def repeats(self) -> list[float]:
        """How many times an epoch contains each source."""
        return [n / len(plan) for n, plan in zip(self.counts, self.plans, strict=True)]

    @property
    def targets(self) -> float:
        """Mean number of targets of all windows of an epoch."""
        return sum(n * mean for n, mean in zip(self.counts, self._mean_targets, strict=True))

    def attention_length(self, is_masked: bool) -> float:
        """Return the mean length of the sequence in which a target's input attends."""
        lengths = [plan.attention_length(is_masked) for plan in self.plans]
        return sum(a * b for a, b in zip(self.shares, lengths, strict=True))

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return the number of the epoch: what the sources' windows of it follow from."""
        return epoch

    def rows(self, order: torch.Tensor, offset: int) -> list[Row | ConversationRow]:
        """Return windows of an epoch, by their indices (R,)."""
        indices = order.numpy()
        sources = np.searchsorted(self._bounds, indices, side="right") - 1
        rows: list[Row | ConversationRow] = [[]] * len(indices)
        for source in np.unique(sources).tolist():
            places = np.flatnonzero(sources == source)
            used = offset * self.counts[source] + indices[places] - self._bounds[source]
            for place, row in zip(places.tolist(), self._rows_of(source, used), strict=True):
                rows[place] = row
        return rows

    def _rows_of(self, source: int, used: np.ndarray) -> list[Row | ConversationRow]:
        """Return windows of a source, by their indices (N,) over all of its own epochs."""
        plan = self.plans[source]
        epochs, positions = np.divmod(used, len(plan))
        rows: list[Row | ConversationRow] = [[]] * len(used)
        for epoch in np.unique(epochs).tolist():
            places = np.flatnonzero(epochs == epoch)
            seed = (self._seed * 1_000_003 + epoch) * 1_000_003 + source + 1
            generator = torch.Generator("cpu").manual_seed(seed % 2**63)
            offset = plan.draw_offset(epoch, generator)
            order = FeistelPermutation(len(plan), generator).at(positions[places])
            for place, row in zip(places.tolist(), plan.rows(order, offset), strict=True):
                rows[place] = row
        return rows
