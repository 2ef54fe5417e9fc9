"""Find near copies among any number of documents: MinHash sketches, compared band by band (LSH).

A sketch has the smallest hash of a document's shingles in each of `BINS` ranges of the hash (Li and
others, 2012: one permutation hashing). Two documents have equal minima in about as many bins as
they have shingles in common (Broder, 1997). Only documents that agree in all bins of a band are
compared, which near copies do in at least one. Of each minimum a sketch keeps 4 bits (Li and König,
2010: b-bit minwise hashing): of twice as many bins they say more than 8 bits would, in the same
space. A sketch is `SKETCH.itemsize` bytes on disk.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..nn import shingle_library
from .document_arrays import parts_by_value

BINS = 128
_BANDS, _ROWS = 16, 5  # documents with 0.8 in common agree in a band with a probability of 0.998
SKETCH = np.dtype([("bands", "<u4", _BANDS), ("minima", "u1", BINS // 2)])
"""A hash of the minima of each band, and a code of each minimum, two in a byte: 1 to `_CODES`, or 0
where there are no shingles."""
_CODES = 15
_ERROR = 0.035
"""Standard error of the fraction in common that sketches show, where it is 0.8."""
_SHIFT = np.uint64(64 - BINS.bit_length() + 1)
_EMPTY = np.uint64(2**64 - 1)
_READ = 2**16  # sketches that are read at a time, in order
# Pairs that are compared at a time: for each, 64 KB around two sketches may come into memory.
_COMPARED = 2**8


class Sketcher:
    """Sketches a stream of documents.

    Args:
        sink: called with the bytes of complete sketches, in the order of the documents.
    """

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        # The first row is of no document.
        self._minima, self._skipped = np.full((1, BINS), _EMPTY), 1

    def begin(self, count: int) -> np.ndarray:
        """Begin so many documents.

        Returns:
            The smallest hash in each range of the shingles of the last document before, and of the
            new ones, (1 + count, BINS) uint64, which is to be updated.
        """
        self._deliver(self._minima[:-1])
        new = np.full((count, BINS), _EMPTY)
        self._minima = np.concatenate([self._minima[-1:], new])
        return self._minima

    def finish(self) -> None:
        """Deliver all sketches that were not."""
        self._deliver(self._minima)

    def _deliver(self, minima: np.ndarray) -> None:
        if len(minima):
            make = _sketches if shingle_library.LIBRARY is None else shingle_library.sketches
            self._sink(make(minima[self._skipped :], SKETCH).tobytes())
            self._skipped = 0


def update_minima(minima: np.ndarray, hashes: np.ndarray, documents: np.ndarray) -> None:
    """Update the smallest hashes, (D, BINS), by shingles: hashes and documents, (N,) each."""
    cells = documents * BINS + (hashes >> _SHIFT).view(np.int64)
    np.minimum.at(minima.reshape(-1), cells, hashes)


def _sketches(minima: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the sketches, (D,), for the smallest hashes of each range, (D, BINS)."""
    is_empty = minima == _EMPTY
    sketches = np.zeros(len(minima), dtype)
    codes = minima.astype(np.uint16).astype(np.uint32)  # the lowest bits
    codes = ((codes * np.uint32(_CODES) >> np.uint32(16)) + np.uint32(1)).astype(np.uint8)
    codes[is_empty] = 0
    sketches["minima"] = codes[:, ::2] << 4 | codes[:, 1::2]
    rows = minima[:, : _BANDS * _ROWS].reshape(len(minima), _BANDS, _ROWS)
    hashes = np.zeros(rows.shape[:2], np.uint64)
    for column in range(_ROWS):
        hashes = (hashes ^ rows[:, :, column]) * np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(32)
    bands = np.maximum(hashes >> np.uint64(32), np.uint64(1))
    has_none = (rows == _EMPTY).all(2)
    sketches["bands"] = np.where(has_none, np.uint64(0), bands)
    return sketches


