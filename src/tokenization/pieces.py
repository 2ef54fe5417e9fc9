"""Split long texts for the BPE tokenizer, in linear time and bounded memory, for any script.

BPE merges only within a word of the pre-tokenizer, so a text can be split at a word boundary
without changing its tokens. Text without spaces (DNA, base64, some Chinese) can be one word of many
megabytes, which is split at a fixed length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

MAX_RUN = 1200
"""Maximum characters without a known word boundary that are encoded together. A longer run is split
every 1,200 characters from its beginning, so its tokens do not depend on the surrounding text."""

PIECE = 1 << 13
"""Approximate characters per piece. The library allocates about 400 bytes per token of a piece."""

# Only characters whose category is the same in all versions of Unicode. The apostrophe is in
# neither class: contractions begin with it.
_LETTERS = "A-Za-zÀ-ÖØ-öø-ɏА-яא-תء-غぁ-ゖァ-ヺ一-龥가-힣"
_MARKS = "!-&(-/:-@\\[-`{-~、。，．！？：；「」『』（）《》“”…—·"
# Every pre-tokenizer that `tokenizer_json` allows begins a word here.
_BOUNDARY = (
    r"(?<=\S)(?= )"
    rf"|(?<=[{_LETTERS}])(?=[\n0-9{_MARKS}])"
    rf"|(?<=[0-9])(?=[\n{_LETTERS}{_MARKS}])"
)
_LAST_BOUNDARY = re.compile(rf"(?s:.)+(?:{_BOUNDARY})")


def well_formed(text: str) -> str:
    """Replace lone surrogates, which are invalid in UTF-8 and which the library rejects, by `?`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def split_text(text: str, run: int = MAX_RUN, size: int = PIECE) -> Iterator[str]:
    """Split a text at known word boundaries into pieces of about `size` characters.

    Args:
        text: the text.
        run: maximum characters without a boundary, after which the text is split anyway.
        size: minimum characters of a piece that ends at a boundary.

    Yields:
        Pieces of at most `size + run` characters, whose concatenation is the text.
    """
    start = position = 0
    while len(text) - position > run:
        # One character more than `run`: the lookahead of a boundary needs the next character.
        found = _LAST_BOUNDARY.match(text, position, position + run + 1)
        position = position + run if found is None else found.end()
        if found is None or position - start >= size:
            yield text[start:position]
            start = position
    if start < len(text):
        yield text[start:]


def split_stream(chunks: Iterable[str], size: int, run: int = MAX_RUN) -> Iterator[str]:
    """Split a text that arrives in chunks into pieces that `split_text` splits as it does the text.

    Args:
        chunks: the text, in chunks of any size.
        size: minimum characters of a piece, but for the last.
        run: as for `split_text`.

    Yields:
        Pieces of less than `size + run` characters, whose concatenation is the text.
    """
    text, start, position = "", 0, 0
    for chunk in chunks:
        text, position, start = text[start:] + chunk, position - start, 0
        while len(text) - position > run:
            found = _LAST_BOUNDARY.match(text, position, position + run + 1)
            position = position + run if found is None else found.end()
            if position - start >= size:
                yield text[start:position]
                start = position
    if start < len(text):
        yield text[start:]


# Average characters per word from which a text counts as without spaces: such words rarely repeat.
_LONG_WORD = 16
_STRETCH_CHARACTERS = 1 << 16  # characters of a stretch, over which that average is taken


class SpacelessSample:
    """Sample of the text without spaces in a corpus: the BPE trainer stores every distinct word.

    Every text without spaces is in the sample with the same probability, `1 / rate`.

    Args:
        limit: maximum characters of the sample.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.characters = 0
        """Characters of all text without spaces."""
        self.stretches: list[str] = []
        """The sample: every `rate`-th stretch of such text."""
        self.rate = 1
        self._count = self._size = 0

    def take(self, text: str) -> Iterator[str]:
        """Yield the stretches of a text that have spaces; sample the others."""
        for stretch in split_text(text, size=_STRETCH_CHARACTERS):
            words = 1 + sum(map(stretch.count, " \n\t"))
            if len(stretch) < _LONG_WORD * words:
                yield stretch
            else:
                self._add(stretch)

    def _add(self, stretch: str) -> None:
        self.characters += len(stretch)
        if self._count % self.rate == 0:
            self.stretches.append(stretch)
            self._size += len(stretch)
        self._count += 1
        while self._size > self._limit and len(self.stretches) > 1:
            self.rate *= 2
            self.stretches = self.stretches[::2]
            self._size = sum(map(len, self.stretches))
