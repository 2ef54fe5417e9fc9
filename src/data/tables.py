"""Read CSV and TSV files, row by row."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import one_line
from ..utils import log, plural
from .documents import Document
from .fields import DEFAULT_FIELD, are_texts, choose_field
from .inputs import Input
from .text import MAX_LINE, text_lines

_SEPARATORS = (",", ";", "\t", "|")
# Characters of the beginning of a table by which its separator and columns are found.
_HEAD = 2**16


@dataclass
class Layout:
    """The separator and the columns of a table, and a few of its rows."""

    separator: str
    columns: list[str]
    rows: list[list[str]]

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
    layout = _layout(source, head)
    rows = csv.reader(itertools.chain(head, lines), delimiter=layout.separator, strict=True)
    return layout, _warned(source, _checked(source, rows, layout), layout)


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


def _layout(source: Input, head: list[str]) -> Layout:
    """Find the separator with which the first row has the column of the text, or most columns."""
    is_tabs = source.filename.lower().endswith(".tsv")
    layouts = [_parse_head(head, each) for each in ("\t" if is_tabs else _SEPARATORS)]
    found = [layout for layout in layouts if layout is not None]
    if not found:
        raise source.error("broken tables", "not CSV; is a quote not closed?", ":1")
    widest = max(found, key=lambda layout: layout.rank)
    if all(layout.columns in ([], [""]) for layout in found):
        raise source.error(
            "broken tables", "the first line is empty; it has to name the columns", ":1"
        )
    wanted = source.options.text_field or DEFAULT_FIELD
    return next((layout for layout in found if wanted in layout.columns), widest)


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
    source: Input, rows: Iterator[list[str]], layout: Layout
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows after the first one, and the line in which each begins."""
    start_line = 1  # first line of the next row: a quoted field may span lines
    number = 0
    separator, columns = layout.separator, len(layout.columns)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem = f"not CSV: {error}; is a quote not closed?"
            raise source.error("broken tables", problem, f":{start_line}") from error
        if row is None:
            return
        line, start_line = start_line, rows.line_num + 1  # type: ignore[attr-defined]
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
