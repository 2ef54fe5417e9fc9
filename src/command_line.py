"""The command that runs `agi2`, as messages show it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command_line(arguments: str) -> str:
    """Return a command that the user can type to run `agi2` with these arguments.

    It begins as this process was started: `uv run agi2`, `agi2`, or a path to either the command or
    Python.

    Args:
        arguments: quoted for a shell.
    """
    return f"{_program()} {arguments}"


def _program() -> str:
    # `uv run` sets it. Its child finds `agi2` on a PATH that the user's shell does not have.
    if "UV_RUN_RECURSION_DEPTH" in os.environ:
        return "uv run agi2"
    if shutil.which("agi2"):
        return "agi2"
    started = Path(sys.argv[0])
    if started.stem == "agi2" and started.is_file():  # of an environment that is not active
        return shlex.quote(str(started))
    # Without an installation, the scripts of a checkout import the package as `src`.
    package = __name__.partition(".")[0]
    return f"{shlex.quote(sys.orig_argv[0] or 'python')} -m {package}"
