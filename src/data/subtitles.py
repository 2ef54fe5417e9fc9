"""Read SubRip (srt) and WebVTT subtitles: their lines, without numbers and times."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .documents import Document
from .inputs import Input
from .text import read_whole_text

_TIME = re.compile(r"\s*(\d+:)?\d+:\d\d[.,]\d+\s*-->\s*(\d+:)?\d+:\d\d[.,]\d+")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>|</?\d[\d:.]{0,20}>|\{\\[^{}\n]{0,200}\}")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "\xa0", "&lrm;": "", "&rlm;": ""}
_ENTITY = re.compile("|".join(_ENTITIES))


def read_subtitles(source: Input) -> Iterator[Document]:
    """Yield the text of all cues as one document.

    Raises:
        Unreadable: if there are no cues.
    """
    text = read_whole_text(source)
    lines: list[str] = []
    is_cue = has_cues = False
    for line in text.split("\n"):
        if _TIME.match(line):
            is_cue = has_cues = True
        elif not line.strip():
            is_cue = False
        elif is_cue:
            lines.append(_plain(line))
    if not has_cues:
        raise source.error(
            "broken subtitles",
            "not subtitles: there is no line such as " "00:00:01,000 --> 00:00:02,000",
        )
    yield source.document("\n".join(lines) + "\n")


def _plain(line: str) -> str:
    """Return a line without tags, and with WebVTT's character references as characters."""
    return _ENTITY.sub(lambda match: _ENTITIES[match[0]], _TAG.sub("", line)).strip()
