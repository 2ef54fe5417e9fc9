"""Extract the text of Rich Text Format documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
}  # fmt: skip
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
    if parser.depth > 0:
        raise source.error("damaged", "damaged or cut short: a group is not closed")
    yield source.document(text)


class _Parser:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._state = _State()
        self._stack: list[_State] = []
        self._parts: list[str] = []
        self._bytes = bytearray()  # text that is not decoded yet
        self._code_page = "cp1252"
        self._fonts: dict[int, str] = {}
        self._to_skip = 0  # characters that stand for the last `\u`
        self._is_group_start = False

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
        # `\u` escapes may be halves of a pair, or lone ones.
        text = "".join(self._parts).encode("utf-16-le", "surrogatepass")
        return text.decode("utf-16-le", "replace")

    def _brace(self, is_open: bool) -> None:
        self._flush()
        self._to_skip = 0
        if is_open:
            self._stack.append(self._state)
        elif self._stack:
            self._state = self._stack.pop()
        self._is_group_start = is_open

    def _symbol(self, symbol: bytes) -> None:
        if symbol == b"*" and self._is_group_start:
            self._state = replace(self._state, is_skipped=True)
        elif symbol in _ESCAPED:
            self._add(symbol)
        else:
            self._put(_SYMBOLS.get(symbol, ""))

    def _word(self, word: str, number: int | None) -> None:
        self._flush()
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

    def _put(self, text: str) -> None:
        self._flush()
        if not self._state.is_skipped and not self._state.is_hidden:
            self._parts.append(text)

    def _add(self, content: bytes) -> None:
        skipped = min(self._to_skip, len(content))
        self._to_skip -= skipped
        if not self._state.is_skipped and not self._state.is_hidden:
            self._bytes += content[skipped:]

    def _flush(self) -> None:
        if self._bytes:
            code_page = self._fonts.get(self._state.font, self._code_page)
            self._parts.append(self._bytes.decode(code_page, "replace"))
            self._bytes.clear()
