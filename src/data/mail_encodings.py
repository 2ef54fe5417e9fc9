"""Decode what e-mail encodes in ASCII: bodies in base64, and words of headers."""

from __future__ import annotations

import binascii
import re
from itertools import groupby

from .charsets import UTF8, declared_name, has_many_controls, is_valid

_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_WORD = re.compile(r"=\?([\w.:-]{1,40})(?:\*[\w-]*)?\?([bq])\?([^?\n]*)\?=", re.IGNORECASE)
_WORDS = re.compile(rf"(?:{_WORD.pattern})+", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(r"(?<=\?=)[ \t]++(?==\?)")


def decode_base64(body: bytes) -> tuple[bytes, bytes]:
    """Return the bytes that a body in base64 encodes, and what follows it in clear.

    Mailing lists append their footers in clear; some programs join several bodies.
    """
    lines = body.split(b"\n")
    decoded: list[bytes] = []
    begin = 0  # the line at which the next of several bodies begins
    for number, line in enumerate(lines, 1):
        is_encoded = _BASE64_LINE.fullmatch(line.strip()) is not None
        if is_encoded and not line.rstrip().endswith(b"=") and number < len(lines):
            continue
        end = number if is_encoded else number - 1
        content = _decoded(b"".join(map(bytes.strip, lines[begin:end])), is_first=begin == 0)
        if content is not None:
            decoded.append(content)
            begin = end
        if content is None or not is_encoded:
            break
    return b"".join(decoded), b"\n".join(lines[begin:]).strip(b"\r\n")


def _decoded(encoded: bytes, *, is_first: bool) -> bytes | None:
    """Return the bytes of a body in base64; none if it is one word or more in clear.

    The first one is that of the message, even if it is cut short.
    """
    digits = encoded.rstrip(b"=")
    if not is_first and len(encoded) % 4:
        return None
    digits = digits[: len(digits) - (len(digits) % 4 == 1)]  # which is less than a byte
    content = binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
    is_text = is_valid(content, UTF8) and not has_many_controls(content.decode(UTF8, "ignore"))
    return content if is_first or is_text else None


def decode_words(header: str) -> str:
    """Return a header with its encoded words decoded (RFC 2047); malformed ones as they are."""
    return _WORDS.sub(lambda words: _decode_run(words[0]), _BETWEEN_WORDS.sub("", header))


def _decode_run(words: str) -> str:
    """Decode adjacent words, which may have the bytes of one character in two of them."""
    text = ""
    for charset, group in groupby(_WORD.finditer(words), lambda word: word[1].lower()):
        same = list(group)
        try:
            text += b"".join(map(_bytes_of, same)).decode(declared_name(charset))
        except (ValueError, LookupError):  # no base64, or an encoding that does not exist or fit
            text += "".join(word[0] for word in same)
    return text


def _bytes_of(word: re.Match[str]) -> bytes:
    """Return the bytes of an encoded word.

    Raises:
        ValueError: if it is malformed.
    """
    text = word[3].encode()
    if word[2] in "qQ":
        return binascii.a2b_qp(text, header=True)
    if not _BASE64_LINE.fullmatch(text):
        raise ValueError("not base64")
    return _decoded(text, is_first=True) or b""