def open_sketches(path: Path) -> np.ndarray:
    """Return the sketches in a file as a memory map."""
    if not path.stat().st_size:
        return np.empty(0, SKETCH)
    return np.memmap(path, SKETCH, "r")


Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns what fraction of all their shingles pairs of documents have in common, (P,); NaN if that
is not known. The arguments are the indices of the documents of each, (P,)."""


def near_pairs(
    sketches: np.ndarray,
    documents: np.ndarray,
    threshold: float,
    measure: Measure | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of near copies; of many copies of a document, each is in a pair with another.

    Time is O(D log D). Memory is 8 bytes a document, and 32 a pair; the sketches stay on disk.

    Args:
        sketches: the sketches of a corpus' documents.
        documents: indices of the documents to compare, (D,) int32 or int64, in ascending order.
        threshold: fraction of all their shingles that near copies have in common.
        measure: measures that of the pairs of which the sketches do not show it. Without it, of
            documents with exactly this in common, five of six are found, and with 0.05 less, one of
            three; with it, 39 of 40, and none.

    Returns:
        The indices of the documents of each pair, (P,) each, without repeats; the first ones are
        in ascending order, and each is before its second one.
    """
    least = threshold - _ERROR
    limits = (least, least) if measure is None else (least - _ERROR, threshold + 3 * _ERROR)
    keys = [np.empty(0, np.int64)]
    for band in range(_BANDS):
        column = _band(sketches, documents, band)
        for rows in parts_by_value(column):
            keys += _pairs_of_band(sketches, documents, column, rows, limits)
        keys = [np.unique(np.concatenate(keys))]
    count = max(1, len(sketches))
    a, b = keys[0] // count, keys[0] % count
    if measure is None:
        return a, b
    shown = _in_common(sketches, a, b)
    is_near = shown >= least
    unsure = np.flatnonzero(shown < limits[1])
    measured = measure(a[unsure], b[unsure])
    is_known = ~np.isnan(measured)
    is_near[unsure[is_known]] = measured[is_known] >= threshold
    return a[is_near], b[is_near]


def _band(sketches: np.ndarray, documents: np.ndarray, band: int) -> np.ndarray:
    column = np.empty(len(documents), np.uint32)
    for at in range(0, len(documents), _READ):
        column[at : at + _READ] = sketches["bands"][documents[at : at + _READ], band]
        _release(sketches)
    return column


def _release(sketches: np.ndarray) -> None:
    """Release the memory of what was read of a memory map, which else counts as this process's."""
    mapped, advice = getattr(sketches, "_mmap", None), getattr(mmap, "MADV_DONTNEED", None)
    if mapped is not None and advice is not None:
        mapped.madvise(advice)


def _pairs_of_band(
    sketches: np.ndarray,
    documents: np.ndarray,
    column: np.ndarray,
    rows: np.ndarray,
    limits: tuple[float, float],
) -> list[np.ndarray]:
    """Return likely near copies among documents with the same hash of a band, as `a * D + b`.

    Each is compared with the first of these documents and, if that is no certain near copy, with
    the one before: linear, since all pairs would be quadratic.

    Args:
        sketches: the sketches of a corpus' documents.
        documents: indices of the documents to compare, (D,).
        column: the hashes of their bands, (D,).
        rows: the indices in both of the documents to compare now, (R,), in ascending order.
        limits: the fractions in common, as sketches show them, from which documents are likely near
            copies, and from which they are certain ones.
    """
    order = rows[np.argsort(column[rows], kind="stable")]
    order = order[np.searchsorted(column[order], 1) :]
    is_same = column[order[1:]] == column[order[:-1]]
    begins = np.concatenate([[0], np.flatnonzero(~is_same) + 1])
    repeats = np.flatnonzero(is_same) + 1
    firsts = documents[order[begins[np.searchsorted(begins, repeats, "right") - 1]]]
    before, after = documents[order[repeats - 1]], documents[order[repeats]]
    shown = _in_common(sketches, firsts, after)
    is_near = shown >= limits[0]
    others = (shown < limits[1]) & (before != firsts)
    others[others] = _in_common(sketches, before[others], after[others]) >= limits[0]
    return [
        a.astype(np.int64) * len(sketches) + b
        for a, b in ((firsts[is_near], after[is_near]), (before[others], after[others]))
    ]


def _in_common(sketches: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the fraction of their shingles in common that the sketches of pairs show, (P,)."""
    fractions = np.zeros(len(a), np.float32)
    for at in range(0, len(a), _COMPARED):
        one = sketches["minima"][a[at : at + _COMPARED]]
        other = sketches["minima"][b[at : at + _COMPARED]]
        empty = _ZEROS[one | other].sum(1, dtype=np.int32)
        either = BINS - empty
        both = either - (_ZEROS[one].sum(1) + _ZEROS[other].sum(1) - 2 * empty)
        equal = _ZEROS[one ^ other].sum(1) - empty
        # One in `_CODES` of the minima that differ have the same code.
        common = (_CODES * equal - both) / (_CODES - 1)
        fractions[at : at + _COMPARED] = common / np.maximum(either, 1)
        _release(sketches)
    return fractions


_ZEROS = np.array([(byte < 16) + (byte % 16 == 0) for byte in range(256)], np.int32)
"""The number of zeros among the two codes in a byte."""
