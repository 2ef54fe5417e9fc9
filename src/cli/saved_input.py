"""`SavedInput`: a pipe, which can be read only once, saved to a file."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from ..console import show_progress
from ..data.documents import ReadOptions, SourceReport
from ..data.inputs import open_input
from ..data.text_files import STDIN
from ..errors import AGI2Error
from ..utils import convert_write_errors, human_bytes, log


def is_pipe(source: str) -> bool:
    """Return whether a source is standard input or a named pipe."""
    path = Path(source)
    return path == STDIN or (os.path.exists(path) and path.is_fifo())


@dataclass(frozen=True)
class SavedInput:
    """What was read from a pipe, in a file."""

    path: Path
    is_new: bool
    """Whether the file did not exist before."""

    @classmethod
    def save(cls, source: str, base: Path) -> SavedInput:
        """Read a pipe to its end into a file, whose name begins as `base` and has its hash.

        Raises:
            AGI2Error: if it cannot be read, is empty, or the file cannot be written.
        """
        temporary = base.with_name(f".{base.name}.{uuid.uuid4().hex[:8]}")
        what = "standard input" if source == str(STDIN) else source
        try:
            with convert_write_errors(base), show_progress(f"reading {what}"):
                base.parent.mkdir(parents=True, exist_ok=True)
                size, digest = _copy(source, temporary)
                if not size:
                    raise AGI2Error(f"{source}: {what} is empty: pipe a text into it")
                # The suffix selects the format, as that of the pipe would; `-` has none.
                suffix = f".input{Path(source).suffix}"
                path = base.with_name(f"{base.name}-{digest[:8]}{suffix}")
                is_new = not path.exists()
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        log.info("saved %s, %s, to %s", what, human_bytes(size), path)
        return cls(path, is_new)

    def discard(self) -> None:
        """Delete the file, unless it existed before."""
        if self.is_new:
            self.path.unlink(missing_ok=True)


def _copy(source: str, path: Path) -> tuple[int, str]:
    """Copy a pipe to a file; return its size and its hash."""
    digest, size = hashlib.sha256(), 0
    report = SourceReport(source)
    with open(path, "xb") as file, open_input(Path(source), ReadOptions(), report) as opened:
        for block in opened.blocks():
            file.write(block)
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
