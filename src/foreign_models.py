"""Models of other projects where one of AGI2 is named: which they are, and how to import them."""

from __future__ import annotations

import shlex
from pathlib import Path

from .command_line import command_line
from .utils import open_file

GGUF_MAGIC = b"GGUF"


def is_gguf(path: str | Path) -> bool:
    """Return whether a path names a GGUF file, by its suffix or by its first bytes."""
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    try:
        with open_file(path) as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def import_advice(path: str | Path) -> str:
    """Return how to convert a path if it is a model that can be imported; else an empty string."""
    path = Path(path)
    if not (path / "config.json").is_file() and not (path.is_file() and is_gguf(path)):
        return ""
    command = command_line(f"import {shlex.quote(str(path))} NEW_FOLDER")
    return f"make it one: {command}"
