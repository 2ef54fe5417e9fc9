"""Read e-mail: mbox files, message by message, and single messages (eml)."""

from __future__ import annotations

import codecs
import contextlib
import email
import importlib.util
import re
from collections.abc import Iterator
from email.message import Message
from email.policy import Compat32
from typing import cast

from ..config_checks import is_encoding
from .charsets import UTF8, declared_name, guess_encoding, is_valid
from .documents import Document
from .formats import HTML
from .html import html_text
from .inputs import Input
from .mail_encodings import decode_base64, decode_words
from .text_files import Unreadable

MAX_MESSAGE = 2**26
"""Maximum bytes of a message, with its attachments."""
# Characters of a header: RFC 5322 allows lines of 998.
_MAX_HEADER = 2**12
_ESCAPED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
# The line before a message in an mbox file, with its date, or without one before a known header;
# otherwise a line of text that begins with "From " ends a message.
_DATED = re.compile(rb"From (?=[^\n]*\d\d?:\d\d)[^\n]*(?<!\d)(?:19|20)\d\d(?!\d)")
_UNDATED = re.compile(rb"From \S*\s*$")
_HEADER = re.compile(rb"[!-9;-~]+:|\r?\n|>From ")
_KNOWN_HEADER = re.compile(
    rb"(?:return-path|received|delivered-to|from|to|cc|date|subject|message-id|reply-to|sender"
    rb"|mime-version|content-[a-z-]+|x-[a-z0-9-]+|status|dkim-signature):",
    re.IGNORECASE,
)
_FOLD = re.compile(r"\r?\n[ \t]*")


