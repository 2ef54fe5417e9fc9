"""What was typed in chats before: kept in a file that nobody else can read."""

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

# Not followed through a link, and never waiting for the other end of a pipe. Windows has neither.
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
    """Lines in a file that stays open, so that no other file can take its place.

    Args:
        descriptor: of the file, for reading and appending. Each entry is lines that begin with
            `+`, after a line that begins with `#`, as in prompt_toolkit's own files.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._file = os.fdopen(descriptor, "rb+", buffering=0)

    def load_history_strings(self) -> Iterable[str]:
        """The entries, the newest first."""
        self._file.seek(0)
        entries: list[list[str]] = [[]]
        for line in self._file.read().decode("utf-8", errors="replace").split("\n"):
            if line.startswith("+"):
                entries[-1].append(line[1:])
            elif entries[-1]:
                entries.append([])
        return ["\n".join(entry) for entry in reversed(entries) if entry]

    def store_string(self, string: str) -> None:
        """Append an entry; one that cannot be written is remembered in memory alone."""
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        try:
            self._file.write(f"\n#\n{lines}".encode(errors="replace"))
        except OSError as error:
            log.warning("the chat's history cannot be written: %s", error.strerror)


def open_history() -> History:
    """Open the history, made for its owner alone if it does not exist.

    If it cannot be kept so, what is typed is remembered in memory, and one line says why.
    """
    try:
        return PrivateHistory(_open_private(cache_folder() / FILE_NAME))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (AGI2Error, RuntimeError) as error:  # the latter without a home
        reason = str(error)
    log.warning("the chat's history is kept in memory only: %s", reason)
    return InMemoryHistory()


def _open_private(path: Path) -> int:
    """Open a file of the user's own for reading and appending, and make it private.

    Raises:
        OSError: if it cannot be opened, or is a link.
        AGI2Error: if it is not a file that the user alone has.
    """
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():  # for the message: `O_NOFOLLOW` is what refuses it
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
