"""Best-fit decreasing bin packing. N items."""

from __future__ import annotations

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack items into as few bins as best-fit decreasing needs (Johnson, 1973).

    Items are packed longest first, each into the bin with the least space that it fits into, or
    else into a new bin. Items of one length are packed together, in O(N + capacity) operations
    after sorting.

    Args:
        lengths: positive signed integers, (N,), at most `capacity`.
        capacity: of each bin.

    Returns:
        The indices of the items, (N,), bin by bin; and the bounds of the bins: the items of bin b
        are those from `bounds[b]` to `bounds[b + 1]`.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths)
    bins = _Bins(capacity)
    bin_of = np.empty(len(lengths), np.int64)
    done = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = done + int(counts[length])
        bin_of[longest_first[done:end]] = bins.place(length, end - done)
        done = end
    order = np.argsort(bin_of, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(bin_of))])


class _Bins:
    """Bins by the space that is left in them.

    Args:
        capacity: of each bin.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        self._length = capacity + 1
        # The bins with space for an item of the current length, the least space last; and those
        # with space for shorter ones only.
        self._fitting: list[tuple[int, np.ndarray]] = []
        self._tight: dict[int, list[np.ndarray]] = {}

    def place(self, length: int, count: int) -> np.ndarray:
        """Place items of a length, which is below that of earlier ones; return their bins, (N,)."""
        for space in range(self._length - 1, length - 1, -1):
            if space in self._tight:
                self._fitting.append((space, np.concatenate(self._tight.pop(space))))
        self._length = length
        parts = []
        while count:
            parts.append(self._fill(length, count))
            count -= len(parts[-1])
        return np.concatenate(parts)

    def _fill(self, length: int, count: int) -> np.ndarray:
        """Place at most `count` items into the bins with the least space; return their bins."""
        space, bins = self._fitting.pop() if self._fitting else (self._capacity, None)
        # After an item, a bin has still less space: it gets all items that fit.
        each = space // length
        needed = -(-count // each)
        if bins is None:
            bins = np.arange(self._count, self._count + needed)
            self._count += needed
        elif len(bins) > needed:
            self._fitting.append((space, bins[needed:]))
        bins = bins[:needed]
        full, rest = divmod(min(count, len(bins) * each), each)
        if full:
            self._tight.setdefault(space - each * length, []).append(bins[:full])
        if rest:
            self._fitting.append((space - rest * length, bins[full:]))
        return np.repeat(bins, each)[: full * each + rest]
