"""Remove Project Gutenberg boilerplate: the header, START and END markers, and the licence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Beginning of a marker line, lower-cased and without asterisks; and whether it is START.
_MARKERS = tuple(
    (f"{word} of {article} project gutenberg", word == "start")
    for word in ("start", "end")
    for article in ("the", "this")
)
_MAX_MARKER_CHARACTERS = max(len(words) for words, _ in _MARKERS)
# Maximum length of a title, before the closing asterisks of its marker.
_TITLE_CHARACTERS, _TITLE_LINES = 1000, 5
# Search limits: a header has about 1,500 characters, a licence about 19,000.
_HEADER_CHARACTERS, _LICENCE_CHARACTERS = 10_000, 40_000
_HEADER_TITLES = ("the project gutenberg", "project gutenberg")
_HEADER_TERMS = ("this ebook is for the use of", "this etext is for the use of")
# Maximum lines from a header's title to its terms or fields.
_HEADER_LINES = 8
_HEADER_FIELDS = ("title:", "author:", "release date:", "posting date:", "language:")
_LICENCE_BEGINS = (
    "updated editions will replace",
    "this file should be named",
    "this and all associated files",
    "end of the project gutenberg",
    "end of project gutenberg",
    "start: full license",
    "the full project gutenberg",
    "creating the works from",
)
_LICENCE_ENDS = re.compile("to hear about new ebooks", re.IGNORECASE)


@dataclass(frozen=True)
class _Marker:
    start: int
    end: int
    is_start: bool


def strip_gutenberg(text: str) -> str:
    """Remove Project Gutenberg boilerplate from a text with any number of books.

    For each pair of START and END markers, this removes both lines, the header from its title line
    to the START line, and the licence after the END line, from a known first line to its known last
    line. All other text is kept, and a text without such a pair is returned unchanged. Time is
    linear in the text.
    """
    pairs = list(_marker_pairs(text))
    if not pairs:
        return text
    pieces, done = [], 0
    ends = [start.start for start, _ in pairs[1:]] + [len(text)]
    for (start, end), limit in zip(pairs, ends, strict=True):
        pieces.append(text[done : _header_start(text, done, start.start)].strip("\n"))
        pieces.append(text[start.end : end.start].strip())
        done = _licence_end(text, end.end, limit)
    pieces.append(text[done:].strip("\n"))
    return "\n\n".join(piece for piece in pieces if piece.strip()) + "\n"


def book_boundary(text: str, limit: int) -> int:
    """Return the offset of the last header of a book in the first `limit` characters of a text.

    A text that is cut there has no header, or licence, on both sides of the cut. 0 if there is no
    such header after the beginning.
    """
    boundary = done = 0
    for marker in _markers(text):
        if marker.start > limit + _HEADER_CHARACTERS:
            break
        if marker.is_start and (begin := _header_start(text, done, marker.start)) <= limit:
            boundary = begin
        done = marker.end
    return boundary


def _marker_pairs(text: str) -> Iterator[tuple[_Marker, _Marker]]:
    """Yield each END marker with the last START marker before it."""
    start = None
    for marker in _markers(text):
        if marker.is_start:
            start = marker
        elif start is not None:
            yield start, marker
            start = None


def _markers(text: str) -> Iterator[_Marker]:
    offset = text.find("***")
    while offset >= 0:
        line = text.rfind("\n", 0, offset) + 1
        marker = None if text[line:offset].strip() else _marker_at(text, line, offset + 3)
        if marker is not None:
            yield marker
        # At most one marker per line, so that each line is scanned once.
        after = _line_end(text, offset if marker is None else marker.end)
        offset = text.find("***", after)


def _marker_at(text: str, line: int, after_stars: int) -> _Marker | None:
    words = text[after_stars : after_stars + _MAX_MARKER_CHARACTERS + 2].lower().lstrip(" ")
    known = next((pair for pair in _MARKERS if words.startswith(pair[0])), None)
    if known is None:
        return None
    phrase, is_start = known
    title = after_stars + len(phrase)
    close = text.find("***", title, title + _TITLE_CHARACTERS)
    if close < 0 or text.count("\n", title, close) > _TITLE_LINES or "\n\n" in text[title:close]:
        return None
    rest = text[close + 3 : _line_end(text, close)]
    return _Marker(line, close + 3 + len(rest) - len(rest.lstrip("* \t")), is_start)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _header_start(text: str, floor: int, start_line: int) -> int:
    """Return the offset of the header above a START line, or `start_line` if there is none."""
    offset = max(floor, start_line - _HEADER_CHARACTERS)
    if offset > floor:
        offset = min(start_line, _line_end(text, offset) + 1)
    begin, title, lines_since_title = start_line, None, 0
    for line in text[offset:start_line].split("\n"):
        words = line.strip("*\ufeff \t").lower()
        lines_since_title += 1
        if words.startswith(_HEADER_TITLES) and "license" not in words:
            title, lines_since_title = offset, 0
        is_terms = words.startswith(_HEADER_TERMS)
        if title is not None and lines_since_title <= _HEADER_LINES:
            if is_terms or words.startswith(_HEADER_FIELDS):
                begin = title
        elif is_terms:
            begin = offset
        offset += len(line) + 1
    return begin


def _licence_end(text: str, after: int, limit: int) -> int:
    """Return the end offset of the licence after an END line, or `after` if there is none."""
    part = text[after : min(limit, after + _LICENCE_CHARACTERS)]
    first_line = part.lstrip()[:100].lstrip("* ").lower()
    last = _LICENCE_ENDS.search(part) if first_line.startswith(_LICENCE_BEGINS) else None
    return after if last is None else min(limit, _line_end(text, after + last.end()))
