"""Read e-mail: mbox files, message by message, and single messages (eml)."""

from __future__ import annotations

import contextlib
import email
import importlib.util
import re
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.message import Message
from email.policy import Compat32
from typing import cast

from ..config_checks import is_encoding
from .charsets import UTF8, declared_name, guess_encoding
from .documents import Document
from .formats import HTML
from .html import html_text
from .inputs import Input
from .text_files import Unreadable

MAX_MESSAGE = 2**26
"""Maximum bytes of a message, with its attachments."""
# Characters of a header: RFC 5322 allows lines of 998.
_MAX_HEADER = 2**12
_ESCAPED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)


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
    if not source.stream.peek(5)[:5] == b"From ":
        raise source.error("damaged", "damaged: it does not begin with 'From ', as an mbox does")
    for number, message in enumerate(_messages(source), 1):
        at = f" message {number}"
        try:
            yield source.document(_text(source, message), at)
        except Unreadable as problem:
            source.report.skipped.add(
                "messages that cannot be read", f"{source.name}{at}: {problem}"
            )


def _messages(source: Input) -> Iterator[bytes]:
    """Yield the messages of an mbox file, without the line "From ..." before each."""
    message: list[bytes] = []
    size = number = 0
    is_after_blank = True
    while line := source.stream.readline(MAX_MESSAGE):
        if is_after_blank and line.startswith(b"From "):
            if number:
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


def _text(source: Input, content: bytes) -> str:
    """Return the subject and the text of a message.

    Raises:
        Unreadable: if it is malformed.
    """
    try:
        unescaped = _ESCAPED_FROM.sub(rb"\1", content)
        message = email.message_from_bytes(unescaped, policy=_SHORT_HEADERS)
        parts = [_subject(message), *_parts(source, message)]
    except Unreadable:
        raise
    except Exception as error:  # the package raises many types for malformed messages
        raise source.error("broken e-mail", f"not a message: {error}") from error
    text = "\n\n".join(part.strip("\r\n") for part in parts if part.strip())
    return text.encode("utf-8", "replace").decode() + "\n"


def _subject(message: Message) -> str:
    subject = str(message.get("Subject", ""))
    try:
        return str(make_header(decode_header(subject)))
    except Exception:  # an unknown encoding or malformed base64: as it is
        return subject


def _parts(source: Input, message: Message) -> Iterator[str]:
    """Yield the texts of a message; of alternatives, the plain text, or what has text instead."""
    if message.is_multipart():
        parts = [part for part in message.get_payload() if isinstance(part, Message)]
        if message.get_content_subtype() == "alternative":
            yield from _alternative(source, parts)
            return
        for part in parts:
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
    text = _decoded(content, message.get_content_charset())
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


def _decoded(content: bytes, charset: str | None) -> str:
    for name in (declared_name(charset or ""), charset, UTF8, guess_encoding(content)):
        if name and is_encoding(name):
            with contextlib.suppress(UnicodeError):
                return content.decode(name)
    return content.decode(UTF8, "replace")
