"""Read the documents of a text, JSONL or CSV file, and count what is skipped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AGI2Error, one_line
from ..utils import log, parse_json, plural
from .gutenberg import strip_gutenberg
from .text_files import Skipped, Unreadable, decode, read_content, unify_line_ends

_SEPARATORS = (",", ";", "\t", "|")


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
