"""Arrays with an element for each document of a corpus: as small as millions of them need. D, N."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ROWS = 2**18  # of a part, if that does not make too many parts
_MAX_PARTS = 64


def index_type(count: int) -> type[np.signedinteger]:
    """Return the smaller type of indices of so many documents."""
    return np.int32 if count < 2**31 else np.int64


def compact(values: np.ndarray) -> np.ndarray:
    """Return integers from 0, (D,), in the smaller type: of few documents one is above 2^31."""
    return values.astype(index_type(int(values.max(initial=0))), copy=False)


def ranks_of(chosen: np.ndarray) -> np.ndarray:
    """Return the rank of each element of a mask, (D,), among those that are chosen."""
    ranks = np.cumsum(chosen, dtype=index_type(len(chosen)))
    ranks -= 1
    return ranks


def sums_of(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return the sum of the values, (D,), in each group, (count,); groups is the one of each."""
    sums = np.zeros(count, np.int64)
    np.add.at(sums, groups, values)
    return sums


def parts_by_value(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the indices of values, in parts: equal values are in the same part.

    Args:
        values: hashes, uniformly distributed, (N,) uint32.

    Yields:
        Indices in ascending order. The parts are in the order of the values, each of 1/64 of them;
        of few values there are fewer parts.
    """
    count = min(_MAX_PARTS, 1 << (len(values) // _ROWS).bit_length())
    step = 2**32 // count
    for first in range(0, 2**32, step):
        is_own = values >= np.uint32(first)
        is_own &= values <= np.uint32(first + step - 1)
        yield np.flatnonzero(is_own)
