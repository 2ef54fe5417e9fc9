"""Stream documents from sources: files, folders, glob patterns, pipes, URLs, built-in text."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import AGI2Error, one_line
from ..utils import human_bytes, log
from .builtin import BUILTIN, python_docs
from .downloads import cache_folder, download
from .gutenberg import strip_gutenberg
from .readers import read_file
from .sources import (
    TEXT_SUFFIXES,
    Source,
    Sources,
    check_rereadable,
    file_size,
    find_sources,
    list_sources,
)
from .text_files import Unreadable

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

# Up to this many sources are logged one line each; with more, only skipped files are logged.
_SOURCES_LOGGED = 8


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
    # All sources are checked before any is read, so that a bad last one fails at once.
    resolved = find_sources(sources)
    for source in resolved:
        yield from _read(source, text_field, len(resolved) <= _SOURCES_LOGGED)


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


def _read(source: Source, text_field: str, is_logged: bool) -> Iterator[str]:
    if source.name == BUILTIN and source.files:
        yield from python_docs()
        return
    files = documents = characters = size = 0
    first_problem = ""
    for path in source.files:
        try:
            reading = read_file(path, text_field)
        except Unreadable as problem:
            if source.is_named:
                raise
            source.skipped.add(problem.reason, str(problem), size=file_size(path))
            first_problem = first_problem or str(problem)
            continue
        files, documents = files + 1, documents + len(reading.documents)
        size, characters = size + reading.size, characters + sum(map(len, reading.documents))
        source.skipped.merge(reading.skipped)
        yield from reading.documents
    if source.files and not files:
        raise AGI2Error(f"{source.name}: no file of it can be read; {first_problem}")
    if is_logged:
        amounts = [_format_count(files, "file"), _format_count(documents, "document")]
        amounts += [_format_count(characters, "character"), human_bytes(size)]
        log.info("%s", one_line(f"read {source.name}: {', '.join(amounts)}"))
    for line in source.skipped.lines():
        log.warning("%s", one_line(f"skipped in {source.name}: {line}"))


def _format_count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)
