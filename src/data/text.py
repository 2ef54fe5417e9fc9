"""Decode text in blocks, and read text files as documents."""

from __future__ import annotations

import codecs
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Literal

from ..config_keys import Normalization
from .charsets import (
    UTF8,
    declared_name,
    encoding_of_mark,
    escaped_encoding,
    guess_encoding,
    has_few_nuls,
    has_many_controls,
    is_ascii,
    is_damaged_utf8,
    is_valid,
    is_wide,
)
from .documents import MAX_CHARACTERS, Document
from .formats import NUL_PROBLEM
from .gutenberg import book_boundary, strip_gutenberg
from .inputs import BLOCK, Input
from .text_files import KINDS, Unreadable
from .wide_charsets import unmarked_wide

MAX_LINE = 2**25
"""Maximum characters of a line of JSON, or of a field of a table."""
# What editors and Python read in the first two lines of a file.
_CODING = re.compile(rb"(?:[^\n]*\n)?[^\n]*?coding[:=][ \t]*([\w.-]{1,40})", re.IGNORECASE)
_CODING_BYTES = 512
# Bytes after the first ones that are not ASCII, by which the encoding is chosen, at the least.
_CONTEXT = 4096
MAX_WHOLE_TEXT = 2**26
"""Maximum characters of a text that must be in memory to be parsed, such as a web page."""


class _Decoder:
    """Incremental decoder that chooses the encoding at the first bytes that are not ASCII."""

    def __init__(self, source: Input, declared: str | None) -> None:
        self._source = source
        self._declared = declared
        self._is_chosen = False
        self._encoding = UTF8
        self._decoder = codecs.getincrementaldecoder(UTF8)()
        self._bytes = self._lines = self._nuls = 0

    def decode(self, block: bytes, is_last: bool = False) -> str:
        """Decode the next block.

        Raises:
            Unreadable: if it is not text, or in another encoding than the blocks before.
        """
        size, block = len(block), self._without_nuls(block)
        if not self._is_chosen and not (self._bytes and is_ascii(block)):
            self._choose(block)
        try:
            text = self._decoder.decode(block, is_last)
        except UnicodeError as error:
            raise self._problem(block, error) from error
        if "\0" in text:
            line = self._lines + text.count("\n", 0, text.index("\0")) + 1
            raise binary_error(self._source, f":{line}")
        self._bytes += size
        self._lines += text.count("\n")
        return text

    def end_with_context(self, block: bytes) -> int:
        """Return where to end a block that others follow.

        If its first bytes that are not ASCII are at its end, it ends before them: the encoding is
        to be chosen by what follows them as well.
        """
        end = len(block) - _CONTEXT
        if self._is_chosen or end <= 0:
            return len(block)
        head, tail = block[: end + 4], block[end:]  # a shift has at most 4 bytes
        is_begun = not is_ascii(head) or b"~{" in head
        is_in_tail = not tail.isascii() or b"\x1b" in tail or b"~" in tail
        return end if is_in_tail and not is_begun else len(block)

    def _without_nuls(self, block: bytes) -> bytes:
        """Remove the NUL bytes of a block, counted as removed, if they are few.

        In other encodings than UTF-16 and UTF-32 no character has them.
        """
        if b"\0" not in block or is_wide(self._first_choice(block)):
            return block
        is_known = self._is_chosen or self._source.options.encoding is not None
        if not has_few_nuls(block, (self._nuls, self._bytes)):
            return block
        # Such as UTF-16 with few characters of ASCII.
        if not is_known and not is_valid(block, UTF8):
            return block
        found = block.count(0)
        self._nuls += found
        self._source.removed("NUL characters", found)
        return block.replace(b"\0", b"")

    def _first_choice(self, block: bytes) -> str:
        """Return the encoding, as far as it is known before it is guessed."""
        if self._is_chosen or self._bytes:
            return self._encoding
        found = encoding_of_mark(block) or self._source.options.encoding
        return found or unmarked_wide(block) or UTF8

    def _choose(self, block: bytes) -> None:
        """Choose the encoding, unless the block is ASCII, as all blocks before it are."""
        marked = None if self._bytes else encoding_of_mark(block)
        encoding = marked or self._source.options.encoding
        if encoding is None and is_ascii(block) and b"\0" not in block:
            return
        self._is_chosen = True
        is_utf8 = is_valid(block, UTF8) and escaped_encoding(block) is None
        if encoding is None and is_utf8 and b"\0" not in block:
            encoding = UTF8
        self._encoding = encoding or self._fitting(block)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()

    def _fitting(self, block: bytes) -> str:
        """Return the declared encoding if it fits, or a guess."""
        if b"\0" in block:
            guess = None if self._bytes else unmarked_wide(block)
            if guess is None:
                raise binary_error(self._source)
        elif (declared := self._declared_encoding(block)) is not None:
            return declared
        else:
            guess = None if is_damaged_utf8(block) else guess_encoding(block)
        if guess is None or not is_valid(block, guess):
            return UTF8  # and its error, which names the line
        if has_many_controls(codecs.getincrementaldecoder(guess)().decode(block)):
            raise self._source.error("not text", "not a text file (it has control characters)")
        self._source.note(f"read as {KINDS}, a guess (set encoding to change it)", guess)
        return guess

    def _declared_encoding(self, block: bytes) -> str | None:
        """Return the encoding that the text declares, if it fits."""
        names = [declared_name(self._declared), self._declared] if self._declared else []
        return next((name for name in names if is_valid(block, name)), None)

    def _problem(self, block: bytes, error: UnicodeError) -> Unreadable:
        # The decoder kept the beginning of a character of the block before.
        start = end = 0
        if isinstance(error, UnicodeDecodeError):
            end = max(0, error.start - len(error.object) + len(block))
            start = self._bytes + error.start - len(error.object) + len(block)
        line = self._lines + block[:end].count(b"\n") + 1
        name = "UTF-8" if self._encoding == UTF8 else self._encoding
        return self._source.error(
            f"not {name}",
            f"not {name} (byte {start}); set encoding, or save it as UTF-8, for example with "
            "iconv -f latin1 -t utf-8",
            f":{line}",
        )


