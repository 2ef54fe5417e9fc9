"""Stream documents from sources: files, folders, glob patterns, pipes, URLs, built-in text."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import AGI2Error
from .builtin import BUILTIN
from .documents import ReadOptions
from .downloads import cache_folder, download
from .gutenberg import strip_gutenberg
from .readers import iterate_documents
from .sources import (
    TEXT_SUFFIXES,
    Sources,
    check_rereadable,
    find_sources,
    list_sources,
)

__all__ = [
    "BUILTIN",
    "TEXT_SUFFIXES",
    "cache_folder",
    "check_rereadable",
    "check_sources",
    "download",
    "read_documents",
    "strip_gutenberg",
]


def read_documents(sources: Sources, text_field: str = "text") -> Iterator[str]:
    """Yield every document of every source, in order.

    A `.txt`, `.md` or other text file is one document; a `.jsonl` file has one per line and a
    `.csv` file one per row, in `text_field`. A folder is searched recursively for these four
    suffixes, in sorted order, without hidden files, installed packages and run directories. Text is
    UTF-8, or UTF-16 with a byte-order mark; line ends become `\\n`. A file with several names is
    read once. A pipe (`-` is standard input) can be read only once.

    An unreadable file is an error if it was named, and skipped if it was found in a folder or by a
    pattern. The log reports what was read and what was skipped, with reason and size.

    Args:
        sources: paths, glob patterns, `http(s)://` URLs or `builtin:python-docs`.
        text_field: field of `.jsonl`, column of `.csv`.

    Raises:
        AGI2Error: if a source is missing, empty, not text, or lacks `text_field`. Problems that the
            first bytes of a file show are raised before the first document.
    """
    parts: list[str] = []
    for document in iterate_documents(sources, ReadOptions(text_field)):
        if parts and not document.continues:
            yield "".join(parts)
            parts.clear()
        parts.append(document.text)
    if parts:
        yield "".join(parts)


def check_sources(sources: Sources) -> None:
    """Check that every source exists and looks like text, without downloading any.

    Raises:
        AGI2Error: as in `read_documents`; also if a name is not UTF-8, which TOML cannot store.
    """
    for name in list_sources(sources):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise AGI2Error(
                f"{name}: the name is not UTF-8, so no configuration can contain it: rename it, or "
                "name the folder that it is in"
            ) from error
    find_sources(sources, fetch=False)
