"""The lock of a run folder, and how a run claims its folder."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import itertools
import os
import time
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import AGI2Error
from ..utils import convert_write_errors, log

# Windows has no fcntl.
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
# Not through a link, which would create a file elsewhere; Windows has no such links.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
LOCK = ".lock"
"""The file in a folder on which its `FolderLock` is held."""

Phase = Literal["preparing", "training", "validating"]
"""What the process that holds a lock does; `validating` is what follows the last step."""
# `read_phase` holds the lock for a moment, too.
_ATTEMPTS, _PAUSE_SECONDS = 5, 0.02


class FolderLock:
    """An exclusive lock (flock) on a folder, held until `release` or the end of the process.

    It is held on a file in the folder, so a folder that is renamed stays locked. A no-op if the
    system has no flock.

    Args:
        folder: the folder; if it does not exist, nothing is locked until `take`.

    Raises:
        AGI2Error: if another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None
        self._phase: Phase = "preparing"
        self.take()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Lock the folder that has the name now, unless it is locked by this object already.

        Raises:
            AGI2Error: if another process holds the lock.
        """
        # Another process may delete the file, or rename the folder, after the file is opened and
        # before it is locked: such a lock is not of the folder that has the name now.
        while not self.is_held:
            self.release()
            if not self._lock_file():
                return

    def _lock_file(self) -> bool:
        """Open and lock the file; return whether there is a folder to lock."""
        missing = FileNotFoundError, NotADirectoryError
        with convert_write_errors(self._path.parent), contextlib.suppress(*missing):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
        if self._descriptor is None:
            return False
        try:
            _lock_exclusively(self._descriptor)
        except BlockingIOError as error:
            os.close(self._descriptor)
            self._descriptor = None
            raise AGI2Error(
                f"{self._path.parent}: another process is training there: wait for it, or set "
                "another model_name"
            ) from error
        except OSError:  # the file system has no locks
            log.debug("%s cannot be kept for one process", self._path.parent)
        self._write_phase()
        return True

    def set_phase(self, phase: Phase) -> None:
        """Say what this process does, for `read_phase` in other processes."""
        self._phase = phase
        self._write_phase()

    def _write_phase(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk: the run itself reports it
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, self._phase.encode(), 0)

    @property
    def is_held(self) -> bool:
        """Whether the lock file is still the one locked: `False` if it was deleted or replaced."""
        if self._descriptor is None:
            return fcntl is None
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except OSError:
            return False

    def release(self, folder: Path | None = None) -> None:
        """Release the lock and delete its file.

        Args:
            folder: the folder's present path, if it was renamed.
        """
        own_path, self._path = self._path, self._path if folder is None else folder / LOCK
        if self._descriptor is not None:
            if self.is_held:  # else the file is another process's
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None
        self._path = own_path


def _lock_exclusively(descriptor: int) -> None:
    for _ in range(_ATTEMPTS - 1):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_phase(folder: Path) -> Phase | None:
    """Return what the process that holds the lock of a folder does; `None` if none holds it."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            written = os.read(descriptor, 20).decode(errors="replace")
            return next((phase for phase in get_args(Phase) if phase == written), "training")
        finally:
            os.close(descriptor)
    return None


def claim_folder(folder: Path, lock: FolderLock) -> Path | None:
    """Create and lock an empty run folder; an existing one is locked, then moved to NAME.1.

    Of several processes that claim a folder at a time, one gets it: a folder is only moved by the
    process that holds its lock.

    Args:
        folder: the run folder.
        lock: the lock of `folder`, which is taken if it is not held.

    Returns:
        The new path of the folder that existed; `None` if there was none, or it was empty.

    Raises:
        AGI2Error: if another process trains in the folder, or it cannot be created or moved.
    """
    moved = None
    while True:
        with convert_write_errors(folder):
            if os.path.lexists(folder) and not folder.is_dir():
                raise AGI2Error(f"{folder} is not a folder: move it away, or set model_name")
            folder.mkdir(parents=True, exist_ok=True)
        lock.take()
        with convert_write_errors(folder), contextlib.suppress(FileNotFoundError):
            if lock.is_held:  # else it was moved away before it was locked: create the next
                if {path.name for path in folder.iterdir()} <= {LOCK}:
                    return moved
                moved = _move_aside(folder)
                lock.release(moved)


def _move_aside(folder: Path) -> Path:
    """Rename a run folder, which this process has locked, to the first free NAME.1, NAME.2, ..."""
    for number in itertools.count(1):
        aside = folder.with_name(f"{folder.name}.{number}")
        if os.path.lexists(aside):
            continue
        try:
            os.rename(folder, aside)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # created since it was free
                raise
        else:
            break
    log.info("%s exists: moved to %s", folder, aside)
    return aside