def binary_error(source: Input, at: str = "") -> Unreadable:
    """Return the error for an input that has NUL bytes; `at` is their place."""
    return source.error("not text", NUL_PROBLEM, at)


def text_blocks(source: Input, declared: str | None = None) -> Iterator[str]:
    """Yield the text of an input in blocks, with line ends as the options say.

    The encoding is that of the options, that of a byte-order mark, UTF-8, the declared one, or a
    guess, which is noted.

    Args:
        source: the input.
        declared: the encoding that the text itself declares.

    Raises:
        Unreadable: if it is not text; the message names the line.
    """
    decoder = _Decoder(source, declared)
    keeps_line_ends = source.options.normalize == "none"
    carry = ""
    block = source.stream.read(BLOCK)
    while block:
        following = source.stream.read(BLOCK)
        if following and (end := decoder.end_with_context(block)) < len(block):
            block, following = block[:end], block[end:] + following
        text = carry + decoder.decode(block, is_last=not following)
        block, carry = following, ""
        if not keeps_line_ends:
            if following and text.endswith("\r"):  # perhaps the first half of a line end
                text, carry = text[:-1], "\r"
            text = unify_line_ends(text)
        yield text


def read_whole_text(source: Input, declared: str | None = None, limit: int = MAX_WHOLE_TEXT) -> str:
    """Return the complete text of an input, for formats that are parsed in memory.

    Args:
        source: the input.
        declared: the encoding that the text itself declares.
        limit: maximum number of characters.

    Raises:
        Unreadable: if it is not text, or larger than the limit.
    """
    parts, size = [], 0
    for block in text_blocks(source, declared):
        parts.append(block)
        size += len(block)
        if size > limit:
            raise source.error(
                "too large", f"more than {limit:,} characters, the limit of this format"
            )
    return "".join(parts)


def text_lines(source: Input) -> Iterator[str]:
    """Yield the lines of an input, without their `\\n`.

    Raises:
        Unreadable: if a line is longer than `MAX_LINE`; as in `text_blocks`.
    """
    number, rest = 0, ""
    for block in text_blocks(source):
        *complete, rest = (rest + block).split("\n")
        number += len(complete)
        yield from complete
        if len(rest) > MAX_LINE:
            raise source.error(
                "too large", f"the line has more than {MAX_LINE:,} characters", f":{number + 1}"
            )
    if rest:
        yield rest


