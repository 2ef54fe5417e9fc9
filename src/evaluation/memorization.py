"""Memorization: how much of a generated text is copied verbatim from the training text."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """Overlap of a generated text with the training text."""

    known_words: float
    """Fraction of the generated words that occur in the training text, 0 to 1."""
    longest_copy: str
    """Longest span that occurs verbatim in the training text."""


def measure_overlap(generated: str, training_text: str) -> Overlap:
    """Measure the overlap of a generated text with the training text."""
    vocabulary = set(_words(training_text))
    words = _words(generated)
    known = sum(word in vocabulary for word in words) / max(len(words), 1)
    return Overlap(known, longest_common_span(generated, training_text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def longest_common_span(generated: str, training_text: str) -> str:
    """Return the longest common substring of a generated text and the training text.

    A common span of at least 8 characters consists of 8-grams of `training_text` that all occur in
    `generated`. In natural language few positions do, so only those are searched. If they contain
    no such span, the search is repeated with 4-grams, 2-grams, and then on all of the text.

    Args:
        generated: the generated text.
        training_text: the training text.
    """
    best = ""
    if not generated:
        return best
    # In chunks, which bounds memory. They overlap by len(generated), so no common span is cut.
    size = max(_MIN_CHUNK_CHARACTERS, len(generated))
    for width in (8, 4, 2, 1):
        for start in range(0, len(training_text), size):
            chunk = training_text[start : start + size + len(generated)]
            best = max(best, _search_span(generated, chunk, width), key=len)
        if len(best) >= width:  # any other common span is shorter than `width`
            break
    return best


# Minimum characters of a chunk.
_MIN_CHUNK_CHARACTERS = 1 << 20


def _search_span(generated: str, training_text: str, min_length: int) -> str:
    """Return the longest common substring; if below `min_length` characters, perhaps a shorter one.

    Equal windows get equal integer ids; the id of a window follows from those of two narrower
    windows that cover it (Karp, Miller and Rosenberg, 1972). The width is doubled while any window
    is common, then increased by decreasing powers of two: O(n log n log s) time for a span
    of s characters.
    """
    shared = _ngram_filter(generated, training_text, min_length)
    if not shared.any():
        return ""
    kept = shared.copy()
    kept[1:] |= shared[:-1]  # and the character after, as a separator
    known, generated_ids = np.unique(_code_points(generated), return_inverse=True)
    training_ids = np.where(
        shared[kept], _window_ids(known, _code_points(training_text)[kept], _NUM_CODE_POINTS), -1
    )
    if not (training_ids >= 0).any():
        return ""
    width = 1
    while (wider := _widen(generated_ids, training_ids, width)) is not None:
        (generated_ids, training_ids), width = wider, 2 * width
    step = width // 2
    while step:
        if (wider := _widen(generated_ids, training_ids, step)) is not None:
            (generated_ids, training_ids), width = wider, width + step
        step //= 2
    start = int(np.argmax(generated_ids == training_ids.max()))
    return generated[start : start + width]


def _code_points(text: str) -> np.ndarray:
    """Return the code points of a text, of shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# Number of Unicode code points.
_NUM_CODE_POINTS = 0x110000


def _window_ids(known: np.ndarray, values: np.ndarray, bound: int) -> np.ndarray:
    """Return the index of each value (-1 to `bound` - 1) in the sorted `known`, or -1."""
    if bound <= 4 * len(values):  # a lookup table is faster than binary search
        table = np.full(bound + 1, -1)  # one more, so that the value -1 maps to -1
        table[known] = np.arange(len(known))
        return table[values]
    indices = np.searchsorted(known, values)
    indices[indices == len(known)] = 0
    indices[known[indices] != values] = -1
    return indices


def _widen(
    generated_ids: np.ndarray, training_ids: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the ids of windows that are wider by `step`, or `None` if none is common.

    Args:
        generated_ids: id of the window that starts at each character of the generated text.
        training_ids: the same for the training text; -1 if the generated text has no such window.
        step: characters, at most the current width.
    """
    if step >= min(len(generated_ids), len(training_ids)):
        return None
    count = int(generated_ids.max()) + 1
    known, generated_ids = np.unique(
        generated_ids[:-step] * count + generated_ids[step:], return_inverse=True
    )
    first, second = training_ids[:-step], training_ids[step:]
    pairs = np.where((first >= 0) & (second >= 0), first * count + second, -1)
    training_ids = _window_ids(known, pairs, count * count)
    return (generated_ids, training_ids) if (training_ids >= 0).any() else None


def _ngram_filter(generated: str, training_text: str, width: int) -> np.ndarray:
    """Return which characters of `training_text` are in a `width`-gram that `generated` may have.

    A filter like a Bloom filter, over a hash of the characters' lowest bytes: it may have false
    positives, but no false negatives.

    Args:
        generated: the generated text.
        training_text: the training text.
        width: 8, 4 or 2; 1 selects all characters.
    """
    if width == 1 or min(len(generated), len(training_text)) < width:
        return np.full(len(training_text), width == 1)
    known = np.zeros(2**_HASH_BITS, dtype=bool)
    text = _low_bytes(generated)
    for offset in range(width):
        known[_window_hashes(text, offset, width)] = True
    text = _low_bytes(training_text)
    begins = np.zeros(len(training_text), dtype=bool)
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
