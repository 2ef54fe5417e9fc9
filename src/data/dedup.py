"""Near-duplicate detection by character shingles (Broder, 1997): `SHINGLE`-grams of characters.

Only alphanumeric characters count, in lower case: without white space and punctuation, a text that
was rewrapped or requoted has the same shingles, and scripts without spaces need no special case.
Of a large corpus only shingles with a small hash are compared, which are the same ones in every
document. Time is linear in the text, memory in the sample, which is bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE = 24
"""Characters of a shingle: five English words, which texts of different authors rarely share."""
_MAX_SHINGLES = 1_000_000  # most shingles of a corpus that are compared, approximately
_BLOCK = 2**16  # characters hashed at a time, so that the temporaries fit the CPU cache
_TABLE_SIZE = 0x3100  # from here on (mostly CJK ideographs) every code point counts as alphanumeric
_SEPARATOR = "\0"  # between packed documents


@dataclass(frozen=True)
class Shingles:
    """Shingles of a text as arrays (N,): hashes, and character offsets `starts` and `ends`."""

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def sampling_rate(documents: Sequence[str]) -> int:
    """Return the rate r at which shingles are sampled, 1 in r, to bound the size of the sample."""
    return -(-sum(map(len, documents)) // _MAX_SHINGLES) or 1


def shingles(text: str, rate: int = 1) -> Shingles:
    """Compute the shingles of a text, sampled by hash, 1 in `rate`; none spans a NUL character."""
    codes, offsets = np.empty(0, np.uint32), np.empty(0, np.int64)
    sampled = []
    for at in range(0, len(text), _BLOCK):
        more, positions = _alphanumerics(text[at : at + _BLOCK])
        codes, offsets = np.concatenate([codes, more]), np.concatenate([offsets, positions + at])
        hashes = _hash(codes)
        chosen = np.flatnonzero(hashes <= np.uint64((2**64 - 1) // rate))
        if len(chosen):
            breaks = np.concatenate([[0], np.cumsum(codes == 0)])
            chosen = chosen[breaks[chosen + SHINGLE] == breaks[chosen]]
            last = chosen + SHINGLE - 1
            sampled.append((hashes[chosen], offsets[chosen], offsets[last] + 1))
        codes, offsets = codes[-(SHINGLE - 1) :], offsets[-(SHINGLE - 1) :]
    if not sampled:
        return Shingles(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
    return Shingles(*(np.concatenate(parts) for parts in zip(*sampled, strict=True)))


@functools.cache
def _alphanumeric_table() -> np.ndarray:
    table = np.array([chr(code).isalnum() for code in range(_TABLE_SIZE + 1)])
    table[[0, _TABLE_SIZE]] = True  # the separator; all code points beyond the table
    return table


def _alphanumerics(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the code points of a text's alphanumeric characters, lower-cased, and their offsets.

    NUL, the separator, is kept. Only ASCII is lower-cased.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
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


def _all_shingles(documents: Sequence[str], rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all documents' shingles, (N,), and the document index of each, (N,)."""
    hashes, document_ids = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, offsets, text in _pack_documents(documents):
        sampled = shingles(text, rate)
        hashes.append(sampled.hashes)
        document_ids.append(first + np.searchsorted(offsets, sampled.starts, "right") - 1)
    return np.concatenate(hashes), np.concatenate(document_ids)


def _pack_documents(documents: Sequence[str]) -> Iterator[tuple[int, np.ndarray, str]]:
    """Pack documents into blocks, to amortize the overhead of NumPy calls.

    Yields:
        The index of the first document, the offset of each in the block, and the block.
    """
    first = size = 0
    for number, document in enumerate(documents):
        size += len(document) + 1
        if size >= _BLOCK or number == len(documents) - 1:
            pack = documents[first : number + 1]
            offsets = np.cumsum([0, *(len(text) + 1 for text in pack[:-1])])
            yield first, offsets, _SEPARATOR.join(pack)
            first, size = number + 1, 0