class _Policy(Compat32):
    """Keeps the beginning of a header: the package takes quadratic time in its length."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """Return the name and the value of a header."""
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_MAX_HEADER]


_SHORT_HEADERS = _Policy()


def read_mail(source: Input) -> Iterator[Document]:
    """Yield the subject and the text of each message; attachments are counted as skipped.

    Raises:
        Unreadable: if an mbox file does not begin as one.
    """
    if source.filename.lower().endswith(".eml"):
        yield source.document(_text(source, source.read(MAX_MESSAGE)))
        return
    for number, message in enumerate(_messages(source), 1):
        at = f" message {number}"
        try:
            yield source.document(_text(source, _ESCAPED_FROM.sub(rb"\1", message)), at)
        except Unreadable as problem:
            source.report.skipped.add(
                "messages that cannot be read", f"{source.name}{at}: {problem}"
            )


def _messages(source: Input) -> Iterator[bytes]:
    """Yield the messages of an mbox file, without the line "From ..." before each.

    Raises:
        Unreadable: if it does not begin with such a line, or a message is too large.
    """
    lines = _lines(source)
    first = next((line for line, _ in lines if line.strip(b"\r\n")), b"")
    if not first.removeprefix(codecs.BOM_UTF8).startswith(b"From "):
        raise source.error("damaged", "damaged: it does not begin with 'From ', as an mbox does")
    message: list[bytes] = []
    size, number = 0, 1
    is_after_blank = False
    for line, following in lines:
        if is_after_blank and _is_start(line, following):
            yield b"".join(message)
            message, size, number = [], 0, number + 1
        else:
            size += len(line)
            if size > MAX_MESSAGE:
                raise source.error(
                    "too large", f"more than {MAX_MESSAGE:,} bytes", f" message {number}"
                )
            message.append(line)
        is_after_blank = not line.strip(b"\r\n")
    yield b"".join(message)


def _lines(source: Input) -> Iterator[tuple[bytes, bytes]]:
    """Yield each line with the one that follows it, which is empty at the end."""
    line = source.stream.readline(MAX_MESSAGE)
    while line:
        following = source.stream.readline(MAX_MESSAGE)
        yield line, following
        line = following


def _is_start(line: bytes, following: bytes) -> bool:
    """Return whether a line of an mbox file that follows a blank one begins a message."""
    if not line.startswith(b"From "):
        return False
    if _DATED.match(line):
        return not following or bool(_HEADER.match(following))
    return bool(_UNDATED.match(line) and _KNOWN_HEADER.match(following))


def _text(source: Input, content: bytes) -> str:
    """Return the subject and the text of a message.

    Raises:
        Unreadable: if it is malformed.
    """
    try:
        message = email.message_from_bytes(content, policy=_SHORT_HEADERS)
        parts = [_subject(source, message), *_parts(source, message)]
    except Unreadable:
        raise
    except Exception as error:  # the package raises many types for malformed messages
        raise source.error("broken e-mail", f"not a message: {error}") from error
    text = "\n\n".join(part.strip("\r\n") for part in parts if part.strip())
    return text.encode("utf-8", "replace").decode() + "\n"


def _subject(source: Input, message: Message) -> str:
    """Return the subject of a message in one line; empty if it has none."""
    headers = (value for name, value in message.raw_items() if name.lower() == "subject")
    subject = _FOLD.sub(" ", str(next(headers, "")))
    raw = subject.encode("ascii", "surrogateescape")
    charsets = (part.get_content_charset() for part in message.walk())
    # Raw bytes are in UTF-8 by RFC 6532, and before it in the encoding of the text.
    charset = UTF8 if is_valid(raw, UTF8) else next(filter(None, charsets), None)
    return decode_words(_decoded(source, raw, charset)).strip()


def _parts(source: Input, message: Message) -> Iterator[str]:
    """Yield the texts of a message; of alternatives, the plain text, or what has text instead."""
    if message.is_multipart():
        parts = [part for part in message.get_payload() if isinstance(part, Message)]
        if message.get_content_subtype() == "alternative":
            yield from _alternative(source, parts)
            return
        for part in parts:
            if message.get_content_maintype() == "message":  # it is forwarded
                yield _subject(source, part)
            yield from _parts(source, part)
        return
    content = cast(bytes, message.get_payload(decode=True))
    is_attached = message.get_content_disposition() == "attachment"
    # A multipart message without its parts is one part.
    if message.get_content_maintype() not in ("text", "multipart") or is_attached:
        source.report.skipped.add(
            "attachments", source.name, size=len(content), unit="bytes decoded"
        )
        return
    charset = message.get_content_charset()
    if str(message.get("Content-Transfer-Encoding", "")).strip().lower() == "base64":
        del message["Content-Transfer-Encoding"]
        content, rest = decode_base64(cast(bytes, message.get_payload(decode=True)))
        text = _decoded(source, content, charset)
        text += "\n" * bool(rest) + _decoded(source, rest, charset)
    else:
        text = _decoded(source, content, charset)
    if message.get_content_subtype() != "html":
        yield text
    elif importlib.util.find_spec(HTML.package):
        yield html_text(source, text)
    else:
        source.report.skipped.add("messages in HTML, which need selectolax", source.name)


def _alternative(source: Input, parts: list[Message]) -> list[str]:
    """Return the texts of the first of alternatives that has any: programs leave some blank."""
    for part in sorted(parts, key=_rank):
        texts = [text for text in _parts(source, part) if text.strip()]
        if texts:
            return texts
    return []


def _rank(part: Message) -> int:
    """Return which of alternatives is taken: plain text, a page, then others, such as an event."""
    kind = part.get_content_type()
    is_page = part.get_content_maintype() == "multipart" or kind == "text/html"
    return 0 if kind == "text/plain" else 1 if is_page else 2


def _decoded(source: Input, content: bytes, charset: str | None) -> str:
    declared = [declared_name(charset), charset] if charset else []
    for name in (*declared, UTF8, None):
        name = name or guess_encoding(content)
        if name and is_encoding(name):
            with contextlib.suppress(UnicodeError):
                return content.decode(name)
    text = content.decode(UTF8, "replace")
    source.removed("bytes in no known encoding, replaced by U+FFFD,", text.count("\ufffd"))
    return text
