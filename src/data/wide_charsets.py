"""Recognize UTF-16 and UTF-32 without a byte-order mark, which other texts and data are not."""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter

from .charsets import UTF8, is_valid

# Bytes by which they are recognized, a multiple of 4.
_HEAD = 4096
# Characters from which a guess by their kinds is sound.
_MIN_CHARACTERS = 8
# Categories of no characters of a text: not assigned, private, surrogates, and controls.
_NOT_TEXT = {"Cn", "Co", "Cs", "Cc"}
_SPACES = frozenset("\t\n\r\f\x1a\x1b \u3000\u3001\u3002\uff0c")
# Share of the characters of other scripts up to which a text is in one, and of white space and
# punctuation, from which numbers do not look like a text.
_MAX_OTHERS, _MIN_SPACES = 0.1, 0.01


def unmarked_wide(head: bytes) -> str | None:
    """Return the encoding of a text in UTF-16 or UTF-32 without a mark, by its first bytes.

    In UTF-16 of mostly ASCII, the high byte of every ASCII character is NUL, and no low byte is.
    Others must be characters of one script, with white space.
    """
    head = head[:_HEAD]
    if b"\0" not in head:
        return None
    even, odd = head[0:512:2], head[1:512:2]
    if len(odd) >= 16:
        if 0 not in even and odd.count(0) > 0.3 * len(odd):
            return "utf-16-le"
        if 0 not in odd and even.count(0) > 0.3 * len(even):
            return "utf-16-be"
    names = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
    return next((name for name in names if _is_text(head, name)), None)


def _is_text(head: bytes, encoding: str) -> bool:
    """Return whether bytes are a text of one script in an encoding; their last may be a part."""
    width = 4 if "32" in encoding else 2
    if len(head) < _HEAD and len(head) % width:
        return False
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    spaces = sum(character in _SPACES for character in text)
    if len(text) < _MIN_CHARACTERS or spaces < _MIN_SPACES * len(text):
        return False
    letters = [each for each in text if each not in _SPACES]
    if any(unicodedata.category(each) in _NOT_TEXT for each in letters):
        return False
    scripts = Counter(map(_script, letters))
    common = scripts.pop("", 0)
    script, most = max(scripts.items(), key=lambda each: each[1], default=("", 0))
    # Two letters of ASCII are a Chinese character: bytes of Chinese are not valid UTF-8.
    is_ascii = script == _CJK and is_valid(head, UTF8)
    return not is_ascii and most + common >= (1 - _MAX_OTHERS) * len(letters)


def _script(character: str) -> str:
    """Return the script of a character; empty for ASCII and punctuation, which all use."""
    if character.isascii() or not character.isalnum():
        return ""
    name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    return _CJK if name in _EAST_ASIAN else name


_CJK = "CJK"
_EAST_ASIAN = {_CJK, "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH"}
