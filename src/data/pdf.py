"""Extract the text of PDFs, without page numbers and hyphenation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .documents import Document
from .inputs import Input
from .text import MAX_WHOLE_TEXT

# A page number by itself, or among words such as "Page 3 of 10" or dashes.
_PAGE_NUMBER = re.compile(
    r"\W*(?:page|seite|p\.|s\.)?\s*(\d{1,5})(?:\s*(?:of|von|/)\s*\d{1,5})?\W*", re.IGNORECASE
)
# Characters of a line with a page number; the pattern takes quadratic time in them.
_LONGEST = 100
# What PDFium gives for a hyphen and a line end between letters.
_MARK = re.compile("[\ufffe\x02](?:\r\n)?")
_HYPHEN = re.compile(r"(?<!\w)(\w+)[-\u00ad\u2010]\n(\w+)")
_WORD = re.compile(r"\w+(?:-\w+)*")


def read_pdf(source: Input) -> Iterator[Document]:
    """Yield the text of a PDF as one document.

    Raises:
        Unreadable: if it is damaged or encrypted, or has no text, as a scan.
    """
    pages = []
    size = empty = 0
    for page in _pages(source):
        pages.append(page)
        size += len(page)
        empty += not page.strip()
        if size > MAX_WHOLE_TEXT:
            raise source.error(
                "too large", f"more than {MAX_WHOLE_TEXT:,} characters, the limit of this format"
            )
    if empty == len(pages):
        raise source.error(
            "scanned", "a PDF without text, such as scanned pages: recognize its text (OCR) first"
        )
    if empty:
        source.report.skipped.add("pages of PDFs without text", source.name, count=empty)
    if source.options.clean:
        cleaned = _without_page_numbers(pages)
        source.removed("page numbers of PDFs", size - sum(map(len, cleaned)))
        joined = "\n".join(cleaned)
        text = _without_hyphenation(joined)
        source.removed("hyphenation of PDFs", len(joined) - len(text))
    else:
        text = "\n".join(pages)
    yield source.document(text.strip("\n") + "\n")


def _pages(source: Input) -> Iterator[str]:
    """Yield the text of each page."""
    import pypdfium2

    file = source.seekable()
    try:
        with pypdfium2.PdfDocument(file) as pdf:
            for number in range(len(pdf)):
                yield _page_text(pdf, number)
    except Exception as error:  # of PDFium, and of Python in its callbacks
        if "password" in str(error).lower():
            raise source.error("encrypted", "encrypted: save it without a password") from error
        raise source.error("damaged", f"damaged: {error}") from error


def _page_text(pdf: Any, number: int) -> str:
    page = pdf[number]
    try:
        text_page = page.get_textpage()
        try:
            text: str = text_page.get_text_range()
        finally:
            text_page.close()
    finally:
        page.close()
    text = _MARK.sub("-\n", text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _without_page_numbers(pages: list[str]) -> list[str]:
    """Remove first and last lines that count the pages.

    A number is that of its page if its distance to the page's index is that of other pages, too.
    """
    lines = [page.split("\n") for page in pages]
    for end in (-1, 0):
        numbers = [_PAGE_NUMBER.fullmatch(page[end][:_LONGEST]) if page else None for page in lines]
        distances = Counter(int(each[1]) - at for at, each in enumerate(numbers) if each)
        for at, number in enumerate(numbers):
            if number and distances[int(number[1]) - at] > 1:
                lines[at].pop(end)
                while lines[at] and not lines[at][end].strip():
                    lines[at].pop(end)
    return ["\n".join(page) for page in lines]


def _without_hyphenation(text: str) -> str:
    """Join words that are hyphenated at line ends.

    The hyphen stays if the text has the word with a hyphen elsewhere, and not without.
    """
    words = set(_WORD.findall(text))

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        if f"{first}-{second}" in words and first + second not in words:
            return f"{first}-{second}"
        return first + second if second[0].islower() else match[0]

    return _HYPHEN.sub(join, text)
