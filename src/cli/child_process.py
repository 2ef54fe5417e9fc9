"""Commands of processes that call a function of this package, and end when this process ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python_command(module: str, call: str, folder: str = "") -> list[str]:
    """Return the command of a new Python process.

    It exits when this process does, even if that is killed.

    Args:
        module: the module of the function, such as `src.cli.sweep_worker`.
        call: the call, such as `train_recipe('a.toml')`.
        folder: a temporary folder to delete then.
    """
    package, function = module.partition(".")[0], call.partition("(")[0]
    program = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        f"from {package}.utils import exit_with_parent\n"
        f"exit_with_parent({os.getpid()}, {folder!r})\n"
        f"from {module} import {function}\n"
        f"{call}"
    )
    return [sys.executable, "-c", program]
