"""Memorization: how much of a generated text is copied verbatim from the training text."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np


def known_words(generated: str, training_text: str) -> float | None:
    """Return the fraction of the generated words that occur in the training text, 0 to 1.

    Words are runs of letters. In a text without spaces, such as Chinese or DNA, they are not words
    of the language, and hardly any occurs twice.

    Returns:
        The fraction, or `None` if there are no generated words, or if at most `_MIN_RECURRENCE`
        of the training text's words occur in it again.
    """
    words, counts = _words(generated), Counter(_words(training_text))
    total, recurring = counts.total(), sum(count for count in counts.values() if count > 1)
    if not words or recurring <= _MIN_RECURRENCE * total:
        return None
    return sum(word in counts for word in words) / len(words)


# Minimum fraction of recurring words. It is about 0.4 in 100 words of English, 0.95 in a book;
# below 0.3 in Chinese, Japanese and Thai, whose runs of letters are clauses, and 0 in DNA.
_MIN_RECURRENCE = 1 / 3


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def longest_common_span(generated: str, training_text: str) -> str:
    """Return the longest common substring of a generated text and the training text.

    By n-gram overlap and extension: a common span of at least 8 characters is in a run of 8-grams
    of `training_text` that all occur in `generated`. Few runs are long, and those are searched. If
    they contain no such span, the search is repeated with 4-grams, 2-grams and single characters.

    Args:
        generated: the generated text.
        training_text: the training text.
    """
    best = ""
    if not generated:
        return best
    substrings = SuffixAutomaton(generated)
    # In chunks, which bounds memory. They overlap by len(generated), so no common span is cut.
    size = max(_MIN_CHUNK_CHARACTERS, len(generated))
    for width in (8, 4, 2, 1):
        for start in range(0, len(training_text), size):
            chunk = training_text[start : start + size + len(generated)]
            for first, last in _runs(_ngram_filter(generated, chunk, width)):
                if last - first <= len(best):
                    break
                best = max(best, substrings.longest_in(chunk[first:last]), key=len)
        if len(best) >= width:  # any other common span is shorter than `width`
            break
    return best


# Minimum characters of a chunk.
_MIN_CHUNK_CHARACTERS = 1 << 20


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return start and end of each run of true elements, longest first."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    order = np.argsort(edges[:, 0] - edges[:, 1], kind="stable")
    return [(first, last) for first, last in edges[order].tolist()]


class SuffixAutomaton:
    """The minimal automaton of all substrings of a text (Blumer et al., 1985).

    A state stands for the substrings that end at the same positions. `_link` leads to the state of
    the longest of their suffixes that ends at other positions, too.

    Args:
        text: any text; time and memory are linear in its length.
    """

    def __init__(self, text: str) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._link, self._length = [-1], [0]
        last = 0
        for character in text:
            last = self._append(last, character)

    def _append(self, last: int, character: str) -> int:
        """Append a character to the text of which `last` is the state; return the new state."""
        new = self._add_state({}, self._length[last] + 1, 0)
        state = last
        while state >= 0 and character not in self._next[state]:
            self._next[state][character] = new
            state = self._link[state]
        if state < 0:
            return new
        target = self._next[state][character]
        if self._length[target] > self._length[state] + 1:
            # Its shorter substrings end at the new position, too: they get a state of their own.
            longer, length = target, self._length[state] + 1
            target = self._add_state(dict(self._next[longer]), length, self._link[longer])
            self._link[longer] = target
            while state >= 0 and self._next[state].get(character) == longer:
                self._next[state][character] = target
                state = self._link[state]
        self._link[new] = target
        return new

    def _add_state(self, transitions: dict[str, int], length: int, link: int) -> int:
        self._next.append(transitions)
        self._length.append(length)
        self._link.append(link)
        return len(self._next) - 1

    def longest_in(self, text: str) -> str:
        """Return the longest substring of `text` that occurs in the automaton's text."""
        state = length = best = end = 0
        for position, character in enumerate(text, 1):
            while state and character not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if character in self._next[state]:
                state = self._next[state][character]
                length += 1
                if length > best:
                    best, end = length, position
        return text[end - best : end]


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
