"""The command `agi2`: its subcommands, and what holds for all of them.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence

from .common import app
from .startup import announce

# In the order in which `--help` lists their commands.
from . import completion, train, generate, evaluate, runs, convert  # noqa: F401  # isort: skip


def _replace_closed_streams() -> None:
    """Put the null device where a standard stream was closed before the start.

    Else the next file that is opened has its number, and whatever C code prints goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Numbers are given from below: in this order, each has its own again.
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def main(arguments: Sequence[str] | None = None, program: str = "agi2") -> None:
    """Run a command and exit: 0, 2 for an error that the user can mend, 130 for Ctrl-C."""
    _replace_closed_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    if os.environ.get("_AGI2_COMPLETE") == "complete_bash":
        completion.join_words(os.environ)
    try:
        announce(sys.argv[1:] if arguments is None else arguments)
        app(args=arguments, prog_name=program)
    except OSError as error:  # standard error does not take what typer says of a wrong argument
        raise SystemExit(2) from error
    finally:
        # While libraries clean up, one more Ctrl-C would only show their tracebacks.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
