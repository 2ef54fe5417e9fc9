"""Near-duplicate detection by character shingles (Broder, 1997): `SHINGLE`-grams of characters.

Only alphanumeric characters count, in lower case: without white space and punctuation, a text that
was rewrapped or requoted has the same shingles, and scripts without spaces need no special case.
Of a large corpus only shingles with a small hash are compared, which are the same ones in every
document. Time is linear in the text, memory in the sample, which is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from ..nn import shingle_library
from .sketches import Sketcher

SHINGLE = 24
"""Characters of a shingle: five English words, which texts of different authors rarely share."""
_MAX_SHINGLES = 1_000_000  # most shingles of a corpus that are compared, approximately
_BLOCK = 2**16  # characters hashed at a time, so that the temporaries fit the CPU cache
_TABLE_SIZE = 0x3100  # from here on (mostly CJK ideographs) every code point counts as alphanumeric
_SEPARATOR = "\0"  # between documents; no shingle spans one


@dataclass(frozen=True)
class Shingles:
    """A sample of a corpus' shingles as arrays (N,), in the order of the text."""

    hashes: np.ndarray
    documents: np.ndarray
    """Index of the document of each."""
    starts: np.ndarray
    """Offset of the first character of each in its document."""
    ends: np.ndarray
    """Offset after the last character."""
    rate: int = 1
    """The sampling rate: 1 in `rate` shingles are in the sample."""

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and documents, (M,) each, sorted, with each shingle once per document."""
        order = np.lexsort((self.documents, self.hashes))
        hashes, documents = self.hashes[order], self.documents[order]
        is_first = np.ones(len(hashes), bool)
        is_first[1:] = (hashes[1:] != hashes[:-1]) | (documents[1:] != documents[:-1])
        return hashes[is_first], documents[is_first]

    def select(self, chosen: np.ndarray | slice) -> Shingles:
        """Return the shingles of a mask, of indices or of a slice."""
        hashes, documents = self.hashes[chosen], self.documents[chosen]
        return Shingles(hashes, documents, self.starts[chosen], self.ends[chosen], self.rate)


class ShingleSampler:
    """Samples the shingles of a stream of documents, by hash, in bounded memory.

    The rate rises with the text, and shingles sampled before are dropped accordingly: the sample is
    the one that the final rate, known from the beginning, would have given.

    Args:
        sketcher: gets all shingles.
    """

    def __init__(self, sketcher: Sketcher | None = None) -> None:
        self._sketcher = sketcher
        self._block: list[str] = []
        self._block_size = 0
        self._position = 0  # of the block in the stream of documents and separators
        self._characters = 0  # of documents alone
        self._document_starts: list[np.ndarray] = []
        self._new_starts: list[int] = []
        self._document_count = 0  # in `_document_starts`
        native = shingle_library.LIBRARY is not None
        table = _alphanumeric_table()
        self._hasher = shingle_library.ShingleHasher(table) if native else _Hasher()
        self._sampled = [(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))]
        self._count = 0
        self._rate = 1

    def add(self, text: str, continues: bool = False) -> None:
        """Add a document; or, if it `continues` the one before, the next piece of that."""
        if not continues:
            self._append(_SEPARATOR)
            self._new_starts.append(self._position + self._block_size)
        self._characters += len(text)
        self._append(text)
        if self._block_size >= _BLOCK:
            self._end_block()

    def _append(self, text: str) -> None:
        self._block.append(text)
        self._block_size += len(text)

    def _end_block(self) -> None:
        text = "".join(self._block)
        starts = np.array(self._new_starts, np.int64)
        self._sample(text, self._position, starts)
        self._document_starts.append(starts)
        self._document_count += len(starts)
        if self._sketcher is not None:
            self._sketcher.complete(self._document_count - 1)
        self._position += len(text)
        self._block, self._block_size, self._new_starts = [], 0, []

    def _sample(self, text: str, position: int, starts: np.ndarray) -> None:
        for at in range(0, len(text), _BLOCK):
            codes = _code_points(text[at : at + _BLOCK])
            rate = self._rate if self._sketcher is None else 1
            found = self._hasher.add(codes, position + at, _threshold(rate))
            if self._sketcher is not None:
                self._sketch(self._sketcher, found, starts)
                chosen = np.flatnonzero(found[0] <= np.uint64(_threshold(self._rate)))
                found = (found[0][chosen], found[1][chosen], found[2][chosen])
            self._sampled.append(found)
            self._count += len(found[0])
            while self._count > 2 * _MAX_SHINGLES:
                self._rate *= 2
                self._drop()

    def _sketch(
        self,
        sketcher: Sketcher,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
        starts: np.ndarray,
    ) -> None:
        """Add shingles, which may be of the document before the new ones, to the sketches."""
        bounds = [0, *np.searchsorted(found[1], starts).tolist(), len(found[1])]
        first = self._document_count - 1
        documents = np.arange(first, first + len(bounds) - 1)
        sketcher.add(found[0], np.repeat(documents, np.diff(bounds)))

    def _drop(self) -> None:
        """Drop the shingles that are not in a sample of the present rate."""
        hashes, starts, ends = (np.concatenate(each) for each in zip(*self._sampled, strict=True))
        kept = hashes <= np.uint64(_threshold(self._rate))
        self._sampled = [(hashes[kept], starts[kept], ends[kept])]
        self._count = int(kept.sum())

    def finish(self) -> Shingles:
        """Return the sample, after the last document; `limit` makes it that of a whole corpus."""
        self._end_block()
        if self._sketcher is not None:
            self._sketcher.complete(self._document_count)
        self._drop()
        document_starts = np.concatenate(self._document_starts)
        hashes, starts, ends = self._sampled[0]
        documents = np.searchsorted(document_starts, starts, "right") - 1
        first = document_starts[documents]
        return Shingles(hashes, documents, starts - first, ends - first, self._rate)


def limit(sample: Shingles, characters: int) -> Shingles:
    """Return the sample of a corpus, at the rate of its size.

    Args:
        sample: the sample of its documents, at a rate that is a power of two.
        characters: number of characters of the corpus.
    """
    while len(sample) > 2 * _MAX_SHINGLES:  # of several parts
        sample = at_rate(sample, 2 * sample.rate)
    return at_rate(sample, max(sample.rate, -(-characters // _MAX_SHINGLES)))


def at_rate(sample: Shingles, rate: int) -> Shingles:
    """Return a sample at a higher rate."""
    return replace(sample.select(sample.hashes <= np.uint64(_threshold(rate))), rate=rate)


class _Hasher:
    """What `shingle_library.ShingleHasher` does in C, in NumPy."""

    def __init__(self) -> None:
        self._codes, self._offsets = np.empty(0, np.uint32), np.empty(0, np.int64)

    def add(
        self, codes: np.ndarray, position: int, threshold: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hash the shingles that end in the next part of the text."""
        new, offsets = _alphanumerics(codes)
        codes = np.concatenate([self._codes, new])
        offsets = np.concatenate([self._offsets, offsets + position])
        hashes = _hash(codes)
        chosen = np.flatnonzero(hashes <= np.uint64(threshold))
        breaks = np.flatnonzero(codes == 0)
        breaks_before = np.searchsorted(breaks, chosen)
        chosen = chosen[np.searchsorted(breaks, chosen + SHINGLE) == breaks_before]
        self._codes, self._offsets = codes[1 - SHINGLE :], offsets[1 - SHINGLE :]
        return hashes[chosen], offsets[chosen], offsets[chosen + SHINGLE - 1] + 1


