"""History of chat messages, in a file that only its owner can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History, InMemoryHistory

from ..data.corpus import cache_folder
from ..errors import AGI2Error
from ..utils import log

FILE_NAME = "chat_history"

# No symbolic links followed, no blocking on a FIFO. Windows has neither flag.
_FLAGS = (
    os.O_RDWR
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class PrivateHistory(History):
    """History in a file that is kept open, so that it cannot be replaced by another file.

    Args:
        descriptor: file descriptor, opened for reading and appending. The format is that of
            prompt_toolkit's `FileHistory`: per entry, a line that begins with `#`, then lines that
            begin with `+`.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._file = os.fdopen(descriptor, "rb+", buffering=0)

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries, newest first."""
        self._file.seek(0)
        entries: list[list[str]] = [[]]
        for line in self._file.read().decode("utf-8", errors="replace").split("\n"):
            if line.startswith("+"):
                entries[-1].append(line[1:])
            elif entries[-1]:
                entries.append([])
        return ["\n".join(entry) for entry in reversed(entries) if entry]

    def store_string(self, string: str) -> None:
        """Append an entry to the file; on an `OSError`, warn and keep it in memory only."""
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        try:
            self._file.write(f"\n#\n{lines}".encode(errors="replace"))
        except OSError as error:
            log.warning("the chat's history cannot be written: %s", error.strerror)


def open_history() -> History:
    """Open the history file; create it with mode 0600 if it does not exist.

    If the file cannot be opened or made private, log the reason and return an in-memory history.
    """
    try:
        return PrivateHistory(_open_private(cache_folder() / FILE_NAME))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (AGI2Error, RuntimeError) as error:  # RuntimeError: no home directory
        reason = str(error)
    log.warning("the chat's history is kept in memory only: %s", reason)
    return InMemoryHistory()


def _open_private(path: Path) -> int:
    """Open a file for reading and appending, and set its mode to 0600.

    Returns:
        The file descriptor.

    Raises:
        OSError: if it cannot be opened, or is a symbolic link.
        AGI2Error: if it is not a regular file, has other hard links, or belongs to another user.
    """
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():  # for a clear message; `O_NOFOLLOW` is the race-free check
        raise AGI2Error(f"{path} is a link: move it away")
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise AGI2Error(f"{path} is not a file of its own: move it away")
        if hasattr(os, "geteuid"):
            if status.st_uid != os.geteuid():
                raise AGI2Error(f"{path} belongs to another user: move it away")
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
