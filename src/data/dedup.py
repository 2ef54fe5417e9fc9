"""Text that documents have in common, by hashes of all runs of `SHINGLE` letters (shingles).

Letters are letters, digits and ideographs, in lower case: spaces, line breaks and punctuation do
not count, so that a text that was wrapped or quoted anew is the same, and a text without spaces is
like any other. Of a large corpus a sample is compared, chosen by hash and so the same in every
document. Time and memory are linear: memory in the sample, which is bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE = 24
"""Letters of a shingle: five English words, which texts of different authors rarely share."""
_SAMPLE = 1_000_000
_BLOCK = 2**16  # characters at a time: what is made of them fits a processor's cache
_CODES = 0x3100  # beyond are ideographs and rare scripts: all of it counts as letters
_SEPARATOR = "\0"


@dataclass(frozen=True)
class Shingles:
    """Hashes of a text's shingles, with the characters (from `starts` to `ends`) of each."""

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def sampling_rate(documents: Sequence[str]) -> int:
    """Of how many shingles one is compared, so that a bounded number is."""
    return -(-sum(map(len, documents)) // _SAMPLE) or 1


def shingles(text: str, rate: int = 1) -> Shingles:
    """A text's shingles, one of `rate` of them; none holds a NUL character."""
    codes, places = np.empty(0, np.uint32), np.empty(0, np.int64)
    found = []
    for at in range(0, len(text), _BLOCK):
        more, where = _letters(text[at : at + _BLOCK])
        codes, places = np.concatenate([codes, more]), np.concatenate([places, where + at])
        hashes = _hash(codes)
        chosen = np.flatnonzero(hashes <= np.uint64((2**64 - 1) // rate))
        if len(chosen):
            breaks = np.concatenate([[0], np.cumsum(codes == 0)])
            chosen = chosen[breaks[chosen + SHINGLE] == breaks[chosen]]
            last = chosen + SHINGLE - 1
            found.append((hashes[chosen], places[chosen], places[last] + 1))
        codes, places = codes[-(SHINGLE - 1) :], places[-(SHINGLE - 1) :]
    if not found:
        return Shingles(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
    return Shingles(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


@functools.cache
def _is_letter() -> np.ndarray:
    table = np.array([chr(code).isalnum() for code in range(_CODES + 1)])
    table[[0, _CODES]] = True  # the separator; all codes beyond the table
    return table


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a text's letters, and their places."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.flatnonzero(_is_letter()[np.minimum(codes, _CODES)])
    codes = codes[places]
    return codes + np.uint32(32) * ((codes >= 65) & (codes <= 90)), places


def _hash(codes: np.ndarray) -> np.ndarray:
    """A uniform hash of every run of `SHINGLE` codes: of 2, 4 and 8 of them, then of three 8s."""
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
    """Hashes of all documents' shingles, and the document of each."""
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, offsets, text in _packed(documents):
        found = shingles(text, rate)
        hashes.append(found.hashes)
        owners.append(first + np.searchsorted(offsets, found.starts, "right") - 1)
    return np.concatenate(hashes), np.concatenate(owners)


def _packed(documents: Sequence[str]) -> Iterator[tuple[int, np.ndarray, str]]:
    """Documents joined to texts of some size; the first one's number, and where each begins."""
    first = size = 0
    for number, document in enumerate(documents):
        size += len(document) + 1
        if size >= _BLOCK or number == len(documents) - 1:
            pack = documents[first : number + 1]
            offsets = np.cumsum([0, *(len(text) + 1 for text in pack[:-1])])
            yield first, offsets, _SEPARATOR.join(pack)
            first, size = number + 1, 0


def group_related(documents: Sequence[str], threshold: float) -> list[int]:
    """Group documents that share text, directly or through others.

    Args:
        documents: all different.
        threshold: two are related where they share this part of the shorter one's shingles.

    Returns:
        A number for each document, the same for all of a group: the first one's index.
    """
    hashes, owners = _all_shingles(documents, sampling_rate(documents))
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    fresh = np.ones(len(hashes), bool)  # each shingle once a document
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    hashes, owners = hashes[fresh], owners[fresh]
    sizes = np.bincount(owners, minlength=len(documents))
    groups = list(range(len(documents)))
    for a, b, shared in _pairs(hashes, owners, len(documents)):
        if shared >= threshold * min(sizes[a], sizes[b]):
            a, b = sorted((_root(groups, a), _root(groups, b)))
            groups[b] = a
    return [_root(groups, index) for index in groups]


def _pairs(hashes: np.ndarray, owners: np.ndarray, count: int) -> Iterator[tuple[int, int, int]]:
    """Pairs of documents with the number of shingles that they share.

    Of all documents that have a shingle, the first is paired with each, and each with the next: all
    pairs would be quadratically many.
    """
    again = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    if not len(again):
        return
    begins = np.concatenate([[0], np.flatnonzero(hashes[1:] != hashes[:-1]) + 1])
    first = owners[begins[np.searchsorted(begins, again, "right") - 1]]
    before = owners[again - 1]
    keys = np.concatenate([first, before[before != first]]) * count
    keys += np.concatenate([owners[again], owners[again][before != first]])
    for key, shared in zip(*np.unique(keys, return_counts=True), strict=True):
        yield int(key) // count, int(key) % count, int(shared)


def _root(groups: list[int], index: int) -> int:
    while groups[index] != index:
        groups[index] = groups[groups[index]]
        index = groups[index]
    return index


def are_among(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of some hashes are among others: `np.isin`, which takes ten times as long here."""
    if not len(others):
        return np.zeros(len(hashes), bool)
    others = np.sort(others)
    places = np.minimum(np.searchsorted(others, hashes), len(others) - 1)
    return others[places] == hashes


def shared_part(text: Sequence[str], other: Sequence[str]) -> float | None:
    """The part of `text`'s shingles that are in `other`, too; `None` where it has none."""
    rate = sampling_rate([*text, *other])
    hashes, _ = _all_shingles(text, rate)
    if not len(hashes):
        return None
    others, _ = _all_shingles(other, rate)
    return float(are_among(hashes, others).mean())


def cut_out(text: str, hashes: np.ndarray, rate: int = 1) -> tuple[list[str], list[str]]:
    """Cut a text into what does not hold any of some shingles and what does.

    Args:
        text: any.
        hashes: of the shingles.
        rate: with which they were sampled.

    Returns:
        The pieces without, and those with them, in their order. Together they are the text.
    """
    found = shingles(text, rate)
    hits = np.flatnonzero(are_among(found.hashes, hashes))
    without, within, done = [], [], 0
    if len(hits):
        starts, ends = found.starts[hits], found.ends[hits]
        # Passages that are nearly adjacent are one: an edit has changed what lies between.
        apart = np.flatnonzero(starts[1:] - ends[:-1] > SHINGLE * (1 + rate)) + 1
        for part in np.split(np.arange(len(hits)), apart):
            start, end = int(starts[part[0]]), int(ends[part[-1]])
            without.append(text[done:start])
            within.append(text[start:end])
            done = end
    without.append(text[done:])
    return [piece for piece in without if piece], within
