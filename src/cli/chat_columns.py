"""Replies of several models side by side: in columns, row by row as they are generated."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

from ..console import print_text
from ..errors import printable

MIN_COLUMN = 40
"""Minimum width of a column; in a narrower terminal, replies are printed one after the other."""
_GAP = " | "


def column_width(columns: int) -> int | None:
    """Return the width of each column of a terminal; None where there are no columns.

    That is in a pipe, in a dumb terminal, and in one that is too narrow.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    width = (shutil.get_terminal_size().columns - len(_GAP) * (columns - 1)) // columns
    return width if width >= MIN_COLUMN else None


def print_columns(names: Sequence[str], streams: Sequence[Iterator[str]], width: int) -> None:
    """Print streams of text side by side; a row as soon as it is complete in all columns.

    The cursor never goes back, so that what is scrolled off stays right. An interrupt or an error
    prints what there is.

    Args:
        names: heads of the columns.
        streams: pieces of text; each gets its turn.
        width: of a column.
    """
    columns = [_Column(width) for _ in streams]
    for column, name in zip(columns, names, strict=True):
        column.push(f"--- {name} ---\n")
    active = dict(zip(columns, streams, strict=True))
    try:
        while active:
            for column, stream in list(active.items()):
                piece = next(stream, None)
                if piece is None:
                    column.finish()
                    del active[column]
                else:
                    column.push(piece)
            _print_rows(columns)
    finally:
        for column in active:
            column.finish()
        _print_rows(columns)


def _print_rows(columns: Sequence[_Column]) -> None:
    """Print the rows that are complete in all columns."""
    while any(column.lines for column in columns):
        if not all(column.lines or column.is_finished for column in columns):
            return
        cells = [column.lines.pop(0) if column.lines else "" for column in columns]
        *others, last = cells
        print_text(_GAP.join([*(set_cell_size(cell, columns[0].width) for cell in others), last]))


class _Column:
    """Wraps a stream of text at words.

    Args:
        width: the maximum width of a line, in terminal cells.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[str] = []
        """Complete lines."""
        self.is_finished = False
        self._text = ""

    def push(self, text: str) -> None:
        """Add a piece of text."""
        self._text += printable(text.replace("\t", "    "), keep="\n")
        while "\n" in self._text or cell_len(self._text) > self.width:
            line, line_end, rest = self._text.partition("\n")
            if cell_len(line) <= self.width:
                self.lines.append(line)
                self._text = rest
                continue
            fitting = chop_cells(line, self.width)[0]
            # At a space, which may be the first character that does not fit.
            space = line.rfind(" ", 0, len(fitting) + 1)
            cut = len(fitting) if space <= 0 else space
            self.lines.append(line[:cut].rstrip())
            self._text = line[cut:].lstrip(" ") + line_end + rest

    def finish(self) -> None:
        """End the text."""
        if self._text:
            self.lines.append(self._text)
        self._text = ""
        self.is_finished = True