def read_text(source: Input) -> Iterator[Document]:
    """Yield a text file as one document; a large one in pieces, of complete books if possible."""
    buffer: list[str] = []
    size = 0
    continues = False
    declared = _CODING.match(source.stream.peek(_CODING_BYTES)[:_CODING_BYTES])
    for block in text_blocks(source, declared[1].decode("ascii") if declared else None):
        buffer.append(block)
        size += len(block)
        if size >= 2 * MAX_CHARACTERS:
            text = "".join(buffer)
            end = book_boundary(text, MAX_CHARACTERS) or piece_end(text, MAX_CHARACTERS)
            buffer, text, size = [text[end:]], text[:end], len(text) - end
            yield source.document(_without_frames(source, text), continues=continues)
            continues = True
            del text  # of many MB, which are else kept while the next piece is read
    yield source.document(_without_frames(source, "".join(buffer)), continues=continues)


def _without_frames(source: Input, text: str) -> str:
    if not source.options.clean:
        return text
    stripped = strip_gutenberg(text)
    source.removed("header and licence of Project Gutenberg", len(text) - len(stripped))
    return stripped


def piece_end(text: str, limit: int) -> int:
    """Return where to end the first piece of a text: after a line end or white space if possible.

    Args:
        text: a text of more than `limit` characters.
        limit: maximum characters of the piece.
    """
    nearest = max(text.rfind(end, limit // 2, limit) for end in ("\n", " ")) + 1
    line = text.rfind("\n", limit // 2, limit) + 1
    end = line or nearest or limit
    while unicodedata.combining(text[end]) and end > limit // 2:  # an accent stays with its letter
        end -= 1
    return end


def join_pieces(documents: Iterator[Document]) -> Iterator[Document]:
    """Join small pieces of documents to pieces of about `MAX_CHARACTERS` characters."""
    parts: list[Document] = []
    size = 0
    for document in documents:
        if parts and (not document.continues or size + len(document.text) > MAX_CHARACTERS):
            yield replace(parts[0], text="".join(part.text for part in parts))
            parts, size = [], 0
        parts.append(document)
        size += len(document.text)
    if parts:
        yield replace(parts[0], text="".join(part.text for part in parts))


def pieces(document: Document) -> Iterator[Document]:
    """Split a document of more than `MAX_CHARACTERS` characters."""
    text, continues = document.text, document.continues
    while len(text) > MAX_CHARACTERS:
        end = piece_end(text, MAX_CHARACTERS)
        yield Document(text[:end], document.source, continues)
        text, continues = text[end:], True
    yield Document(text, document.source, continues)


def normalize(text: str, how: Normalization) -> str:
    """Normalize line ends and Unicode as an option says."""
    if how == "none":
        return text
    text = unify_line_ends(text)
    if how == "lines":
        return text
    form: Literal["NFC", "NFKC"] = "NFC" if how == "nfc" else "NFKC"
    if text.isascii():
        return text
    parts = _without_long_marks(text)
    for index in range(0, len(parts), 2):
        if not unicodedata.is_normalized(form, parts[index]):
            parts[index] = unicodedata.normalize(form, parts[index])
    return "".join(parts)


def _without_long_marks(text: str) -> list[str]:
    """Split a text at runs of combining marks that are longer than in any language.

    Every second part is such a run, which stays as it is: normalizing takes quadratic time in it.
    """
    candidates, runs = _long_marks()
    return runs.split(text) if candidates.search(text) else [text]


@cache
def _long_marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of runs of marks: a fast one, which also finds others, and an exact one."""
    marks = "".join(filter(unicodedata.combining, map(chr, range(sys.maxunicode + 1))))
    common = "".join(mark for mark in marks if mark <= "\uffff")
    return re.compile(f"(?:[{common}]|[^\0-\uffff]){{64,}}"), re.compile(f"([{marks}]{{64,}})")


def unify_line_ends(text: str) -> str:
    r"""Replace all line ends (CRLF, CR) with `\n`."""
    if "\r" not in text:
        return text
    return text.replace("\r\n", "\n").replace("\r", "\n")