def _threshold(rate: int) -> int:
    return (2**64 - 1) // rate


@cache
def _alphanumeric_table() -> np.ndarray:
    table = np.array([chr(code).isalnum() for code in range(_TABLE_SIZE + 1)])
    table[[0, _TABLE_SIZE]] = True  # the separator; all code points beyond the table
    return table


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _alphanumerics(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the alphanumeric ones of code points, lower-cased, and their offsets.

    NUL, the separator, is kept. Only ASCII is lower-cased.
    """
    offsets = np.flatnonzero(_alphanumeric_table()[np.minimum(codes, _TABLE_SIZE)])
    codes = codes[offsets]
    return codes + np.uint32(32) * ((codes >= 65) & (codes <= 90)), offsets


def _hash(codes: np.ndarray) -> np.ndarray:
    """Compute a uniform 64-bit hash of every window of `SHINGLE` = 24 code points.

    Hashes of 2, 4 and 8 code points are combined by doubling, then three of 8: five vectorized
    steps instead of 24. The multipliers are those of splitmix64 and MurmurHash3's finalizer.
    """
    if len(codes) < SHINGLE:
        return np.empty(0, np.uint64)
    hashes = codes * np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(29)
    for width, factor in (
        (1, 0xBF58476D1CE4E5B9),
        (2, 0x94D049BB133111EB),
        (4, 0xD6E8FEB86659FD93),
    ):
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
    eights = np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes[:-16] * eights + hashes[8:-8]) * eights + hashes[16:]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xC4CEB9FE1A85EC53)
    hashes ^= hashes >> np.uint64(29)
    return hashes


def cluster_near_duplicates(sample: Shingles, count: int, threshold: float) -> np.ndarray:
    """Cluster documents that share text, directly or transitively (union-find).

    Args:
        sample: shingles of distinct documents.
        count: number of documents.
        threshold: fraction of the smaller one's shingles that two documents share to be linked.

    Returns:
        The cluster of each document, (count,), as the index of the cluster's first document.
    """
    sizes, (a, b, shared) = shared_shingles(sample, count)
    linked = shared >= threshold * np.minimum(sizes[a], sizes[b])
    linked &= shared >= (_MIN_COMMON if sample.rate > 1 else 1)
    return link(np.arange(count), a[linked], b[linked])


def link(groups: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Merge clusters, (D,), in place, by pairs of documents, (P,) each; return them."""
    for first, second in zip(a.tolist(), b.tolist(), strict=True):
        first, second = sorted((_find_root(groups, first), _find_root(groups, second)))
        groups[second] = first
    while (groups != groups[groups]).any():
        groups[:] = groups[groups]
    return groups


# In a sample, documents must have so many in common: of a short document it may have only one
# shingle, which may be that of a phrase that is in very many others.
_MIN_COMMON = 4


def shared_shingles(
    sample: Shingles, count: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the number of different shingles of each document, (count,), and `_pairs` of them."""
    hashes, documents = sample.by_hash
    return np.bincount(documents, minlength=count), _pairs(hashes, documents, count)


def _pairs(
    hashes: np.ndarray, documents: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of document indices and the number of shingles that they share, (P,) each.

    For each shingle, its first document is paired with every other, and each with the next one:
    linear, since all pairs would be quadratic. `hashes`, (N,), are sorted and unique per document
    in `documents`, (N,).
    """
    repeats = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    begins = np.concatenate([[0], np.flatnonzero(hashes[1:] != hashes[:-1]) + 1])
    first = documents[begins[np.searchsorted(begins, repeats, "right") - 1]]
    before, after = documents[repeats - 1], documents[repeats]
    other = before != first
    keys = np.concatenate([first, before[other]]) * count
    keys += np.concatenate([after, after[other]])
    keys, shared = np.unique(keys, return_counts=True)
    return keys // max(1, count), keys % max(1, count), shared


def _find_root(groups: np.ndarray, index: int) -> int:
    """Find the root of a document in the union-find forest, with path halving."""
    while groups[index] != index:
        groups[index] = groups[groups[index]]
        index = int(groups[index])
    return index


class HashSet:
    """A growing set of hashes: sorted arrays, each at least twice as long as the next.

    Many small additions and lookups take O(n log² n) time for n hashes. In a single array, which
    must be sorted after each addition, they would take O(n²).

    Args:
        hashes: the first hashes, (N,).
    """

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        self._parts: list[np.ndarray] = []
        if hashes is not None:
            self.add(hashes)

    def add(self, hashes: np.ndarray) -> None:
        """Add hashes, (N,), which may be in the set already."""
        if not len(hashes):
            return
        while self._parts and len(self._parts[-1]) < 2 * len(hashes):
            hashes = np.concatenate([self._parts.pop(), hashes])
        self._parts.append(np.sort(hashes))

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Return the mask, (N,), of the hashes that are in the set, found by binary search."""
        found = np.zeros(len(hashes), bool)
        for part in self._parts:
            indices = np.minimum(np.searchsorted(part, hashes), len(part) - 1)
            found |= part[indices] == hashes
        return found


def containment(hashes: np.ndarray, others: np.ndarray) -> float | None:
    """Return the containment of one text in another (Broder, 1997).

    Args:
        hashes: sampled shingles of the text, (N,).
        others: those of the other text, sampled at the same rate, (M,).

    Returns:
        The fraction of the first that are among the second, or `None` if there are none.
    """
    return float(HashSet(others).contains(hashes).mean()) if len(hashes) else None


def passages(sample: Shingles, hashes: HashSet) -> Iterator[tuple[int, int]]:
    """Yield start and end of the passages of a document that consist of the given shingles.

    Args:
        sample: the document's shingles.
        hashes: hashes of the shingles.
    """
    hits = np.flatnonzero(hashes.contains(sample.hashes))
    if not len(hits):
        return
    starts, ends = sample.starts[hits], sample.ends[hits]
    # Merge passages that are nearly adjacent: the gap is usually an edit of copied text.
    apart = np.flatnonzero(starts[1:] - ends[:-1] > SHINGLE * (1 + sample.rate)) + 1
    firsts, lasts = np.concatenate([[0], apart]), np.concatenate([apart - 1, [len(hits) - 1]])
    yield from zip(starts[firsts].tolist(), ends[lasts].tolist(), strict=True)
