"""Entry point of the command `agi2`: subcommands, standard streams and exit status.

Heavy packages are imported inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence

from .startup import announce, exit_on_sigint

with exit_on_sigint():
    # Imported for their commands, in the order in which `--help` lists these.
    from . import (  # noqa: F401  # isort: skip
        completion,
        train,
        tune,
        configure,
        sweep,
        generate,
        evaluate,
        serve,
        runs,
        convert,
        data,
        tokenizer,
    )
    from .common import app


def _replace_closed_streams() -> None:
    """Open the null device for each standard stream that was closed at start-up.

    Otherwise the next opened file gets the stream's file descriptor, and C code prints into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # `open` returns the lowest free descriptor: in this order, that of this stream.
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def main(arguments: Sequence[str] | None = None, program: str = "agi2") -> None:
    """Run a command and exit: 0, 2 on an error that the user can fix, 130 on Ctrl-C.

    Args:
        arguments: command-line arguments; by default those of `sys.argv`.
        program: program name in the help.
    """
    try:
        _replace_closed_streams()
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors="replace")
        if os.environ.get("_AGI2_COMPLETE") == "complete_bash":
            completion.join_words(os.environ)
        announce(sys.argv[1:] if arguments is None else arguments)
        app(args=arguments, prog_name=program)
    except OSError as error:  # typer could not print its error message to standard error
        raise SystemExit(2) from error
    except KeyboardInterrupt as interrupt:  # before or after the command itself
        raise SystemExit(130) from interrupt
    finally:
        # A Ctrl-C during the libraries' clean-up would print a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
