"""Read SubRip (srt) and WebVTT subtitles: their lines, without numbers and times."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from .documents import Document
from .inputs import Input
from .text import read_whole_text

# Times and arrows as programs and people write them: with a colon before the milliseconds, without
# them, with spaces.
_CLOCK = r"\d{1,9}(?:\s?[:.,;]\s?\d{1,9}){2,3}"
_TIME = re.compile(rf"\s*{_CLOCK}\s*(?:-\s?-?|–|—)>\s*{_CLOCK}")
_NUMBER = re.compile(r"\s*\d+\s*")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>|</?\d[\d:.]{0,20}>|\{\\[^{}\n]{0,200}\}")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[a-zA-Z]\w{0,31});")
# Marks of the direction of writing, which say how a player arranges a line.
_DIRECTIONS = {"&lrm;": "", "&rlm;": ""}
_VTT_COMMENT = re.compile(r"(?:NOTE(?:\s|$)|(?:STYLE|REGION)\s*$)")


def read_subtitles(source: Input) -> Iterator[Document]:
    """Yield the text of all cues as one document.

    A cue ends at the times of the next one: blank lines may be in its text, or be missing after it.
    Lines before the first cue are counted as skipped, unless they are the head of WebVTT.

    Raises:
        Unreadable: if there are no cues.
    """
    text = read_whole_text(source)
    cues = _Cues(is_vtt=text.lstrip("\ufeff").startswith("WEBVTT"))
    for line in text.split("\n"):
        cues.add(line)
    if not cues.has_cues:
        raise source.error(
            "broken subtitles",
            "not subtitles: there is no line such as 00:00:01,000 --> 00:00:02,000",
        )
    for line in cues.before:
        source.report.skipped.add(
            "lines before the first cue",
            f"{source.name}: {line}",
            size=len(line),
            unit="characters",
        )
    yield source.document("\n".join(map(_plain, cues.lines)) + "\n")


class _Cues:
    """Collects the lines of cues.

    Args:
        is_vtt: whether there are a head, comments and names of cues, as in WebVTT.
    """

    def __init__(self, is_vtt: bool) -> None:
        self.has_cues = False
        self.before: list[str] = []
        """Lines before the first cue."""
        self.lines: list[str] = []
        """Lines of all cues so far, and perhaps the number of the next one."""
        self._is_vtt = is_vtt
        self._is_numbered = False
        self._is_comment = is_vtt  # the head ends at a blank line, as comments do
        self._block = 0  # lines since the last blank one

    def add(self, line: str) -> None:
        """Add the next line of the file."""
        if _TIME.match(line):
            self._begin_cue()
        elif not line.strip():
            self._block, self._is_comment = 0, False
        else:
            self._block += 1
            if self._is_vtt and self._block == 1 and _VTT_COMMENT.match(line):
                self._is_comment = True
            if not self._is_comment:
                (self.lines if self.has_cues else self.before).append(line)

    def _begin_cue(self) -> None:
        """Remove the number, or the name in WebVTT, of the cue whose times were read."""
        lines = self.lines if self.has_cues else self.before
        is_number = bool(lines) and _NUMBER.fullmatch(lines[-1]) is not None
        if not self.has_cues:  # all cues have numbers, or none has: others are text
            self._is_numbered = is_number
        is_name = self._is_vtt and self._block == 1 and not self._is_comment
        if lines and (is_name or (is_number and self._is_numbered)):
            lines.pop()
        self.has_cues, self._is_comment, self._block = True, False, 2  # no name follows at once


def _plain(line: str) -> str:
    """Return a line without tags, and with character references as characters."""
    line = _TAG.sub("", line)
    return _ENTITY.sub(lambda each: _DIRECTIONS.get(each[0], html.unescape(each[0])), line).strip()
