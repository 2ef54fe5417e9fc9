"""Tasks that several processes do together, on one machine or on many that share a folder.

The result of a task is a folder, renamed into place when it is complete: a task that was
interrupted is done again, and one that is done is not. Each process does the tasks that no other
one is doing: a lock (flock) is held on a file for each, and is released when a process ends, also
if it is killed. Locks only save work: a task that two processes do has the same result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..console import show_progress
from ..errors import AGI2Error
from ..utils import log, plural, sync_folder
from .token_cache import try_lock

_POLL_SECONDS = 0.5
_LOG_SECONDS = 60.0
_MAX_WAIT_SECONDS = 12 * 3600.0
_LISTED = 8  # tasks that are named in a message

Task = Callable[[int, Path], None]
"""Does the task of an index: writes its result into a folder."""


@dataclass(frozen=True)
class Part:
    """Which of several processes this is."""

    number: int = 1
    """From 1 to `count`."""
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse `3/16`.

        Raises:
            AGI2Error: if it is anything else.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and len(text) < 20:
            part = cls(int(number), int(count))
            if 1 <= part.number <= part.count:
                return part
        raise AGI2Error(f"part {text!r} is not K/N with K from 1 to N, such as 3/16")


class FinishedElsewhereError(Exception):
    """The last task is done: the results of the others may be deleted."""


class SharedTasks:
    """Tasks whose results are in a folder.

    Args:
        folder: the folder, created if it does not exist.
        part: which of the processes this is.
        last: name of the task that is done after all others.
    """

    def __init__(self, folder: Path, part: Part, last: str) -> None:
        self.folder, self._part, self._last = folder, part, last
        self.done_here = 0
        folder.mkdir(parents=True, exist_ok=True)

    def is_done(self, name: str) -> bool:
        """Return whether the result of a task is there."""
        return (self.folder / name).is_dir()

    def run(self, what: str, names: Sequence[str], do: Task) -> None:
        """Do the tasks of these names that no other process does; return when all are done.

        Args:
            what: what they do, for the progress.
            names: names of their results.
            do: does one.

        Raises:
            FinishedElsewhereError: if other processes have done all tasks, the last one, too.
            AGI2Error: if a task fails, or others do not do theirs for very long.
        """
        first = len(names) * (self._part.number - 1) // self._part.count
        order = [*range(first, len(names)), *range(first)]
        wait = _Wait(what)
        with show_progress(what, is_determinate=True) as advance:
            while missing := [index for index in order if not self.is_done(names[index])]:
                has_done = False
                for left, index in zip(range(len(missing), 0, -1), missing, strict=True):
                    advance(1 - left / len(names))
                    has_done |= self._try(index, names[index], do)
                if not has_done:
                    self._check_last()
                    wait.poll([names[index] for index in sorted(missing)])

    def _check_last(self) -> None:
        if self.is_done(self._last):
            raise FinishedElsewhereError

    def _try(self, index: int, name: str, do: Task) -> bool:
        """Do a task unless another process does or has done it; return whether it was done."""
        with open(self.folder / f"{name}.lock", "a") as file:
            is_locked = try_lock(file)
            # Without locks, each process does its share.
            is_own = index % self._part.count == self._part.number - 1
            if not (is_own if is_locked is None else is_locked) or self.is_done(name):
                return False
            if name != self._last:
                self._check_last()
            if is_locked:
                for left in self.folder.glob(f"doing-{name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
            with self._result(name) as folder:
                do(index, folder)
        self.done_here += 1
        return True

    @contextlib.contextmanager
    def _result(self, name: str) -> Iterator[Path]:
        """Yield a folder that becomes a task's result."""
        temporary = self.folder / f"doing-{name}-{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            yield temporary
            sync_folder(temporary)
            os.rename(temporary, self.folder / name)
            sync_folder(self.folder)
        except OSError:
            # Without locks, another process may have been faster, and even have deleted the rest.
            if not self.is_done(name) and not self.is_done(self._last):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def delete_results(self) -> None:
        """Delete everything but the result of the last task."""
        for path in list(self.folder.iterdir()):
            if path.name == self._last:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # another process deletes it, too
                    path.unlink()

    def restart(self) -> None:
        """Delete everything, as the result of the last task is gone."""
        aside = self.folder.with_name(f"reading-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(self.folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)


class _Wait:
    """Waits for other processes, and logs for which tasks."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._missing: list[str] = []
        self._since = time.monotonic()
        self._logged = float("-inf")

    def poll(self, missing: list[str]) -> None:
        """Wait a moment for the tasks that are missing."""
        now = time.monotonic()
        if missing != self._missing:
            self._missing, self._since = missing, now
        names = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        if now - self._since > _MAX_WAIT_SECONDS:
            raise AGI2Error(
                f"{self._what}: other processes have not done {names} for "
                f"{_MAX_WAIT_SECONDS / 3600:.0f} hours: give the command of each part again"
            )
        if now - self._logged > _LOG_SECONDS:
            what = plural(len(missing), "task")
            log.info("%s: waiting for %s of other processes: %s", self._what, what, names)
            self._logged = now
        time.sleep(_POLL_SECONDS)
