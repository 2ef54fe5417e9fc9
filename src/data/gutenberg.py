"""Project Gutenberg's frame around a book: its header, two marker lines and its licence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A marker's line, in lower case and without its stars.
_MARKERS = tuple(
    (f"{word} of {article} project gutenberg", word == "start")
    for word in ("start", "end")
    for article in ("the", "this")
)
_LONGEST_MARKER = max(len(words) for words, _ in _MARKERS)
# A title may run over so many characters and lines before the marker's closing stars.
_TITLE_CHARACTERS, _TITLE_LINES = 1000, 5
# A header and a licence are about 1,500 and 19,000 characters long.
_HEADER_CHARACTERS, _LICENCE_CHARACTERS = 10_000, 40_000
_HEADER_TITLES = ("the project gutenberg", "project gutenberg")
_HEADER_TERMS = ("this ebook is for the use of", "this etext is for the use of")
# A header's terms or fields begin at most so many lines after its title.
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
    opens: bool


def strip_gutenberg(text: str) -> str:
    """Remove Project Gutenberg's frames, and nothing else, from a text of any number of books.

    A frame is a START line with an END line after it. Removed are both lines; the header from its
    title line down to the START line; and after the END line the licence, from one of its known
    first lines to its known last one. Text before, between and after the frames stays, and so does
    everything in a text without a frame. The time is linear in the text.
    """
    frames = list(_frames(text))
    if not frames:
        return text
    pieces, done = [], 0
    ends = [start.start for start, _ in frames[1:]] + [len(text)]
    for (start, end), limit in zip(frames, ends, strict=True):
        pieces.append(text[done : _header_start(text, done, start.start)].strip("\n"))
        pieces.append(text[start.end : end.start].strip())
        done = _licence_end(text, end.end, limit)
    pieces.append(text[done:].strip("\n"))
    return "\n\n".join(piece for piece in pieces if piece.strip()) + "\n"


def _frames(text: str) -> Iterator[tuple[_Marker, _Marker]]:
    """Each END line with the last START line before it."""
    start = None
    for marker in _markers(text):
        if marker.opens:
            start = marker
        elif start is not None:
            yield start, marker
            start = None


def _markers(text: str) -> Iterator[_Marker]:
    at = text.find("***")
    while at >= 0:
        line = text.rfind("\n", 0, at) + 1
        marker = None if text[line:at].strip() else _marker_at(text, line, at + 3)
        if marker is not None:
            yield marker
        # At most one marker a line, so that no line is looked at twice.
        after = _line_end(text, at if marker is None else marker.end)
        at = text.find("***", after)


def _marker_at(text: str, line: int, after_stars: int) -> _Marker | None:
    words = text[after_stars : after_stars + _LONGEST_MARKER + 2].lower().lstrip(" ")
    known = next((pair for pair in _MARKERS if words.startswith(pair[0])), None)
    if known is None:
        return None
    phrase, opens = known
    title = after_stars + len(phrase)
    close = text.find("***", title, title + _TITLE_CHARACTERS)
    if close < 0 or text.count("\n", title, close) > _TITLE_LINES or "\n\n" in text[title:close]:
        return None
    rest = text[close + 3 : _line_end(text, close)]
    return _Marker(line, close + 3 + len(rest) - len(rest.lstrip("* \t")), opens)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _header_start(text: str, floor: int, start_line: int) -> int:
    """Where the header above a START line begins; the START line itself where none is known."""
    place = max(floor, start_line - _HEADER_CHARACTERS)
    if place > floor:
        place = min(start_line, _line_end(text, place) + 1)
    begin, title, lines_since_title = start_line, None, 0
    for line in text[place:start_line].split("\n"):
        words = line.strip("*\ufeff \t").lower()
        lines_since_title += 1
        if words.startswith(_HEADER_TITLES) and "license" not in words:
            title, lines_since_title = place, 0
        is_terms = words.startswith(_HEADER_TERMS)
        if title is not None and lines_since_title <= _HEADER_LINES:
            if is_terms or words.startswith(_HEADER_FIELDS):
                begin = title
        elif is_terms:
            begin = place
        place += len(line) + 1
    return begin


def _licence_end(text: str, after: int, limit: int) -> int:
    """Where the licence after an END line ends; at once where none is known."""
    part = text[after : min(limit, after + _LICENCE_CHARACTERS)]
    first_line = part.lstrip()[:100].lstrip("* ").lower()
    last = _LICENCE_ENDS.search(part) if first_line.startswith(_LICENCE_BEGINS) else None
    return after if last is None else min(limit, _line_end(text, after + last.end()))
