"""What a command does before anything heavy is imported.

PyTorch takes seconds to import, and even rich and pydantic take longer than a user should wait for
a first sign of life: nothing here imports more than the standard library.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

_LOADING = "loading"
# Commands that never show it, and flags with which none does.
_AT_ONCE = {"list"}
_SILENT = {"--help", "-h", "--quiet", "-q"}


def announce(arguments: Sequence[str]) -> None:
    """Show `loading` before the arguments are parsed, which takes typer a while.

    The command's own `loading` erases it, or what is printed covers it. Nothing is shown to a
    terminal that cannot go back in a line.
    """
    is_command = arguments and not arguments[0].startswith("-") and arguments[0] not in _AT_ONCE
    if is_command and not _SILENT & set(arguments) and sys.stderr.isatty() and _can_go_back():
        print(_LOADING, end="\r", file=sys.stderr, flush=True)


def _can_go_back() -> bool:
    return os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def loading(is_shown: bool = True) -> Iterator[None]:
    """Show `loading` in a terminal for as long as this lasts; nothing in a pipe or a file.

    Args:
        is_shown: if false, show nothing.
    """
    if not is_shown or not sys.stderr.isatty():
        yield
        return
    if not _can_go_back():
        print(_LOADING, file=sys.stderr, flush=True)
        yield
        return
    # What is logged meanwhile begins at the same place, and is longer.
    print(_LOADING, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"{' ' * len(_LOADING)}\r", end="", file=sys.stderr, flush=True)


def limit_spinning(spins: int) -> None:
    """Let the threads of PyTorch, which is not imported yet, stop spinning soon.

    By default they spin for so long that beside other work a step takes several times as long;
    alone, this costs nothing that could be measured. A forward in C (`nn/cpu_kernels.c`) needs
    still less.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(spins))
