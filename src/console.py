"""Terminal output: logging, progress bars, generated text. Tables are in `cli/table.py`.

Untrusted text (file names, generated text, tracebacks) is escaped before it reaches a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from .arguments import convert
from .errors import printable
from .utils import human_time, log

# Standard output carries only generated text and results, so that it can be piped.
console = Console(stderr=True, highlight=False)


class PrintableFormatter(logging.Formatter):
    """Formatter that escapes control characters and newlines in messages and their arguments."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the message and escape it."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Format the record and escape its traceback, too, which keeps its line breaks."""
        return printable(super().format(record), keep="\n")


def has_live_display() -> bool:
    """Return whether standard error is a terminal that can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


def setup_logging(level: int = logging.INFO) -> None:
    """Log to standard error: messages only, colored in a terminal.

    Under torchrun, only rank 0 logs.

    Args:
        level: minimum level of the records to log.
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


# The least level that is logged. A context variable: calls in other threads are not affected.
_least_level: ContextVar[int] = ContextVar("agi2_least_level", default=logging.NOTSET)
log.addFilter(lambda record: record.levelno >= _least_level.get())


class _Visibility:
    """Reference-counted log set-up: configures the logger for nested and concurrent calls.

    The logger's previous state is restored when the last call ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._previous: tuple[list[logging.Handler], int, bool] | None = None

    def begin(self) -> None:
        """Configure the logger on the first call, unless the application has configured it."""
        with self._lock:
            self._calls += 1
            is_configured = log.handlers or log.disabled or not log.propagate
            if self._calls > 1 or is_configured:
                return
            self._previous = log.handlers[:], log.level, log.propagate
            level = log.level or logging.INFO
            if log.hasHandlers():  # root handlers, set by the application
                log.setLevel(level)
            else:
                setup_logging(level)

    def end(self) -> None:
        """Undo `begin` when the last call ends."""
        with self._lock:
            self._calls -= 1
            if self._calls or self._previous is None:
                return
            log.handlers[:], level, log.propagate = self._previous
            log.setLevel(level)
            self._previous = None


_visibility = _Visibility()


