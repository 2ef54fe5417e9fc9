"""The resemblance of documents by all of their shingles (Broder, 1997), a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .dedup import ShingleSampler

MAX_COMPARED = 2**18
"""UTF-8 bytes of a document that is compared, and of the documents that are compared at a time."""

ReadTexts = Callable[[np.ndarray], list[str | None]]
"""Returns the texts of documents by their indices, (N,), in ascending order: of conversations, what
is said; of documents of more than `MAX_COMPARED` bytes, `None`."""


def resemblances(read: ReadTexts, sizes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return what fraction of all their shingles pairs of documents have in common, (P,).

    It is NaN if one of them is not compared. Memory does not grow with the number of pairs.

    Args:
        read: reads texts.
        sizes: number of UTF-8 bytes of each document, (D,).
        a: the first documents of the pairs, (P,).
        b: the second ones.
    """
    found = np.full(len(a), np.nan)
    ends = np.cumsum(sum(np.minimum(sizes[each], MAX_COMPARED, dtype=np.int64) for each in (a, b)))
    first = 0
    while first < len(a):
        limit = MAX_COMPARED + (int(ends[first - 1]) if first else 0)
        last = max(first + 1, int(np.searchsorted(ends, limit, "right")))
        documents, places = np.unique(np.stack([a[first:last], b[first:last]]), return_inverse=True)
        shingles = _distinct_shingles(read(documents))
        for row, (one, other) in enumerate(places.reshape(2, -1).T.tolist(), first):
            found[row] = _resemblance(shingles[one], shingles[other])
        first = last
    return found


def _distinct_shingles(texts: Sequence[str | None]) -> list[np.ndarray | None]:
    """Return the hashes of the different shingles of each text, in ascending order."""
    known = [text for text in texts if text is not None]
    if not known:
        return [None] * len(texts)
    characters = np.fromiter(map(len, known), np.int64, len(known))
    sampler = ShingleSampler(is_complete=True)
    sampler.add("".join(known).encode("utf-8", "replace"), characters, np.ones(len(known), bool))
    sample = sampler.finish()
    begins = np.searchsorted(sample.documents, np.arange(1, len(known)))
    own = iter(np.split(sample.hashes, begins))
    return [None if text is None else np.unique(next(own)) for text in texts]


def _resemblance(one: np.ndarray | None, other: np.ndarray | None) -> float:
    if one is None or other is None:
        return float("nan")
    either = len(np.union1d(one, other))
    return (len(one) + len(other) - either) / max(1, either)
