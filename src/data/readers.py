"""Read the documents of a text, JSONL or CSV file, and count what is skipped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AGI2Error, one_line
from ..utils import human_bytes, log, parse_json, plural
from .builtin import BUILTIN, python_docs
from .documents import MAX_CHARACTERS, Document, ReadOptions, ReadReport, SourceReport
from .gutenberg import strip_gutenberg
from .sources import Source, Sources, file_size, find_sources
from .text_files import Skipped, Unreadable, decode, read_content, unify_line_ends

_SEPARATORS = (",", ";", "\t", "|")
# Up to this many sources are logged one line each; with more, only skipped files are logged.
_SOURCES_LOGGED = 8


def iterate_documents(
    sources: Sources, options: ReadOptions | None = None, report: ReadReport | None = None
) -> Iterator[Document]:
    """Yield every document of every source, lazily, in a deterministic order.

    All sources are resolved, and the first bytes of their files checked, before the first document
    is yielded. An unreadable file is an error if it was named, and skipped if it was found in a
    folder or by a pattern. A file with several names is read once. A pipe (`-` is standard input)
    can be read only once.

    Args:
        sources: paths, glob patterns, `http(s)://` URLs or `builtin:python-docs`.
        options: how to read them.
        report: filled while documents are yielded: a `SourceReport` for each source, in order. The
            log has the same lines at the end of each source.

    Yields:
        Documents; one with more than `MAX_CHARACTERS` characters in pieces.

    Raises:
        AGI2Error: if a source is missing, has no text, or is malformed.
    """
    options = options or ReadOptions()
    report = report if report is not None else ReadReport()
    resolved = find_sources(sources)
    for source in resolved:
        counts = SourceReport(source.name, skipped=source.skipped)
        report.sources.append(counts)
        yield from _read_source(source, options, counts, len(resolved) <= _SOURCES_LOGGED)


def _read_source(
    source: Source, options: ReadOptions, counts: SourceReport, is_logged: bool
) -> Iterator[Document]:
    if source.name == BUILTIN and source.files:
        yield from (Document(text, BUILTIN) for text in python_docs())
        return
    first_problem = ""
    for path in source.files:
        try:
            reading = read_file(path, options.text_field or "text")
        except Unreadable as problem:
            if source.is_named:
                raise
            source.skipped.add(problem.reason, str(problem), size=file_size(path))
            first_problem = first_problem or str(problem)
            continue
        counts.files += 1
        counts.bytes_read += reading.size
        source.skipped.merge(reading.skipped)
        for document in reading.documents:
            counts.documents += 1
            counts.characters += len(document)
            for start in range(0, len(document), MAX_CHARACTERS):
                yield Document(
                    document[start : start + MAX_CHARACTERS], str(path), continues=start > 0
                )
    if source.files and not counts.files:
        raise AGI2Error(f"{source.name}: no file of it can be read; {first_problem}")
    _log_counts(counts, is_logged)


def _log_counts(counts: SourceReport, is_logged: bool) -> None:
    if is_logged:
        amounts = [plural(counts.files, "file"), plural(counts.documents, "document")]
        amounts += [plural(counts.characters, "character"), human_bytes(counts.bytes_read)]
        log.info("%s", one_line(f"read {counts.name}: {', '.join(amounts)}"))
    for line in counts.skipped.lines():
        log.warning("%s", one_line(f"skipped in {counts.name}: {line}"))


@dataclass
class Reading:
    """Documents and statistics of one file."""

    documents: list[str]
    size: int
    """Size of the file in bytes."""
    skipped: Skipped = field(default_factory=Skipped)


def read_file(path: Path, text_field: str) -> Reading:
    """Read all documents of a file; a malformed row fails the complete file.

    Args:
        path: `.jsonl` has one document per line, `.csv` one per row; any other file is one.
        text_field: field of `.jsonl`, column of `.csv`.

    Raises:
        Unreadable: if the file is not text, is malformed, or has no text; the message names the
            line.
    """
    content = read_content(path)
    reading = Reading([], len(content))
    text = decode(content, str(path))
    del content
    empty = 0
    for document in _documents(path, text, text_field, reading.skipped):
        if document.strip():
            reading.documents.append(document)
        else:
            empty += 1
    if empty:
        reading.skipped.add("without text", str(path), count=empty)
    if not reading.documents:
        raise Unreadable("without text", f"{path}: contains no text")
    return reading


def _documents(path: Path, text: str, text_field: str, skipped: Skipped) -> Iterator[str]:
    """Return the documents of a file, also empty ones; count what is stripped in `skipped`."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _jsonl(path, text, text_field)
    if suffix == ".csv":
        return _csv(path, text, text_field)
    stripped = strip_gutenberg(text)
    if removed := len(text) - len(stripped):
        what = "header and licence of Project Gutenberg"
        skipped.add(what, str(path), size=removed, unit="characters")
    return iter([stripped])


