"""Tables on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable

Rows = list[list[str]]
# Spaces between columns: one of padding and one of rich's column divider.
_GAP = 2


def print_table(head: Sequence[str], rows: Rows, optional: Sequence[str] = ()) -> list[str]:
    """Print a table: fitted to the width of a terminal or COLUMNS, plain text columns elsewhere.

    Words are not broken unless they are wider than the terminal: if the columns do not fit, each
    row is printed as a block of `name: value` lines.

    Args:
        head: column names.
        rows: cells of each row.
        optional: columns to drop in a narrow terminal, in this order.

    Returns:
        The names of the dropped columns.
    """
    head = [printable(name) for name in head]
    rows = [[printable(cell) for cell in row] for row in rows]
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        _print_plain(head, rows)
        return []
    console = Console(highlight=False)
    dropped: list[str] = []
    for name in optional:
        if _fit(head, rows, console.width) is None:
            index = head.index(name)
            head = head[:index] + head[index + 1 :]
            rows = [row[:index] + row[index + 1 :] for row in rows]
            dropped.append(name)
    widths = _fit(head, rows, console.width)
    if widths is None:
        _print_blocks(console, head, rows)
    else:
        _print_rich(console, head, rows, widths)
    return dropped


def _fit(head: Sequence[str], rows: Rows, max_width: int) -> list[int] | None:
    """Return column widths that break no word, or None if `max_width` columns are not enough."""
    columns = list(zip(head, *rows, strict=True))
    natural = [max(map(cell_len, column)) for column in columns]
    # Cells of up to 20 columns (names, numbers) stay on one line; longer ones may wrap at words.
    minimal = [
        min(width, max(20, *(cell_len(word) for cell in column for word in cell.split())))
        for width, column in zip(natural, columns, strict=True)
    ]
    spare = (
        max_width - sum(minimal) - _GAP * (len(columns) - 1) - 1
    )  # 1: padding of the last column
    if spare < 0:
        return None
    widths = []
    for width, low in zip(natural, minimal, strict=True):
        more = min(width - low, spare)
        widths.append(low + more)
        spare -= more
    return widths


def _print_plain(head: Sequence[str], rows: Rows) -> None:
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        cells = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        print((" " * _GAP).join(cells).rstrip())


def _print_rich(console: Console, head: Sequence[str], rows: Rows, widths: Sequence[int]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name, width in zip(head, widths, strict=True):
        table.add_column(Text(name), width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _print_blocks(console: Console, head: Sequence[str], rows: Rows) -> None:
    for row in rows:
        console.print(Text(row[0], "bold"), soft_wrap=True)
        for name, cell in zip(head[1:], row[1:], strict=True):
            console.print(Text(f"  {name}: {cell}"), soft_wrap=True)