@contextlib.contextmanager
def visible(verbose: bool = True) -> Iterator[None]:
    """Context manager that shows the log and progress of a call from Python.

    If the application has not configured logging, the log goes to standard error, with a progress
    bar in a terminal. If the root logger has handlers, they receive the records, once. If the
    logger `agi2` has a handler, nothing changes. A level that is set is kept; the default is INFO.
    The logger's state is restored on exit. Reentrant and thread-safe.

    Args:
        verbose: if false, log warnings only.
    """
    if not convert(bool, "verbose", verbose):
        with _hidden_below(logging.WARNING):
            yield
        return
    _visibility.begin()
    try:
        yield
    finally:
        _visibility.end()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Context manager that hides the log, warnings included: of what is done once more later."""
    with _hidden_below(logging.CRITICAL):
        yield


@contextlib.contextmanager
def _hidden_below(level: int) -> Iterator[None]:
    token = _least_level.set(max(level, _least_level.get()))
    try:
        yield
    finally:
        _least_level.reset(token)


def can_draw() -> bool:
    """Return whether progress bars are drawn: in a terminal, if the log goes to the same console.

    Another handler would write into the line of the bar.
    """
    is_shared = any(isinstance(handler, RichHandler) for handler in log.handlers)
    return has_live_display() and is_logged() and is_shared


def is_logged() -> bool:
    """Return whether INFO records are logged in this context."""
    return log.isEnabledFor(logging.INFO) and _least_level.get() <= logging.INFO


class TrainingDisplay:
    """Training progress: a progress bar in a terminal, otherwise a log line per logged step.

    Only one bar is drawn at a time: concurrent runs in other threads log lines.

    Args:
        total_steps: number of optimizer steps, or None if unknown.
    """

    def __init__(self, total_steps: int | None) -> None:
        self._total_label = f"/{total_steps}" if total_steps else ""
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
        self._is_live = can_draw() and _display_lock.acquire(blocking=False)
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._is_live = False
            try:
                self._progress.stop()
            finally:
                _display_lock.release()

    def update(
        self,
        step: int,
        progress: float,
        loss: float,
        *,
        speed: float,
        seconds_left: float,
        val_loss: float | None,
        mfu: float | None,
        memory: object,
    ) -> None:
        """Show the metrics of a step.

        Args:
            step: number of optimizer steps done.
            progress: completed fraction of the run, 0 to 1.
            loss: train loss in nats per token.
            speed: throughput in tokens per second.
            seconds_left: estimated remaining time.
            val_loss: last val loss in nats per token, if any.
            mfu: model FLOPs utilization, 0 to 1, or None if the device's peak FLOP/s is unknown.
            memory: printed as it is.
        """
        # In display order, with a rank each: if space is short, the highest rank is dropped first.
        parts = [(0, f"step {step}{self._total_label}"), (2, f"  loss {loss:.4f}")]
        if val_loss is not None:
            parts.append((3, f"  val {val_loss:.4f}"))
        parts.append((4, f"  {speed:,.0f} tok/s"))
        if mfu is not None:
            parts.append((6, f" (MFU {100 * mfu:.0f} %)"))
        parts += [(5, f"  {memory}"), (1, f"  {human_time(seconds_left)} left")]
        if self._is_live:
            self._bar.bar_width = max(8, min(24, console.width // 6))
            text = _fit_parts(parts, console.width - self._bar.bar_width - 1)
            self._progress.update(self._task, completed=progress, description=text)
        else:
            log.info("%3.0f %%  %s", 100 * progress, "".join(part for _, part in parts))


def _fit_parts(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join the parts that fit into `width` columns; drop the highest ranks first, keep one."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(part) for _, part in kept) > width:
        kept.remove(max(kept))
    return "".join(part for _, part in kept)


# In seconds, without a bar: delay before an operation is logged, interval of its progress lines.
_LOG_DELAY, _INTERVAL = 2.0, 30.0
# Whether an enclosing `show_progress` already shows this operation.
_is_showing: ContextVar[bool] = ContextVar("agi2_is_showing", default=False)
# Held by whoever draws: rich supports one live display per console.
_display_lock = threading.Lock()

Advance = Callable[[float], None]


@contextlib.contextmanager
def show_progress(
    what: str, log_at_once: bool = False, is_determinate: bool = False
) -> Iterator[Advance]:
    """Show a spinner or a progress bar during an operation, in a terminal.

    Elsewhere the operation is logged if it takes longer than 2 s. Nested calls show nothing.

    Args:
        what: description, such as `reading the text`.
        log_at_once: if no bar can be drawn, log at once instead of after 2 s.
        is_determinate: whether progress will be reported: a bar instead of a spinner.

    Yields:
        A function that reports the completed fraction, 0 to 1.
    """
    if _is_showing.get() or not is_logged():
        yield lambda fraction: None
        return
    token = _is_showing.set(True)
    may_draw = can_draw() and _display_lock.acquire(blocking=False)
    try:
        with (
            _progress_bar(what, is_determinate) if may_draw else _log_if_slow(what, log_at_once)
        ) as advance:
            yield advance
    finally:
        if may_draw:
            _display_lock.release()
        _is_showing.reset(token)


@contextlib.contextmanager
def _progress_bar(what: str, is_determinate: bool) -> Iterator[Advance]:
    columns = (
        BarColumn(bar_width=24) if is_determinate else SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(printable(what), total=1.0 if is_determinate else None)
        start = time.monotonic()

        def advance(fraction: float) -> None:
            description = printable(what) + _time_left(start, fraction)
            progress.update(task, completed=fraction, description=description)

        yield advance


def _time_left(start: float, fraction: float) -> str:
    """Return the estimated remaining time of an operation, as in `, 5 s left`; empty at first."""
    elapsed = time.monotonic() - start
    if elapsed < _LOG_DELAY or fraction <= 0:
        return ""
    return f", {human_time(elapsed * (1 - fraction) / fraction)} left"


@contextlib.contextmanager
def _log_if_slow(what: str, at_once: bool) -> Iterator[Advance]:
    timer = threading.Timer(_LOG_DELAY, log.info, ("%s", what))
    timer.daemon = True
    if at_once or console.is_terminal:
        log.info("%s", what)
    else:
        timer.start()
    start = last = time.monotonic()

    def advance(fraction: float) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _INTERVAL:
            log.info("%s: %.0f %%%s", what, 100 * fraction, _time_left(start, fraction))
            last = now

    try:
        yield advance
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()


@contextlib.contextmanager
def recorded_log() -> Iterator[list[tuple[int, str]]]:
    """Record levels and messages of what is logged, but not progress, to be logged again later."""
    lines: list[tuple[int, str]] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.module not in ("console", "threading"):  # as progress is
                lines.append((record.levelno, record.getMessage()))

    recorder = Recorder(logging.INFO)
    log.addHandler(recorder)
    try:
        yield lines
    finally:
        log.removeHandler(recorder)


# Text on standard output


def print_text(text: str, end: str = "\n") -> None:
    """Print generated text: unchanged to a pipe or a file, escaped in a terminal.

    A model can reproduce terminal escape sequences of its training data.
    """
    if sys.stdout.isatty():
        text = printable(text, keep="\n\t")
    print(text, end=end, flush=True)


def print_line(line: str) -> None:
    """Print a line of output, escaped: it may contain names of files and runs."""
    print(printable(line, keep="\n"), flush=True)


def print_wrapped(line: str) -> None:
    """Print a line of output, in a terminal wrapped at words, and if COLUMNS is set."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        line = textwrap.fill(
            printable(line),
            shutil.get_terminal_size().columns,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    print_line(line)
