"""Choose the encoding of a text: UTF-8, what a byte-order mark says, or a guess."""

from __future__ import annotations

import codecs
import re

from .alphabets import best_encoding, chance_bits

UTF8 = "utf-8"

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_JAPANESE_ESCAPE = re.compile(rb"\x1b\$[@B]")
_KOREAN_ESCAPE = b"\x1b$)C"
_CHINESE_ESCAPE = re.compile(rb"\x1b\$(\)[AEG]|\*H)")
NO_CODEC = "iso2022_cn"
"""Name of the Chinese ISO-2022, which is recognized but for which Python has no codec."""
# A run of characters in UTF-7.
_UTF7_RUN = re.compile(rb"\+([A-Za-z0-9+/]+)")
# Bits by which different runs must be more probable as letters of a language than by chance.
_MIN_UTF7_BITS = 40
# What programs call an encoding, and the one with more characters that they mean by it.
_SUPERSETS = {
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
# Of encodings that differ in few characters, the common one.
_COMMON = {"koi8_t": "koi8_r", "cp1125": "cp866", "kz1048": "cp1251", "ptcp154": "cp1251"}
# Characters that no text has many of: not white space, escapes, backspaces and the end of a file.
_CONTROL = re.compile("[\0-\x07\x0b\x0e-\x19\x1c-\x1f\x7f-\x84\x86-\x9f]")
_MAX_CONTROL = 0.02
# Bytes of a sample: more does not change a guess, which takes longer than the decoding.
_SAMPLE = 2**13

_COMMON_HAN = re.compile("[的一不是了人我在有他]")
# Share of them from which a text is Chinese.
_MIN_HAN = 0.02


def encoding_of_mark(head: bytes) -> str | None:
    """Return the encoding that the byte-order mark of a text names, if it has one."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def is_ascii(block: bytes) -> bool:
    """Return whether a block is the same text in ASCII and in all its extensions."""
    return block.isascii() and escaped_encoding(block) is None


def is_valid(block: bytes, encoding: str) -> bool:
    """Return whether a block, which may end within a character, is text in an encoding."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(block)
    except (UnicodeError, LookupError):
        return False
    return True


def escaped_encoding(block: bytes) -> str | None:
    """Return the name of the ISO-2022, of HZ or of UTF-7 that a block is in, if it is.

    Its bytes are those of ASCII. ISO-2022-CN is `NO_CODEC`.
    """
    if b"~{" in block and b"~}" in block and block.isascii() and is_valid(block, "hz"):
        return "hz" if _share(_COMMON_HAN, block, "hz") >= _MIN_HAN else None
    if b"\x1b$" not in block or not block.isascii():
        return "utf_7" if _is_utf7(block) else None
    if _KOREAN_ESCAPE in block:
        return "iso2022_kr"
    if _CHINESE_ESCAPE.search(block):
        return NO_CODEC
    if not _JAPANESE_ESCAPE.search(block):
        return None
    return "iso2022_jp" if is_valid(block, "iso2022_jp") else "iso2022_jp_ext"


def _is_utf7(block: bytes) -> bool:
    """Return whether every plus sign begins characters beyond ASCII, as no other text has them."""
    if b"+" not in block or not block.isascii() or not is_valid(block, "utf_7"):
        return False
    # Once each: repeated ones tell no more. The last may be cut.
    runs = dict.fromkeys(_UTF7_RUN.findall(block))
    text = "".join((b"+" + run + b"-").decode("utf_7", "ignore") for run in runs)
    is_ascii_encoded = any(each.isascii() and each.isalnum() for each in text)
    return not is_ascii_encoded and chance_bits(text) >= _MIN_UTF7_BITS


def has_many_controls(text: str) -> bool:
    """Return whether a text, decoded as a guess, is binary data by its control characters."""
    return len(_CONTROL.findall(text)) > _MAX_CONTROL * len(text)


def has_few_nuls(block: bytes, before: tuple[int, int] = (0, 0)) -> bool:
    """Return whether the NUL bytes of a text are too few for binary data: less than 1 %.

    Args:
        block: a block of it, which is not UTF-16 or UTF-32.
        before: numbers of NUL bytes and of all bytes before the block.
    """
    is_few = 100 * (before[0] + block.count(0)) < before[1] + len(block)
    return is_few and not has_many_controls(block.decode(UTF8, "ignore"))


def is_wide(name: str) -> bool:
    """Return whether an encoding is UTF-16 or UTF-32, in which characters have NUL bytes."""
    return codecs.lookup(name).name.startswith(("utf-16", "utf-32"))


def declared_name(name: str) -> str:
    """Return the encoding that a text means by a name, whose characters may be more."""
    try:
        return _SUPERSETS.get(codecs.lookup(name).name, name)
    except (LookupError, ValueError):
        return name


def is_damaged_utf8(block: bytes) -> bool:
    """Return whether half of the characters beyond ASCII, or more, are valid UTF-8, but not all."""
    text = block.decode(UTF8, "replace")
    broken = text.count("\ufffd")
    valid = sum(not character.isascii() for character in text) - broken
    return valid >= broken > 0


def guess_encoding(block: bytes) -> str | None:
    """Guess the encoding of a text that is not UTF-8, from a block of it.

    The choice is the encoding in which the block is the most probable text of a language; if it is
    probable in none, that of `charset_normalizer`.

    Returns:
        A name that `codecs` knows, or None.
    """
    if escaped := escaped_encoding(block):
        return escaped
    sample = _sample(block)
    likely, is_clear = best_encoding(sample)
    if likely and is_clear and is_valid(block, likely):
        return likely
    from charset_normalizer import from_bytes  # 40 ms, for the few texts that are not UTF-8

    names = (match.encoding for match in from_bytes(sample))
    best = next((name for name in names if is_valid(block, name)), None)
    if best is None:
        return likely
    common = _COMMON.get(best, best)
    return common if is_valid(block, common) else best


def _sample(block: bytes) -> bytes:
    """Return the lines with bytes beyond ASCII, which alone differ between encodings, once each."""
    lines = [line for line in block.split(b"\n")[:-1] or [block] if not line.isascii()]
    joined = b"\n".join(dict.fromkeys(lines) or [block])
    if len(joined) <= _SAMPLE:
        return joined
    # To the end of a character: no encoding has a character with one of these bytes in it.
    end = max(joined.rfind(byte, 0, _SAMPLE) for byte in (b" ", b"\n", b"<", b","))
    return joined[: end if end > 0 else _SAMPLE]


def _share(characters: re.Pattern[str], sample: bytes, encoding: str) -> float:
    """Return the share of such characters among those beyond ASCII."""
    text = sample.decode(encoding, "replace")
    return len(characters.findall(text)) / max(1, sum(not each.isascii() for each in text))
