"""Read CSV and TSV files, row by row."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import one_line
from ..utils import log, plural
from .documents import Document
from .fields import DEFAULT_FIELD, are_texts, choose_field
from .inputs import Input
from .text import MAX_LINE, text_lines

_SEPARATORS = (",", ";", "\t", "|")
# The first line with which Excel and others name the separator.
_NAMED = re.compile(r"(?:\ufeff)?sep=(.)\r?\n", re.IGNORECASE)
# Characters of the beginning of a table by which its separator and columns are found.
_HEAD = 2**16


@dataclass
class Layout:
    """The separator and the columns of a table, and a few of its rows."""

    separator: str
    columns: list[str]
    rows: list[list[str]]
    quoting: int = csv.QUOTE_MINIMAL
    """`QUOTE_NONE` if quotes are characters of the text."""

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The key by which the best layout is the largest: regular ones of several columns."""
        is_regular = all(len(row) == len(self.columns) for row in self.rows)
        return len(self.columns) > 1, is_regular, len(self.columns)

    @property
    def candidates(self) -> list[str]:
        """The columns with text; the only column, unless the numbers begin in its first line."""
        if len(self.columns) == 1:
            return self.columns if are_texts(self.columns) else []
        return [
            name
            for column, name in enumerate(self.columns)
            if are_texts([row[column] for row in self.rows if column < len(row)])
        ]

    def column(self, source: Input, name: str) -> int:
        """Return the index of a column.

        Raises:
            Unreadable: if several have this name.
        """
        if self.columns.count(name) > 1:
            raise source.error("broken tables", f"the column {name!r} occurs more than once")
        return self.columns.index(name)


def read_table(source: Input) -> Iterator[Document]:
    """Yield the text column of each row; all rows must have as many fields as the first one."""
    layout, rows = open_table(source)
    field = choose_field(source, layout.columns, layout.candidates)
    column = layout.column(source, field)
    for line, row in rows:
        yield source.document(row[column], f":{line}")


def open_table(source: Input) -> tuple[Layout, Iterator[tuple[int, list[str]]]]:
    """Return the layout of a table, and its rows with the line in which each begins."""
    csv.field_size_limit(MAX_LINE)
    lines = (line + "\n" for line in text_lines(source))
    head = list(_head(lines))
    named = _NAMED.match(head[0]) if head else None
    head = head[1:] if named else head
    layout = _layout(source, head, named[1] if named else None)
    rows = csv.reader(
        itertools.chain(head, lines),
        delimiter=layout.separator,
        quoting=layout.quoting,  # type: ignore[arg-type]
        strict=True,
    )
    checked = _checked(source, rows, layout, 2 if named else 1)
    return layout, _warned(source, checked, layout)


def _warned(
    source: Input, rows: Iterator[tuple[int, list[str]]], layout: Layout
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows; warn of the first one that looks as if a quote were missing."""
    is_warned = False
    for line, row in rows:
        if not is_warned and _has_unclosed_quote(row, layout.separator, len(layout.columns)):
            what = f"{source.name}:{line}: a field has lines like rows: is a quote missing?"
            log.warning("%s", one_line(what))
            is_warned = True
        yield line, row


def _head(lines: Iterable[str]) -> Iterator[str]:
    size = 0
    for line in lines:
        yield line
        size += len(line)
        if size >= _HEAD:
            return


def _layout(source: Input, head: list[str], named: str | None) -> Layout:
    """Find the separator with which the first row has the column of the text, or most columns.

    Args:
        source: the input.
        head: lines at its beginning.
        named: the separator that the file itself names, if it does.
    """
    is_tabs = source.filename.lower().endswith(".tsv")
    separators = named or ("\t" if is_tabs else _SEPARATORS)
    unquoted = _unquoted(head)
    if separators == "\t" and unquoted is not None:
        source.note(_QUOTES_ARE_TEXT)
        return unquoted
    layouts = [_parse_head(head, each) for each in separators]
    found = [layout for layout in layouts if layout is not None]
    if not found:
        raise source.error("broken tables", "not CSV; is a quote not closed?", ":1")
    widest = max(found, key=lambda layout: layout.rank)
    if all(layout.columns in ([], [""]) for layout in found):
        raise source.error(
            "broken tables", "the first line is empty; it has to name the columns", ":1"
        )
    wanted = source.options.text_field or DEFAULT_FIELD
    chosen = next((layout for layout in found if wanted in layout.columns), widest)
    if chosen.separator == "\t" and unquoted is not None:
        source.note(_QUOTES_ARE_TEXT)
        return unquoted
    return chosen


_QUOTES_ARE_TEXT = "read with quotes as text, as they enclose no fields"


def _unquoted(head: list[str]) -> Layout | None:
    """Return the layout of lines with tabs in which a quote begins a field, but ends none.

    Most programs that write tabs quote nothing. None if quotes enclose fields, or every line has
    not as many tabs as the first one: a line end may be in quotes.
    """
    lines = [line.rstrip("\n").split("\t") for line in head if line != "\n"]
    quoted = [field for fields in lines for field in fields if field.startswith('"')]
    is_enclosed = all(_ENCLOSED.fullmatch(field) for field in quoted)
    if (
        not quoted
        or is_enclosed
        or _is_quoted(head)
        or any(len(fields) != len(lines[0]) for fields in lines[:-1])
    ):
        return None
    return Layout("\t", [name.strip() for name in lines[0]], lines[1:], csv.QUOTE_NONE)


def _is_quoted(head: list[str]) -> bool:
    """Return whether all quotes at the beginning of fields with tabs are closed at their ends."""
    try:
        return len({len(row) for row in csv.reader(head, delimiter="\t", strict=True) if row}) == 1
    except csv.Error:
        return False


_ENCLOSED = re.compile(r'"(?:[^"]|"")*"')


def _parse_head(head: list[str], separator: str) -> Layout | None:
    """Parse the beginning of a table, up to a row that is malformed or incomplete.

    None if that is the first row, as with a wrong separator after a quoted name.
    """
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(head, delimiter=separator, strict=True))
    except csv.Error:
        if not rows:
            return None
    first, *rest = rows or [[]]
    return Layout(separator, [name.strip() for name in first], [row for row in rest if row])


def _checked(
    source: Input, rows: Iterator[list[str]], layout: Layout, first_line: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows after the first one, which is in a line, and the line in which each begins."""
    start_line = first_line  # of the next row: a quoted field may span lines
    number = 0
    separator, columns = layout.separator, len(layout.columns)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            advice = "quote the fields with quotes" if layout.separator == "\t" else ""
            problem = f"not CSV: {error}; is a quote not closed?{advice and f' If not, {advice}'}"
            raise source.error("broken tables", problem, f":{start_line}") from error
        if row is None:
            return
        line, start_line = start_line, rows.line_num + first_line  # type: ignore[attr-defined]
        number += 1
        if number == 1 or not row:
            continue
        if len(row) != columns:
            raise source.error(
                "broken tables",
                f"the row has {plural(len(row), 'field')}, the first row {columns}: put fields "
                f"with {separator!r} or line ends in quotes",
                f":{line}",
            )
        yield line, row


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
