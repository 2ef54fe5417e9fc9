"""Extract the text of Rich Text Format documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..config_checks import is_encoding
from .documents import Document
from .inputs import Input

_MAX_BYTES = 2**26
_TOKEN = re.compile(
    rb"\\(?P<word>[a-zA-Z]{1,32})(?P<number>-?\d{1,10})? ?|\\'(?P<hex>[0-9a-fA-F]{2})"
    rb"|\\(?P<symbol>[^a-zA-Z])|(?P<brace>[{}])|[\r\n]+|(?P<text>[^\\{}\r\n]+)|\\"
)
_CHARACTERS = {
    "par": "\n", "line": "\n", "sect": "\n", "page": "\n", "row": "\n", "tab": "\t", "cell": "\t",
    "emdash": "—", "endash": "–", "lquote": "‘", "rquote": "’", "ldblquote": "“",
    "rdblquote": "”", "bullet": "•", "emspace": "\u2003", "enspace": "\u2002",
}  # fmt: skip
_SYMBOLS = {b"~": "\xa0", b"_": "-", b"\n": "\n", b"\r": "\n"}
_ESCAPED = (b"\\", b"{", b"}")
# Groups that contain no text of the document.
_DESTINATIONS = {
    "fonttbl", "colortbl", "stylesheet", "info", "pict", "object", "header", "headerl", "headerr",
    "headerf", "footer", "footerl", "footerr", "footerf", "fldinst", "nonshppict", "xe", "tc",
    "sp", "shprslt",
}  # fmt: skip
# Groups that programs which do not know them skip, and that contain text all the same: text boxes.
_OPTIONAL = {"shpinst", "do"}
# Groups whose text comes after the paragraph that they are in: notes and text boxes.
_APART = {"footnote", "shptxt", "dptxbxtext"}
_ENDS_OF_PARAGRAPHS = {"par", "sect", "page", "row"}
_CODE_PAGES = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850"}
_CHARSETS = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 134: "gbk", 136: "big5", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251",
    222: "cp874", 238: "cp1250",
}  # fmt: skip


@dataclass(frozen=True)
class _State:
    """What holds in a group, until its end."""

    is_skipped: bool = False
    is_hidden: bool = False
    is_font_table: bool = False
    is_upr: bool = False
    """Whether what follows is in ANSI and then, in the group `ud`, in Unicode."""
    font: int = 0
    fallback: int = 1
    """Characters after `\\u` that stand for its character in programs without Unicode."""


def read_rtf(source: Input) -> Iterator[Document]:
    """Yield the text of an RTF document.

    Raises:
        Unreadable: if it is cut short.
    """
    parser = _Parser(source.read(_MAX_BYTES))
    text = parser.parse()
    source.removed("hidden or deleted text", parser.hidden)
    if parser.depth > 0:
        raise source.error("damaged", "damaged or cut short: a group is not closed")
    yield source.document(text)


class _Level(NamedTuple):
    """What a note or a text box is in."""

    depth: int
    """The number of groups that are open in it."""
    parts: list[str]


class _Parser:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._state = _State()
        self._stack: list[_State] = []
        self._before_star: _State | None = None  # what held before `\\*`, until the next word
        self._parts: list[str] = []
        self._apart: list[list[str]] = []  # the text of each note and text box of the paragraph
        self._levels: list[_Level] = []
        self._bytes = bytearray()  # text that is not decoded yet
        self._code_page = "cp1252"
        self._fonts: dict[int, str] = {}
        self._to_skip = 0  # characters that stand for the last `\u`
        self._is_group_start = False
        self.hidden = 0
        """Characters that are hidden or deleted."""

    @property
    def depth(self) -> int:
        """Number of groups that are not closed."""
        return len(self._stack)

    def parse(self) -> str:
        at = 0
        while token := _TOKEN.match(self._content, at):
            at = token.end()
            kind = token.lastgroup
            if kind == "brace":
                self._brace(token["brace"] == b"{")
                continue
            if kind in ("word", "number"):
                number = int(token["number"]) if token["number"] else None
                self._word(token["word"].decode("ascii"), number)
                if token["word"] == b"bin":
                    at += max(0, number or 0)
            elif kind == "hex":
                self._add(bytes([int(token["hex"], 16)]))
            elif kind == "symbol":
                self._symbol(token["symbol"])
            elif kind == "text":
                self._add(token["text"])
            self._is_group_start = kind == "symbol" and token["symbol"] == b"*"
        self._flush()
        while self._levels:
            self._end_level()
        self._end_paragraph()
        # `\u` escapes may be halves of a pair, or lone ones.
        text = "".join(self._parts).encode("utf-16-le", "surrogatepass")
        return text.decode("utf-16-le", "replace")

    def _brace(self, is_open: bool) -> None:
        self._flush()
        self._to_skip = 0
        self._before_star = None
        if is_open:
            self._stack.append(self._state)
        else:
            while self._levels and self._levels[-1].depth == self.depth:
                self._end_level()
            if self._stack:
                self._state = self._stack.pop()
        self._is_group_start = is_open

    def _symbol(self, symbol: bytes) -> None:
        if symbol == b"*" and self._is_group_start:
            self._before_star = self._state
            self._state = replace(self._state, is_skipped=True)
        elif symbol in _ESCAPED:
            self._add(symbol)
        else:
            self._put(_SYMBOLS.get(symbol, ""))

    def _word(self, word: str, number: int | None) -> None:
        self._flush()
        if self._before_star is not None:
            self._after_star(word, self._before_star)
        state = self._state
        if word in _DESTINATIONS:
            self._state = replace(state, is_skipped=True, is_font_table=word == "fonttbl")
        elif word in ("v", "deleted"):
            self._state = replace(state, is_hidden=number != 0)
        elif word == "plain":
            self._state = replace(state, is_hidden=False)
        elif word == "uc" and number is not None:
            self._state = replace(state, fallback=number)
        elif word == "u" and number is not None:
            self._put(chr(number % 2**16))
            self._to_skip = max(0, state.fallback)
        elif word == "f" and number is not None:
            self._state = replace(state, font=number)
        elif word == "fcharset" and state.is_font_table and number in _CHARSETS:
            self._fonts[state.font] = _CHARSETS[number]
        elif word in _CODE_PAGES:
            self._code_page = _CODE_PAGES[word]
        elif word == "ansicpg" and is_encoding(f"cp{number}"):
            self._code_page = f"cp{number}"
        elif word in _CHARACTERS:
            self._put(_CHARACTERS[word])
            if word in _ENDS_OF_PARAGRAPHS and not (state.is_skipped or state.is_hidden):
                self._end_paragraph()
        elif word in _APART and not state.is_skipped:
            self._begin_level()
        elif word == "upr" and not state.is_skipped:
            self._state = replace(state, is_skipped=True, is_upr=True)

    def _after_star(self, word: str, before: _State) -> None:
        """Take the first word after `\\*`, `before` which the state was another one."""
        self._before_star = None
        if word in _OPTIONAL or before.is_upr:
            is_skipped = before.is_skipped and not before.is_upr
            self._state = replace(before, is_skipped=is_skipped, is_upr=False)

    def _begin_level(self) -> None:
        """Begin a note or a text box: its text comes after the paragraph around it."""
        self._levels.append(_Level(self.depth, self._parts))
        self._parts = []
        self._apart.append(self._parts)

    def _end_level(self) -> None:
        _end_line(self._parts)
        self._parts = self._levels.pop().parts

    def _end_paragraph(self) -> None:
        """Add the notes and text boxes of a paragraph, unless it is in one of them."""
        if self._apart and not self._levels:
            inner = [part for parts in self._apart for part in parts]
            if inner:
                _end_line(self._parts)
            self._parts += inner
            self._apart.clear()

    def _put(self, text: str) -> None:
        self._flush()
        if not text or self._state.is_skipped:
            return
        if self._state.is_hidden:
            self.hidden += len(text)
        else:
            self._parts.append(text)

    def _add(self, content: bytes) -> None:
        skipped = min(self._to_skip, len(content))
        self._to_skip -= skipped
        if not self._state.is_skipped:
            self._bytes += content[skipped:]

    def _flush(self) -> None:
        if self._bytes:
            code_page = self._fonts.get(self._state.font, self._code_page)
            text = self._bytes.decode(code_page, "replace")
            if self._state.is_hidden:
                self.hidden += len(text)
            else:
                self._parts.append(text)
            self._bytes.clear()


def _end_line(parts: list[str]) -> None:
    if parts and not parts[-1].endswith("\n"):
        parts.append("\n")