def cluster_near_duplicates(documents: Sequence[str], threshold: float) -> list[int]:
    """Cluster documents that share text, directly or transitively (union-find).

    Args:
        documents: distinct documents.
        threshold: fraction of the smaller one's shingles that two documents share to be linked.

    Returns:
        The cluster of each document, as the index of the cluster's first document.
    """
    hashes, document_ids = _all_shingles(documents, sampling_rate(documents))
    order = np.lexsort((document_ids, hashes))
    hashes, document_ids = hashes[order], document_ids[order]
    is_first = np.ones(len(hashes), bool)  # each shingle counts once per document
    is_first[1:] = (hashes[1:] != hashes[:-1]) | (document_ids[1:] != document_ids[:-1])
    hashes, document_ids = hashes[is_first], document_ids[is_first]
    sizes = np.bincount(document_ids, minlength=len(documents))
    groups = list(range(len(documents)))
    for a, b, shared in _pairs(hashes, document_ids, len(documents)):
        if shared >= threshold * min(sizes[a], sizes[b]):
            a, b = sorted((_find_root(groups, a), _find_root(groups, b)))
            groups[b] = a
    return [_find_root(groups, index) for index in groups]


def _pairs(
    hashes: np.ndarray, document_ids: np.ndarray, count: int
) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of document indices with the number of shingles that they share.

    For each shingle, its first document is paired with every other, and each with the next one:
    linear, since all pairs would be quadratic. `hashes`, (N,), are sorted and unique per document
    in `document_ids`, (N,).
    """
    repeats = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    if not len(repeats):
        return
    begins = np.concatenate([[0], np.flatnonzero(hashes[1:] != hashes[:-1]) + 1])
    first = document_ids[begins[np.searchsorted(begins, repeats, "right") - 1]]
    before = document_ids[repeats - 1]
    keys = np.concatenate([first, before[before != first]]) * count
    keys += np.concatenate([document_ids[repeats], document_ids[repeats][before != first]])
    for key, shared in zip(*np.unique(keys, return_counts=True), strict=True):
        yield int(key) // count, int(key) % count, int(shared)


def _find_root(groups: list[int], index: int) -> int:
    """Find the root of a document in the union-find forest, with path halving."""
    while groups[index] != index:
        groups[index] = groups[groups[index]]
        index = groups[index]
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


def containment(text: Sequence[str], other: Sequence[str]) -> float | None:
    """Return the containment of `text` in `other` (Broder, 1997).

    Returns:
        The fraction of `text`'s shingles that `other` also has, or `None` if `text` has none.
    """
    rate = sampling_rate([*text, *other])
    hashes, _ = _all_shingles(text, rate)
    if not len(hashes):
        return None
    others, _ = _all_shingles(other, rate)
    return float(HashSet(others).contains(hashes).mean())


def split_by_shingles(text: str, hashes: HashSet, rate: int = 1) -> tuple[list[str], list[str]]:
    """Split a text into the passages without any of the given shingles and those with them.

    Args:
        text: the text.
        hashes: hashes of the shingles.
        rate: rate at which they were sampled.

    Returns:
        The passages without and the passages with them, each in order; together, the full text.
    """
    sampled = shingles(text, rate)
    hits = np.flatnonzero(hashes.contains(sampled.hashes))
    without, within, position = [], [], 0
    if len(hits):
        starts, ends = sampled.starts[hits], sampled.ends[hits]
        # Merge passages that are nearly adjacent: the gap is usually an edit of copied text.
        apart = np.flatnonzero(starts[1:] - ends[:-1] > SHINGLE * (1 + rate)) + 1
        for part in np.split(np.arange(len(hits)), apart):
            start, end = int(starts[part[0]]), int(ends[part[-1]])
            without.append(text[position:start])
            within.append(text[start:end])
            position = end
    without.append(text[position:])
    return [piece for piece in without if piece], within
