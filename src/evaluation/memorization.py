"""Memorization: how much of a generated text is copied verbatim from the training text."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Originality:
    """Overlap of a generated text with the training text."""

    known_words: float
    """Fraction of the generated words that occur in the training text, 0 to 1."""
    longest_copy: str
    """Longest span that occurs verbatim in the training text."""


def originality(written: str, learned: str) -> Originality:
    """Measure the overlap of a generated text (`written`) with the training text (`learned`)."""
    vocabulary = set(_words(learned))
    words = _words(written)
    known = sum(word in vocabulary for word in words) / max(len(words), 1)
    return Originality(known, longest_common_span(written, learned))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def longest_common_span(written: str, learned: str) -> str:
    """Return the longest common substring of a generated text and the training text.

    A common span of at least 8 characters consists of 8-grams of `learned` that all occur in
    `written`. In natural language few places do, so only those are searched. If they contain no
    such span, the search is repeated with 4-grams, 2-grams, and then on all of the text.

    Args:
        written: the generated text.
        learned: the training text.
    """
    best = ""
    if not written:
        return best
    # In chunks, which bounds memory. They overlap by len(written), so no common span is cut.
    size = max(_STRETCH, len(written))
    for width in (8, 4, 2, 1):
        for start in range(0, len(learned), size):
            stretch = learned[start : start + size + len(written)]
            best = max(best, _search_span(written, stretch, width), key=len)
        if len(best) >= width:  # any other common span is shorter than `width`
            break
    return best


# Minimum characters of a chunk.
_STRETCH = 1 << 20


def _search_span(written: str, learned: str, least: int) -> str:
    """Return the longest common substring; if below `least` characters, perhaps a shorter one.

    Equal windows get equal integer names; the name of a window follows from those of two narrower
    windows that cover it (Karp, Miller and Rosenberg, 1972). The width is doubled while any window
    is common, then increased by smaller and smaller powers of two: O(n log n log s) time for a span
    of s characters.
    """
    shared = _ngram_filter(written, learned, least)
    if not shared.any():
        return ""
    kept = shared.copy()
    kept[1:] |= shared[:-1]  # and the character after, as a separator
    known, ours = np.unique(_letters(written), return_inverse=True)
    theirs = np.where(shared[kept], _names(known, _letters(learned)[kept], _LETTERS), -1)
    if not (theirs >= 0).any():
        return ""
    width = 1
    while (wider := _widen(ours, theirs, width)) is not None:
        (ours, theirs), width = wider, 2 * width
    step = width // 2
    while step:
        if (wider := _widen(ours, theirs, step)) is not None:
            (ours, theirs), width = wider, width + step
        step //= 2
    start = int(np.argmax(ours == theirs.max()))
    return written[start : start + width]


def _letters(text: str) -> np.ndarray:
    """Return the code points of a text, of shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# Number of Unicode code points.
_LETTERS = 0x110000


def _names(known: np.ndarray, values: np.ndarray, bound: int) -> np.ndarray:
    """Return the index of each value (-1 to `bound` - 1) in the sorted `known`, or -1."""
    if bound <= 4 * len(values):  # a lookup table is faster than binary search
        table = np.full(bound + 1, -1)  # one more, so that the value -1 maps to -1
        table[known] = np.arange(len(known))
        return table[values]
    places = np.searchsorted(known, values)
    places[places == len(known)] = 0
    places[known[places] != values] = -1
    return places


def _widen(ours: np.ndarray, theirs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the names of windows that are wider by `step`, or `None` if none is common.

    Args:
        ours: name of the window that starts at each character of our text.
        theirs: the same for the other text; -1 if our text has no such window.
        step: characters, at most the present width.
    """
    if step >= min(len(ours), len(theirs)):
        return None
    count = int(ours.max()) + 1
    known, ours = np.unique(ours[:-step] * count + ours[step:], return_inverse=True)
    first, second = theirs[:-step], theirs[step:]
    pairs = np.where((first >= 0) & (second >= 0), first * count + second, -1)
    theirs = _names(known, pairs, count * count)
    return (ours, theirs) if (theirs >= 0).any() else None


def _ngram_filter(written: str, learned: str, width: int) -> np.ndarray:
    """Return which characters of `learned` are in a `width`-gram that may occur in `written`.

    A filter like a Bloom filter, over a hash of the characters' lowest bytes: it may have false
    positives, but no false negatives.

    Args:
        written: the generated text.
        learned: the training text.
        width: 8, 4 or 2; 1 selects all characters.
    """
    if width == 1 or min(len(written), len(learned)) < width:
        return np.full(len(learned), width == 1)
    known = np.zeros(2**_HASH_BITS, dtype=bool)
    text = _low_bytes(written)
    for offset in range(width):
        known[_window_hashes(text, offset, width)] = True
    text = _low_bytes(learned)
    begins = np.zeros(len(learned), dtype=bool)
    for offset in range(width):
        hashes = _window_hashes(text, offset, width)
        begins[offset:][: len(hashes) * width : width] = known[hashes]
    shared = begins.copy()
    for offset in range(1, width):
        shared[offset:] |= begins[:-offset]
    return shared


# A table of 4 MiB: few false positives for a sample of some thousand characters.
_HASH_BITS = 22


def _low_bytes(text: str) -> bytes:
    """Return the lowest byte of each code point."""
    return text.encode("utf-32-le", "surrogatepass")[::4]


def _window_hashes(text: bytes, offset: int, width: int) -> np.ndarray:
    """Return hashes of the `width` bytes (2, 4 or 8) at offset, offset + width, ..."""
    count = max(0, (len(text) - offset) // width)
    windows = np.frombuffer(text, f"<u{width}", count, min(offset, len(text))).astype(np.uint64)
    windows *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: high bits mix best
    windows >>= np.uint64(64 - _HASH_BITS)
    return windows.view(np.int64)
