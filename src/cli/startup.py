"""Code that runs before heavy packages are imported.

Imports only the standard library: PyTorch takes seconds to import, and even rich and pydantic take
long enough to delay the first output noticeably.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

_LOADING = "loading"
# Commands that never show it, and flags with which none does.
_WITHOUT_LOADING = {"list"}
_SILENT_FLAGS = {"--help", "-h", "--quiet", "-q"}


def announce(arguments: Sequence[str]) -> None:
    """Show `loading` before the arguments are parsed, which takes typer a while.

    The command's own `loading` erases it, or what is printed covers it. Nothing is shown to a
    terminal that cannot redraw a line.
    """
    is_command = (
        arguments and not arguments[0].startswith("-") and arguments[0] not in _WITHOUT_LOADING
    )
    if (
        is_command
        and not _SILENT_FLAGS & set(arguments)
        and sys.stderr.isatty()
        and _supports_carriage_return()
    ):
        print(_LOADING, end="\r", file=sys.stderr, flush=True)


def _supports_carriage_return() -> bool:
    return os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def exit_on_sigint() -> Iterator[None]:
    """Context manager in which Ctrl-C ends the process without a traceback.

    For imports: there is nothing to clean up yet. A handler other than Python's own stays.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def loading(is_shown: bool = True) -> Iterator[None]:
    """Context manager that shows `loading` if standard error is a terminal.

    Args:
        is_shown: if false, show nothing.
    """
    if not is_shown or not sys.stderr.isatty():
        yield
        return
    if not _supports_carriage_return():
        print(_LOADING, file=sys.stderr, flush=True)
        yield
        return
    # Log lines start in the same column and are longer, so that they overwrite it.
    print(_LOADING, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"{' ' * len(_LOADING)}\r", end="", file=sys.stderr, flush=True)


def limit_openmp_spinning(spins: int) -> None:
    """Limit the busy-waiting of OpenMP threads (libgomp). Call before importing PyTorch.

    With the default, a step takes several times as long if other processes use the cores; the
    limit has no measurable cost on an idle machine. The forward pass in C (`nn/cpu_kernels.c`)
    needs even fewer spins.

    Args:
        spins: value of GOMP_SPINCOUNT, unless the user has set it.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(spins))
