"""Sources (files, folders, patterns, pipes, URLs, built-in text) as a stream of documents."""

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
    find_sources,
    list_sources,
    size_of,
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

# The log has a line for each of so many sources; for more, only what was left out.
_SOURCES_LOGGED = 8


def read_documents(sources: Sources, text_field: str = "text") -> Iterator[str]:
    """Every document of every source, in order.

    A `.txt`, `.md` or other text file is a document; a `.jsonl` file holds one a line and a `.csv`
    file one a row, in `text_field`. A folder gives its files with those four endings, at any
    depth, sorted, but for what is hidden, installed, or a run's output. All text is UTF-8; line
    ends become `\\n`. A file that is reached by several names is read once. A pipe (`-` is standard
    input) is read once, and cannot be read again.

    What cannot be read is refused where it was named, and left out where it was found in a folder
    or by a pattern. The log says what was read, and what was left out, why and how much of it.

    Args:
        sources: paths, patterns, `http(s)://` addresses or `builtin:python-docs`.
        text_field: field of `.jsonl`, column of `.csv`.

    Raises:
        AGI2Error: where a source is missing, empty, not text, or without that field; before the
            first document for all that shows without reading everything.
    """
    # Every source is found before the first is read.
    found = find_sources(sources)
    for source in found:
        yield from _read(source, text_field, len(found) <= _SOURCES_LOGGED)


def check_sources(sources: Sources) -> None:
    """Raise for every source that cannot be read, without reading or downloading any.

    Raises:
        AGI2Error: as `read_documents`; also for a name that no configuration can hold.
    """
    for name in list_sources(sources):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise AGI2Error(
                f"{name}: the name is not UTF-8, so no configuration can hold it: rename it, or "
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
            source.skipped.add(problem.reason, str(problem), size=size_of(path))
            first_problem = first_problem or str(problem)
            continue
        files, documents = files + 1, documents + len(reading.documents)
        size, characters = size + reading.size, characters + sum(map(len, reading.documents))
        source.skipped.merge(reading.skipped)
        yield from reading.documents
    if source.files and not files:
        raise AGI2Error(f"{source.name}: no file of it can be read; {first_problem}")
    if is_logged:
        amounts = [_count(files, "file"), _count(documents, "document")]
        amounts += [_count(characters, "character"), human_bytes(size)]
        log.info("%s", one_line(f"read {source.name}: {', '.join(amounts)}"))
    for line in source.skipped.lines():
        log.warning("%s", one_line(f"left out of {source.name}: {line}"))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)
