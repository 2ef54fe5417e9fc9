"""Text and tables on standard output. What others wrote never reaches a terminal raw."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import printable

Rows = list[list[str]]

# Spaces between columns: a padding of one, and one that divides.
_GAP = 2


def print_text(text: str, end: str = "\n") -> None:
    """Print generated text: byte for byte to a pipe or a file, escaped in a terminal.

    A model repeats what it was trained on, escape sequences too: a terminal would follow them.
    """
    if sys.stdout.isatty():
        text = printable(text, keep="\n\t")
    print(text, end=end, flush=True)


def print_line(line: str) -> None:
    """Print a line of ours, in which names of files and runs may stand."""
    print(printable(line, keep="\n"), flush=True)


def print_table(head: Sequence[str], rows: Rows, optional: Sequence[str] = ()) -> list[str]:
    """Print a table: fitted to a terminal's width, columns of plain text elsewhere.

    No word is broken unless it is wider than the terminal: what does not fit in columns is printed
    as one block for each row.

    Args:
        head: the columns' names.
        rows: of cells.
        optional: columns to leave out in a narrow terminal, the first one first.

    Returns:
        The columns that were left out.
    """
    head = [printable(name) for name in head]
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain(head, rows)
        return []
    console = Console(highlight=False)
    left_out: list[str] = []
    for name in optional:
        if _fit(head, rows, console.width) is None:
            place = head.index(name)
            head = head[:place] + head[place + 1 :]
            rows = [row[:place] + row[place + 1 :] for row in rows]
            left_out.append(name)
    widths = _fit(head, rows, console.width)
    if widths is None:
        _print_blocks(console, head, rows)
    else:
        _print_drawn(console, head, rows, widths)
    return left_out


def _fit(head: Sequence[str], rows: Rows, room: int) -> list[int] | None:
    """Widths of the columns in which no word is broken; none if there is not enough room."""
    columns = list(zip(head, *rows, strict=True))
    wanted = [max(map(cell_len, column)) for column in columns]
    # Names and figures stay on one line; what is longer may be wrapped between its words.
    least = [
        min(width, max(20, *(cell_len(word) for cell in column for word in cell.split())))
        for width, column in zip(wanted, columns, strict=True)
    ]
    spare = room - sum(least) - _GAP * (len(columns) - 1) - 1  # the last column is padded, too
    if spare < 0:
        return None
    widths = []
    for width, small in zip(wanted, least, strict=True):
        more = min(width - small, spare)
        widths.append(small + more)
        spare -= more
    return widths


def _print_plain(head: Sequence[str], rows: Rows) -> None:
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        cells = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        print((" " * _GAP).join(cells).rstrip())


def _print_drawn(console: Console, head: Sequence[str], rows: Rows, widths: Sequence[int]) -> None:
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name, width in zip(head, widths, strict=True):
        drawn.add_column(Text(name), width=width)
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def _print_blocks(console: Console, head: Sequence[str], rows: Rows) -> None:
    for row in rows:
        console.print(Text(row[0], "bold"), soft_wrap=True)
        for name, cell in zip(head[1:], row[1:], strict=True):
            console.print(Text(f"  {name}: {cell}"), soft_wrap=True)
