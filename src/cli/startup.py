"""What a command does before anything heavy is imported.

PyTorch takes seconds to import, and even rich and pydantic take longer than a user should wait for
a first sign of life: nothing here imports more than the standard library.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_LOADING = "loading"


@contextlib.contextmanager
def loading(is_shown: bool = True) -> Iterator[None]:
    """Show `loading` in a terminal for as long as this lasts; nothing in a pipe or a file.

    Args:
        is_shown: if false, show nothing.
    """
    if not is_shown or not sys.stderr.isatty():
        yield
        return
    if os.environ.get("TERM") in ("dumb", "unknown"):  # it cannot go back in a line
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
