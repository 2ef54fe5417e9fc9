"""How much of a generated text is copied from the training text."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Originality:
    """How a written text relates to the text that the model learned from."""

    known_words: float
    """The share of its words that occur there."""
    longest_copy: str
    """The longest span that stands there letter for letter."""


def originality(written: str, learned: str) -> Originality:
    """Compare what a model wrote with what it learned from."""
    vocabulary = set(_words(learned))
    words = _words(written)
    known = sum(word in vocabulary for word in words) / max(len(words), 1)
    return Originality(known, longest_common_span(written, learned))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def longest_common_span(written: str, learned: str) -> str:
    """The longest substring of `written` that occurs in `learned`.

    A common span of 8 letters or more lies where every 8 letters of `learned` in a row occur in
    `written`, too. In a language such places are few and short: only they are searched. Where that
    finds nothing, the same with 4 letters, with 2, and in all of the text.
    """
    best = ""
    if not written:
        return best
    # In stretches, so that memory is bounded; no span is cut, as none is longer than `written`.
    size = max(_STRETCH, len(written))
    for width in (8, 4, 2, 1):
        for start in range(0, len(learned), size):
            stretch = learned[start : start + size + len(written)]
            best = max(best, _search_span(written, stretch, width), key=len)
        if len(best) >= width:  # what is left is shorter
            break
    return best


# Letters that are looked at together.
_STRETCH = 1 << 20


def _search_span(written: str, learned: str, least: int) -> str:
    """The longest common substring where it has `least` letters or more; else perhaps another.

    Equal windows of letters get equal names, the wider ones by the names of two narrower ones that
    cover them (Karp, Miller and Rosenberg, 1972). Their width is doubled for as long as a window is
    common, then increased by ever smaller powers of two: the time is that of a sort or a search
    for each letter, times the logarithm of the span's length.
    """
    shared = _seem_shared(written, learned, least)
    if not shared.any():
        return ""
    kept = shared.copy()
    kept[1:] |= shared[:-1]  # with a letter that keeps the places apart
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
    """The letters' numbers, (letters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# There are no more in Unicode.
_LETTERS = 0x110000


def _names(known: np.ndarray, values: np.ndarray, bound: int) -> np.ndarray:
    """The place of each value, -1 or below `bound`, among the sorted known ones; or -1."""
    if bound <= 4 * len(values):  # a table is worth its making
        table = np.full(bound + 1, -1)  # at whose end -1 finds itself
        table[known] = np.arange(len(known))
        return table[values]
    places = np.searchsorted(known, values)
    places[places == len(known)] = 0
    places[known[places] != values] = -1
    return places


def _widen(ours: np.ndarray, theirs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Name windows that are wider by `step`, at most twice as wide; `None` if none is shared.

    Args:
        ours: the name of the window that begins at each letter.
        theirs: the same of another text; -1 where we have no such window.
        step: letters.
    """
    if step >= min(len(ours), len(theirs)):
        return None
    count = int(ours.max()) + 1
    known, ours = np.unique(ours[:-step] * count + ours[step:], return_inverse=True)
    first, second = theirs[:-step], theirs[step:]
    pairs = np.where((first >= 0) & (second >= 0), first * count + second, -1)
    theirs = _names(known, pairs, count * count)
    return (ours, theirs) if (theirs >= 0).any() else None


def _seem_shared(written: str, learned: str, width: int) -> np.ndarray:
    """Which letters of `learned` (letters,) lie in `width` letters that seem to be in `written`.

    Letters count by their lowest byte, and windows by a hash: what seems equal may not be.

    Args:
        written: a text.
        learned: another.
        width: 8, 4 or 2; with 1 all letters count.
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


_HASH_BITS = 22


def _low_bytes(text: str) -> bytes:
    """The lowest byte of each letter."""
    return text.encode("utf-32-le", "surrogatepass")[::4]


def _window_hashes(text: bytes, offset: int, width: int) -> np.ndarray:
    """A hash of the `width` bytes (2, 4 or 8) at offset, offset + width, ..."""
    count = max(0, (len(text) - offset) // width)
    windows = np.frombuffer(text, f"<u{width}", count, min(offset, len(text))).astype(np.uint64)
    windows *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the highest bits are the best
    windows >>= np.uint64(64 - _HASH_BITS)
    return windows.view(np.int64)