def _jsonl(path: Path, text: str, text_field: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, f"{path}:{number}")
        except AGI2Error as error:
            raise Unreadable("broken JSON", str(error)) from error
        document = entry.get(text_field) if isinstance(entry, dict) else entry
        if not isinstance(document, str):
            raise Unreadable(
                "without the field",
                f"{path}:{number}: no text in the field {text_field!r}; " "set text_field",
            )
        # JSON escapes can encode lone surrogates and any line ends.
        yield unify_line_ends(document.encode("utf-8", "replace").decode())


def _csv(path: Path, text: str, text_field: str) -> Iterator[str]:
    """Yield the text column of each row; all rows must have as many fields as the first one."""
    csv.field_size_limit(2**31 - 1)  # a C long, which has 32 bits on Windows
    separator, columns = _columns(path, text, text_field)
    column = columns.index(text_field)
    rows = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    start_line = 1  # first line of the next row: a quoted field may span lines
    is_warned = False
    try:
        for number, row in enumerate(rows):
            line, start_line = start_line, rows.line_num + 1
            if number == 0 or not row:
                continue
            if len(row) != len(columns):
                raise Unreadable(
                    "broken CSV",
                    f"{path}:{line}: the row has {plural(len(row), 'field')}, the first row "
                    f"{len(columns)}: put fields with {separator!r} or line ends in quotes",
                )
            if not is_warned and _has_unclosed_quote(row, separator, len(columns)):
                log.warning(
                    "%s",
                    one_line(f"{path}:{line}: a field has lines like rows: is a quote missing?"),
                )
                is_warned = True
            yield row[column]
    except csv.Error as error:
        raise Unreadable(
            "broken CSV", f"{path}:{start_line}: not CSV: {error}; is a quote not closed?"
        ) from error


def _has_unclosed_quote(row: list[str], separator: str, columns: int) -> bool:
    """Return whether a multi-line field consists of lines with as many fields as a row.

    This is the symptom of an unclosed quote that the quote of a later row closes.
    """
    inside = [line for field in row for line in field.split("\n")[1:-1]]
    return (
        columns > 1
        and bool(inside)
        and all(line.count(separator) == columns - 1 for line in inside)
    )


def _columns(path: Path, text: str, text_field: str) -> tuple[str, list[str]]:
    """Detect the separator with which the first row has the column `text_field`.

    Returns:
        The separator and the column names.
    """
    columns_by_separator: dict[str, list[str]] = {}
    for separator in _SEPARATORS:
        try:
            row = next(csv.reader(io.StringIO(text), delimiter=separator, strict=True))
        except (csv.Error, StopIteration):
            continue
        columns_by_separator[separator] = [name.strip() for name in row]
    matching = [
        separator for separator, columns in columns_by_separator.items() if text_field in columns
    ]
    columns = max(columns_by_separator.values(), key=len, default=[])
    if columns in ([], [""]):
        raise Unreadable(
            "broken CSV", f"{path}:1: the first line is empty; it has to name the columns"
        )
    if not matching:
        raise Unreadable(
            "without the column",
            f"{path}: no column {text_field!r} among {', '.join(columns)}; set text_field",
        )
    if columns_by_separator[matching[0]].count(text_field) > 1:
        raise Unreadable("broken CSV", f"{path}: the column {text_field!r} occurs more than once")
    return matching[0], columns_by_separator[matching[0]]
