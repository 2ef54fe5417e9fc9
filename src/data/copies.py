"""Copies and near copies among the documents of a corpus: found, reported, removed if asked for."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..utils import log, plural
from .dedup import Shingles, shared_shingles
from .document_arrays import index_type
from .resemblance import ReadTexts, resemblances
from .scan import Scan
from .sketches import near_pairs

Pairs = tuple[np.ndarray, np.ndarray]
"""The indices of the documents of pairs, (P,) each."""
# A document is a near copy of another if they have this fraction of all their shingles in common.
_NEAR_COPY = 0.8


def find_copies(
    scan: Scan,
    chosen: np.ndarray,
    sketches: np.ndarray | None,
    read: ReadTexts | None = None,
) -> tuple[np.ndarray, Pairs]:
    """Return which documents of a mask, (D,), are no copies of others, and pairs of near copies.

    Args:
        scan: the scan of a corpus.
        chosen: the mask.
        sketches: the sketches of its documents.
        read: reads the texts of which sketches do not show whether they are near copies.
    """
    selected = scan if chosen.all() else scan.select(chosen)
    is_first = np.zeros(len(scan), bool)
    is_first[chosen] = selected.is_first
    firsts = np.arange(len(scan), dtype=index_type(len(scan)))[is_first]
    if sketches is None or scan.shingles.rate == 1:
        a, b = _near_pairs_exact(selected.texts.shingles, len(firsts))
        return is_first, (firsts[a], firsts[b])
    measure = None if read is None else partial(resemblances, read, scan.sizes)
    return is_first, near_pairs(sketches, firsts, _NEAR_COPY, measure)


def remove_copies(
    scan: Scan, is_train: np.ndarray, is_first: np.ndarray, pairs: Pairs, dedup: bool
) -> np.ndarray:
    """Return which documents to remove, (D,): copies and near copies of earlier ones; log them."""
    a, b = pairs
    both = is_train[a] & is_train[b]
    copies, near = is_train & ~is_first, copies_of_kept(a[both], b[both], len(scan))
    if not (copies | near).any():
        return near
    found = f"{plural(int(copies.sum()), 'copy', 'copies')} and "
    found += f"{plural(int(near.sum()), 'near copy', 'near copies')} of other documents"
    if not dedup:
        log.info("the text has %s: dedup = true removes them", found)
        return np.zeros(len(scan), bool)
    removed = copies | near
    share = scan.characters[removed].sum() / scan.characters[is_train].sum()
    log.info("removed %s, %.1f %% of the text", found, 100 * share)
    return removed


def _near_pairs_exact(sample: Shingles, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of near copies by all of their shingles.

    Args:
        sample: all shingles of distinct documents.
        count: number of documents.

    Returns:
        The indices of the documents of each pair, as `sketches.near_pairs` returns them.
    """
    a, b, shared, of_a, of_b = shared_shingles(sample, count)
    is_near = shared >= _NEAR_COPY * (of_a + of_b - shared)
    return a[is_near], b[is_near]


def copies_of_kept(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Return which documents, (count,), are copies of one before them that is not itself one.

    Args:
        a: the first documents of pairs of copies, (P,), in ascending order.
        b: the second documents.
        count: number of documents.
    """
    copies = np.zeros(count, bool)
    for first, second in zip(a.tolist(), b.tolist(), strict=True):
        # Pairs are in the order of their first document, so that its own pairs have been seen.
        copies[second] |= not copies[first]
    return copies
