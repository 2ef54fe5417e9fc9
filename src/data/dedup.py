"""Near-duplicate detection by character shingles (Broder, 1997): `SHINGLE`-grams of characters.

Only alphanumeric characters count, in lower case: without white space and punctuation, a text that
was rewrapped or requoted has the same shingles, and scripts without spaces need no special case.
Of a large corpus only shingles with a small hash are compared, which are the same ones in every
document. Time is linear in the text, memory in the sample, which is bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from ..nn import shingle_library
from .document_arrays import compact, index_type
from .sketches import Sketcher, update_minima

SHINGLE = 24
"""Characters of a shingle: five English words, which texts of different authors rarely share."""
_MAX_SHINGLES = 1_000_000  # most shingles of a corpus that are compared, approximately
_TABLE_SIZE = 0x3100  # from here on (mostly CJK ideographs) every code point counts as alphanumeric


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
        is_complete: whether all shingles are in the sample, in memory that is not bounded.
    """

    def __init__(self, sketcher: Sketcher | None = None, is_complete: bool = False) -> None:
        self._sketcher, self._is_complete = sketcher, is_complete
        native = shingle_library.LIBRARY is not None
        table = _alphanumeric_table()
        self._scanner = shingle_library.DocumentScanner(table) if native else _Scanner()
        self._documents = 0
        self._sampled: list[tuple[np.ndarray, ...]] = []
        self._count = 0
        self._rate = 1

    def add(
        self, text: bytes, characters: np.ndarray, is_new: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add pieces of documents, and hash these, too.

        Args:
            text: the pieces one after the other, in UTF-8.
            characters: number of characters of each, (P,) int64.
            is_new: whether each begins a document, (P,).

        Returns:
            The number of bytes of each piece, (P,), and the first 16 bytes of the SHA-256 hash of
            its document up to its end, (P, 16).
        """
        documents = np.cumsum(is_new)
        count = int(documents[-1])
        minima = None if self._sketcher is None else self._sketcher.begin(count)
        threshold = _threshold(self._rate)
        sizes, digests, found = self._scanner.scan(text, characters, documents, threshold, minima)
        hashes, own, starts, ends = found
        places = map(compact, (own + (self._documents - 1), starts, ends))
        self._sampled.append((hashes, *places))
        self._documents += count
        self._count += len(hashes)
        while self._count > 2 * _MAX_SHINGLES and not self._is_complete:
            self._rate *= 2
            self._drop()
        return sizes, digests

    def _drop(self) -> None:
        """Drop the shingles that are not in a sample of the present rate."""
        limit = np.uint64(_threshold(self._rate))
        for index, (hashes, *places) in enumerate(self._sampled):
            kept = np.flatnonzero(hashes <= limit)
            self._sampled[index] = (hashes[kept], *(each[kept] for each in places))
        self._count = sum(len(hashes) for hashes, *_ in self._sampled)

    def finish(self) -> Shingles:
        """Return the sample, after the last document; `limit` makes it that of a whole corpus."""
        if self._sketcher is not None:
            self._sketcher.finish()
        none = (np.empty(0, np.uint64), *(np.empty(0, np.int32) for _ in range(3)))
        hashes, documents, starts, ends = map(
            np.concatenate, zip(none, *self._sampled, strict=True)
        )
        return Shingles(hashes, documents, starts, ends, self._rate)


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


class _Scanner:
    """What `shingle_library.DocumentScanner` does in C, in NumPy."""

    def __init__(self) -> None:
        self._codes, self._offsets = np.empty(0, np.uint32), np.empty(0, np.int64)
        self._position = self._first = 0  # in all documents, each of which follows a separator
        self._hash = hashlib.sha256()

    def scan(
        self,
        text: bytes,
        characters: np.ndarray,
        documents: np.ndarray,
        threshold: int,
        minima: np.ndarray | None,
    ) -> shingle_library.Scanned:
        """Scan pieces."""
        is_new = np.diff(documents, prepend=0) > 0
        before = (np.cumsum(characters) - characters)[is_new]
        codes = np.insert(_code_points(text), before, 0)
        hashes, starts, ends = self._shingles(codes, self._position)
        begins = self._position + before + np.arange(1, len(before) + 1)
        firsts = np.concatenate([[self._first], begins])
        self._position, self._first = self._position + len(codes), int(firsts[-1])
        own = np.searchsorted(firsts, starts, "right") - 1
        if minima is not None:
            update_minima(minima, hashes, own)
        kept = hashes <= np.uint64(threshold)
        hashes, own, starts, ends = hashes[kept], own[kept], starts[kept], ends[kept]
        sizes, digests = self._hashes(text, characters, is_new)
        return sizes, digests, (hashes, own, starts - firsts[own], ends - firsts[own])

    def _hashes(
        self, text: bytes, characters: np.ndarray, is_new: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        begins = np.flatnonzero(np.frombuffer(text, np.int8) >= -0x40)  # of characters
        ends = np.append(begins, len(text))[np.cumsum(characters)]
        digests, start = bytearray(), 0
        for end, begins_document in zip(ends.tolist(), is_new.tolist(), strict=True):
            if begins_document:
                self._hash = hashlib.sha256()
            self._hash.update(text[start:end])
            digests += self._hash.digest()[:16]
            start = end
        return np.diff(ends, prepend=0), np.frombuffer(digests, np.uint8).reshape(-1, 16)

    def _shingles(
        self, codes: np.ndarray, position: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hash the shingles that end in the next code points, which begin at a position."""
        new, offsets = _alphanumerics(codes)
        codes = np.concatenate([self._codes, new])
        offsets = np.concatenate([self._offsets, offsets + position])
        hashes = _hash(codes)
        chosen = np.arange(len(hashes))
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
    table[[0, _TABLE_SIZE]] = True  # NUL, which no shingle spans; all code points beyond the table
    return table


def _code_points(text: bytes) -> np.ndarray:
    return np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)


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
    a, b, shared, of_a, of_b = shared_shingles(sample, count)
    linked = shared >= threshold * np.minimum(of_a, of_b)
    linked &= shared >= (_MIN_COMMON if sample.rate > 1 else 1)
    return link(np.arange(count, dtype=index_type(count)), a[linked], b[linked])


def link(groups: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Merge clusters, (D,), in place, by pairs of documents, (P,) each; return them."""
    for first, second in zip(a.tolist(), b.tolist(), strict=True):
        first, second = sorted((_find_root(groups, first), _find_root(groups, second)))
        groups[second] = first
    while (groups != groups[groups]).any():
        groups[:] = groups[groups]
    return groups


def is_root(groups: np.ndarray) -> np.ndarray:
    """Return the mask, (D,), of the documents that are the first of their cluster."""
    return groups == np.arange(len(groups), dtype=groups.dtype)


# In a sample, documents must have so many in common: of a short document it may have only one
# shingle, which may be that of a phrase that is in very many others.
_MIN_COMMON = 4


def shared_shingles(sample: Shingles, count: int) -> tuple[np.ndarray, ...]:
    """Return `_pairs` of documents, and the number of different shingles of each, (P,) each."""
    hashes, documents = sample.by_hash
    a, b, shared = _pairs(hashes, documents, count)
    known, sizes = np.unique(documents, return_counts=True)
    return a, b, shared, *(sizes[np.searchsorted(known, each)] for each in (a, b))


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
    keys = np.concatenate([first, before[other]]).astype(np.int64) * count
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
