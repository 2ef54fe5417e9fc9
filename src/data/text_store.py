"""`TextStore`: the text of a corpus in one file, which is read piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ..tokenization.pieces import split_stream
from .scan import Scan
from .splits import SplitPlan

PIECE_CHARACTERS = 2**22
"""Longer documents are read in pieces of about so many characters."""
_CHUNK_BYTES = 2**20
_LISTED = 2**16  # documents whose figures are Python objects at a time


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the text of a corpus."""

    document: int = 0
    character: int = 0
    """Offset in the document, in characters."""
    byte: int = 0
    """The same in UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a document's training or held-out text."""

    text: str
    is_held_out: bool
    continues: bool
    """Whether the text continues that of the piece before."""
    end: Cursor | None
    """The position after it, if the text can be read from there."""


class TextStore:
    """The UTF-8 text of a corpus' documents, one after the other, in a file.

    Args:
        path: the file.
        scan: the scan of these documents.
    """

    def __init__(self, path: Path, scan: Scan) -> None:
        self._path, self._scan = path, scan

    def pieces(self, plan: SplitPlan, begin: Cursor | None = None) -> Iterator[Piece]:
        """Yield the text in pieces, in order.

        A long document is cut where its tokens are those of the uncut document.

        Args:
            plan: which text is held out; text that is on neither side is not read.
            begin: the position to start at: the end of a piece.
        """
        begin = begin or Cursor()
        sizes = self._scan.sizes
        with open(self._path, "rb") as file:
            file.seek(int(sizes[: begin.document].sum()) + begin.byte)
            for first in range(begin.document, len(sizes), _LISTED):
                for document, size in enumerate(sizes[first : first + _LISTED].tolist(), first):
                    at = begin if document == begin.document else Cursor(document)
                    spans = plan.spans(document)
                    if not spans:
                        file.seek(size - at.byte, 1)
                    elif size > PIECE_CHARACTERS or at.byte:
                        yield from _long_document(_Characters(file, size - at.byte), spans, at)
                    else:
                        text = file.read(size).decode()
                        end = Cursor(document + 1)
                        for span in spans:
                            is_last = span is spans[-1]
                            part = text[span[0] : span[1]]
                            yield Piece(part, span[2], False, end if is_last else None)


class _Characters:
    """Reads a number of bytes of a file as characters."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file, self._size, self._text = file, size, ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def read(self, count: int) -> Iterator[str]:
        """Yield the next `count` characters in chunks."""
        while count:
            if not self._text:
                data = self._file.read(min(self._size, _CHUNK_BYTES))
                self._size -= len(data)
                self._text = self._decode(data)
            chunk, self._text = self._text[:count], self._text[count:]
            count -= len(chunk)
            yield chunk


def _long_document(
    characters: _Characters, spans: list[tuple[int, int, bool]], at: Cursor
) -> Iterator[Piece]:
    position, byte = at.character, at.byte
    for start, end, is_held_out in spans:
        if end <= position:
            continue
        continues = position > start
        for text in split_stream(characters.read(end - position), PIECE_CHARACTERS):
            position += len(text)
            byte += len(text.encode())
            yield Piece(text, is_held_out, continues, Cursor(at.document, position, byte))
            continues = True
