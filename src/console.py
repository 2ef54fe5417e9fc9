"""All terminal output: log, progress, text, tables. What others wrote never gets there raw."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from .arguments import convert
from .errors import printable
from .utils import human_time, log

# Everything but generated text goes to standard error.
console = Console(stderr=True, highlight=False)


class PrintableFormatter(logging.Formatter):
    """The bare message as one line that a terminal shows as it is, whatever its arguments hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escape the message."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Escape what is added to the message, too: a traceback, in lines of its own."""
        return printable(super().format(record), keep="\n")


def has_live_display() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


def setup_logging(level: int = logging.INFO) -> None:
    """Send the project's log to standard error: bare lines, coloured in a terminal.

    Of several processes under torchrun only the first has something to say.
    """
    if int(os.environ.get("RANK", 0)):
        level = logging.CRITICAL
    handler: logging.Handler
    if has_live_display():
        handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


# Whether this call, alone among those of all threads, was asked to log warnings only.
_is_quiet: ContextVar[bool] = ContextVar("agi2_is_quiet", default=False)
log.addFilter(lambda record: record.levelno >= logging.WARNING or not _is_quiet.get())


class _Visibility:
    """Shows the log while any call wants it, and then leaves the logger as it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before: tuple[list[logging.Handler], int, bool] | None = None

    def begin(self) -> None:
        """Set the logger up for the first of the calls, unless the host has done so."""
        with self._lock:
            self._calls += 1
            is_configured = log.handlers or log.disabled or not log.propagate
            if self._calls > 1 or is_configured:
                return
            self._before = log.handlers[:], log.level, log.propagate
            level = log.level or logging.INFO
            if log.hasHandlers():  # the host's, for all loggers
                log.setLevel(level)
            else:
                setup_logging(level)

    def end(self) -> None:
        """Undo `begin` after the last of the calls."""
        with self._lock:
            self._calls -= 1
            if self._calls or self._before is None:
                return
            log.handlers[:], level, log.propagate = self._before
            log.setLevel(level)
            self._before = None


_visibility = _Visibility()


@contextlib.contextmanager
def visible(verbose: bool = True) -> Iterator[None]:
    """Show what a call from Python does, for as long as it takes.

    Where the host has configured no logging, the log goes to standard error, with a progress bar
    in a terminal. Where it has given the root logger handlers, the records go to these, once. Where
    it has given the logger `agi2` a handler, nothing is changed; a level that it has set stays,
    otherwise INFO is the level. Afterwards the logger is as it was. Calls may be
    nested, and made in several threads.

    Args:
        verbose: whether to show it; warnings are logged all the same.
    """
    if not convert(bool, "verbose", verbose):
        token = _is_quiet.set(True)
        try:
            yield
        finally:
            _is_quiet.reset(token)
        return
    _visibility.begin()
    try:
        yield
    finally:
        _visibility.end()


def is_drawn() -> bool:
    """Whether bars are drawn: in a terminal that the log shares with them."""
    is_shared = any(isinstance(handler, RichHandler) for handler in log.handlers)
    return has_live_display() and is_logged() and is_shared


def is_logged() -> bool:
    """Whether lines of level INFO are logged for this call."""
    return log.isEnabledFor(logging.INFO) and not _is_quiet.get()


class TrainingDisplay:
    """A progress bar in a terminal, a line at each logged step elsewhere.

    A terminal has room for one bar: of several runs in threads, the others log lines.

    Args:
        total_steps: where that is known.
    """

    def __init__(self, total_steps: int | None) -> None:
        self._of = f"/{total_steps}" if total_steps else ""
        self._is_live = False
        self._bar = BarColumn(bar_width=24)
        self._progress = Progress(
            self._bar,
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=1.0)

    def __enter__(self) -> TrainingDisplay:
        self._is_live = is_drawn() and _drawing.acquire(blocking=False)
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._is_live = False
            try:
                self._progress.stop()
            finally:
                _drawing.release()

    def update(
        self,
        step: int,
        progress: float,
        loss: float,
        *,
        speed: float,
        seconds_left: float,
        val_loss: float | None,
        share_of_peak: float | None,
        memory: object,
    ) -> None:
        """Show where the run is: losses in nats per token, speed in tokens per second."""
        # In the order of the line, each with a rank: the highest goes first if there is no room.
        parts = [(0, f"step {step}{self._of}"), (2, f"  loss {loss:.4f}")]
        if val_loss is not None:
            parts.append((3, f"  val {val_loss:.4f}"))
        parts.append((4, f"  {speed:,.0f} tok/s"))
        if share_of_peak is not None:
            parts.append((6, f" ({100 * share_of_peak:.0f} % of peak)"))
        parts += [(5, f"  {memory}"), (1, f"  {human_time(seconds_left)} left")]
        if self._is_live:
            self._bar.bar_width = max(8, min(24, console.width // 6))
            text = _fit_parts(parts, console.width - self._bar.bar_width - 1)
            self._progress.update(self._task, completed=progress, description=text)
        else:
            log.info("%3.0f %%  %s", 100 * progress, "".join(part for _, part in parts))


def _fit_parts(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join as many parts as fit, those of the lowest ranks; the first rank always stays."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(part) for _, part in kept) > width:
        kept.remove(max(kept))
    return "".join(part for _, part in kept)


# In seconds: what takes longer is logged where nothing can be drawn; and then how far it is.
_PATIENCE, _INTERVAL = 2.0, 30.0
# Whether what this call does is shown already, as a part of something.
_is_busy: ContextVar[bool] = ContextVar("agi2_is_busy", default=False)
# A terminal has room for one at a time.
_drawing = threading.Lock()

Advance = Callable[[float], None]


@contextlib.contextmanager
def busy(what: str, everywhere: bool = False, measured: bool = False) -> Iterator[Advance]:
    """Show what is being done for as long as it takes: a clock or a bar in a terminal.

    Elsewhere it is logged if it takes longer than a moment. What is done as a part of it is not
    shown by itself.

    Args:
        what: such as `reading the text`.
        everywhere: log it at once where no bar can be drawn.
        measured: whether it will be known how much is done.

    Yields:
        A function to call with the share that is done, from 0 to 1.
    """
    if _is_busy.get() or not is_logged():
        yield lambda share: None
        return
    token = _is_busy.set(True)
    may_draw = is_drawn() and _drawing.acquire(blocking=False)
    try:
        with _drawn(what, measured) if may_draw else _logged(what, everywhere) as advance:
            yield advance
    finally:
        if may_draw:
            _drawing.release()
        _is_busy.reset(token)


@contextlib.contextmanager
def _drawn(what: str, measured: bool) -> Iterator[Advance]:
    columns = (
        BarColumn(bar_width=24) if measured else SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(printable(what), total=1.0 if measured else None)
        yield lambda share: progress.update(task, completed=share)


@contextlib.contextmanager
def _logged(what: str, at_once: bool) -> Iterator[Advance]:
    timer = threading.Timer(_PATIENCE, log.info, ("%s", what))
    timer.daemon = True
    if at_once or console.is_terminal:
        log.info("%s", what)
    else:
        timer.start()
    last = time.monotonic()

    def advance(share: float) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _INTERVAL:
            log.info("%s: %.0f %%", what, 100 * share)
            last = now

    try:
        yield advance
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()


# Text and tables on standard output

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
