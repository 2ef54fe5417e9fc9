"""`SplitPlan`: which part of each document is training text, and which is held out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, repeat

import numpy as np

from .dedup import Shingles

Span = tuple[int, int, bool]
"""First character, character after the last, and whether the span is held out."""


@dataclass(frozen=True)
class SplitPlan:
    """Which part of each document is training text, and which is held out."""

    characters: np.ndarray
    """Number of characters of each document, (D,)."""
    cuts: np.ndarray
    """The offset, (D,), from which each document is held out."""
    exceptions: dict[int, list[Span]] = field(default_factory=dict)
    """The spans of documents that are split at several places."""
    removed: np.ndarray | None = None
    """The mask, (D,), of the documents of which nothing is used, if there are any."""

    def spans(self, document: int) -> list[Span]:
        """Return the spans of a document that are not empty, in order."""
        return next(self.spans_of(document, document + 1))

    def spans_of(self, first: int, last: int) -> Iterator[list[Span]]:
        """Yield the spans of each of the documents from `first` to before `last`."""
        cuts, ends = self.cuts[first:last].tolist(), self.characters[first:last].tolist()
        removed = self.removed[first:last].tolist() if self.removed is not None else repeat(False)
        for document, cut, end, is_removed in zip(
            range(first, last), cuts, ends, removed, strict=False
        ):
            if is_removed or not end:
                yield []
            elif document in self.exceptions:
                yield self.exceptions[document]
            elif 0 < cut < end:
                yield [(0, cut, False), (cut, end, True)]
            else:
                yield [(0, end, cut <= 0)]

    def part(self, first: int, last: int) -> SplitPlan:
        """Return the plan of the documents from `first` to before `last`."""
        exceptions = {
            document - first: spans
            for document, spans in self.exceptions.items()
            if first <= document < last
        }
        removed = None if self.removed is None else self.removed[first:last]
        return SplitPlan(self.characters[first:last], self.cuts[first:last], exceptions, removed)

    @property
    def holds_out(self) -> bool:
        """Whether any text is held out."""
        return bool((self.cuts < self.characters).any())

    @property
    def held_out_characters(self) -> int:
        """Number of characters that are held out."""
        sizes = np.maximum(0, self.characters - self.cuts)
        for document, spans in self.exceptions.items():
            sizes[document] = sum(end - start for start, end, held_out in spans if held_out)
        return int(sizes.sum() if self.removed is None else sizes[~self.removed].sum())

    @property
    def trains(self) -> bool:
        """Whether any text is training text."""
        is_training = (self.cuts > 0) & (self.characters > 0)
        if self.removed is not None:
            is_training &= ~self.removed
        return bool(is_training.any())

    def count_training_documents(self, sources: Sequence[int]) -> list[int]:
        """Count the training documents of each source; one that is split in several counts as such.

        Args:
            sources: number of documents of each source, in order.
        """
        is_counted = self.cuts > 0
        if self.removed is not None:
            is_counted &= ~self.removed
        bounds = [0, *accumulate(sources)]
        counts = [int(is_counted[first:last].sum()) for first, last in pairwise(bounds)]
        for document, spans in self.exceptions.items():
            if document < bounds[-1] and (self.removed is None or not self.removed[document]):
                own = sum(not is_held_out for _, _, is_held_out in spans)
                counts[bisect_right(bounds, document) - 1] += own - int(is_counted[document])
        return counts

    def count_parts(self) -> tuple[int, int]:
        """Count the parts that are training text, and held out, of documents that are split."""
        is_cut = (self.cuts > 0) & (self.cuts < self.characters)
        if self.removed is not None:
            is_cut &= ~self.removed
        is_cut[list(self.exceptions)] = False
        spans = [span for each in self.exceptions.values() for span in each]
        held_out = sum(is_held_out for *_, is_held_out in spans)
        cut = int(is_cut.sum())
        return cut + len(spans) - held_out, cut + held_out

    def sides(self, shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Return which shingles are in training text and which in held-out text, (N,) each."""
        cuts = self.cuts[shingles.documents]
        train, held_out = shingles.ends <= cuts, shingles.starts >= cuts
        for document, spans in self.exceptions.items():
            first, last = np.searchsorted(shingles.documents, [document, document + 1])
            starts, ends = shingles.starts[first:last], shingles.ends[first:last]
            for side, is_side in ((train, False), (held_out, True)):
                side[first:last] = False
                for start, end, is_held_out in spans:
                    if is_held_out == is_side:
                        side[first:last] |= (starts >= start) & (ends <= end)
        return train, held_out
