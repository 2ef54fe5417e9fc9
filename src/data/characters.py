"""Count the characters of a text by script, and those that a clean text does not have."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

CONTROL, REPLACEMENT, PRIVATE, INVISIBLE, INVALID = (
    "control characters",
    "replacement characters (U+FFFD)",
    "private-use characters",
    "invisible characters",
    "lone surrogates and noncharacters",
)
MOJIBAKE = "UTF-8 that was decoded as another encoding"
ODD = (CONTROL, REPLACEMENT, PRIVATE, INVISIBLE, INVALID, MOJIBAKE)
"""What a clean text does not have."""
OTHER_SCRIPT = "another script"

_NAMED = (
    "Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi Gujarati"
    " Oriya Tamil Telugu Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Hangul"
    " Ethiopic Cherokee Khmer Mongolian Hiragana Katakana Bopomofo Runic Coptic Gothic Yi"
)
_SCRIPTS = _NAMED.split()
SCRIPTS = (*_SCRIPTS, "Han", OTHER_SCRIPT)
# Classes of characters: 0 for digits, punctuation and the like, then the scripts, then odd ones.
_FIRST_ODD = 1 + len(SCRIPTS)
_NUM_CLASSES = _FIRST_ODD + len(ODD) - 1
# White space that texts have: tab, line feed, form feed, carriage return.
_WHITE_SPACE = (0x09, 0x0A, 0x0C, 0x0D)
# Soft hyphen, zero-width and direction marks, byte-order marks, interlinear annotation, tags. Not
# the joiners U+200C and U+200D, which Persian, the scripts of India and emoji need.
_INVISIBLE = (
    (0xAD, 0xAD), (0x200B, 0x200B), (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F),
    (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB), (0xE0000, 0xE007F),
)  # fmt: skip
_PRIVATE = ((0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))
_HAN = ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_HANGUL = (0xAC00, 0xD7A3)

# Bytes of UTF-8 after the first, decoded as Windows-1252 or Latin-1.
_TAIL = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
# Only sequences that are in no correct text: »é»…« may end a quotation.
_MOJIBAKE = re.compile(
    f"[ÂÃÎÐ]{_TAIL}|â€{_TAIL}|(?:[à-ï]{_TAIL}{{2}}){{2,}}|ð[Ÿ\x9f]{_TAIL}{{2}}|ï»¿"
)


@cache
def _classes() -> np.ndarray:
    """Return the class of every code point."""
    classes = np.zeros(sys.maxunicode + 1, np.uint8)
    for code, name in _named_letters():
        classes[code] = 1 + SCRIPTS.index(name)
    ranges = [(*each, 1 + SCRIPTS.index("Han")) for each in _HAN]
    ranges.append((*_HANGUL, 1 + SCRIPTS.index("Hangul")))
    odd = {name: _FIRST_ODD + index for index, name in enumerate(ODD)}
    ranges += [(0x00, 0x1F, odd[CONTROL]), (0x7F, 0x9F, odd[CONTROL])]
    ranges += [(*each, odd[INVISIBLE]) for each in _INVISIBLE]
    ranges += [(*each, odd[PRIVATE]) for each in _PRIVATE]
    ranges += [(0xFFFD, 0xFFFD, odd[REPLACEMENT]), (0xD800, 0xDFFF, odd[INVALID])]
    ranges.append((0xFDD0, 0xFDEF, odd[INVALID]))
    ranges += [
        (plane + 0xFFFE, plane + 0xFFFF, odd[INVALID]) for plane in range(0, 0x110000, 2**16)
    ]
    for first, last, number in ranges:
        classes[first : last + 1] = number
    classes[list(_WHITE_SPACE)] = 0
    return classes


def _named_letters() -> Iterator[tuple[int, str]]:
    """Yield the letters and marks, but those that have ranges of their own, with their scripts."""
    known = {name.upper(): name for name in _SCRIPTS}
    for code in (
        *range(0x2E80),
        *range(0x2FE0, 0x3400),
        *range(0xA000, 0xD800),
        *range(0xFA00, 2**17),
    ):
        character = chr(code)
        if unicodedata.category(character)[0] in "LM" and not _HANGUL[0] <= code <= _HANGUL[1]:
            words = unicodedata.name(character, "").split()
            if words[:1] in (["FULLWIDTH"], ["HALFWIDTH"]):
                del words[0]
            if words[:1] != ["COMBINING"]:
                name = words[0].partition("-")[0] if words else ""
                yield code, known.get(name, OTHER_SCRIPT)


@dataclass
class OddCharacters:
    """Characters of one kind that a clean text does not have."""

    count: int = 0
    documents: int = 0
    """Number of documents that contain them."""
    example: str = ""
    """Name of the first of these documents."""
    last: int = -1
    """Index of the last of these documents."""

    def add(self, count: int, document: int, name: str) -> None:
        """Count characters of a document; pieces of one document may come one after the other."""
        if count:
            self.example = self.example or name
            self.count += count
            self.documents += document != self.last
            self.last = document


@dataclass
class CharacterCounts:
    """Counts of characters, of documents that are added one after the other."""

    scripts: Counter[str] = field(default_factory=Counter)
    """Letters of each script."""
    odd: dict[str, OddCharacters] = field(default_factory=lambda: {k: OddCharacters() for k in ODD})
    _batch: list[tuple[str, int, str]] = field(default_factory=list)
    _size: int = 0

    def add(self, text: str, document: int, name: str) -> None:
        """Count a text: a document, or the next piece of it.

        Args:
            text: the text.
            document: index of the document.
            name: its name.
        """
        for first in range(0, len(text), _BATCH_CHARACTERS):
            part = text[first : first + _BATCH_CHARACTERS]
            self._batch.append((part, document, name))
            self._size += len(part)
            if self._size >= _BATCH_CHARACTERS:
                self.finish()

    def finish(self) -> None:
        """Count what was added last."""
        if self._batch:
            self._count(self._batch)
        for text, document, name in self._batch:
            if not text.isascii():
                self.odd[MOJIBAKE].add(sum(1 for _ in _MOJIBAKE.finditer(text)), document, name)
        self._batch, self._size = [], 0

    def _count(self, batch: list[tuple[str, int, str]]) -> None:
        joined = "".join(text for text, _, _ in batch).encode("utf-32-le", "surrogatepass")
        found = _classes()[np.frombuffer(joined, np.uint32)]
        for number, count in enumerate(np.bincount(found, minlength=_NUM_CLASSES).tolist()):
            if 0 < number < _FIRST_ODD and count:
                self.scripts[SCRIPTS[number - 1]] += count
        places = np.flatnonzero(found >= _FIRST_ODD)
        if not len(places):
            return
        ends = np.cumsum([len(text) for text, _, _ in batch])
        owners = np.searchsorted(ends, places, "right")
        keys, counts = np.unique(owners * _NUM_CLASSES + found[places], return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            _, document, name = batch[key // _NUM_CLASSES]
            self.odd[ODD[key % _NUM_CLASSES - _FIRST_ODD]].add(count, document, name)


# Many small documents are counted at a time: one by one they would take long.
_BATCH_CHARACTERS = 2**20
