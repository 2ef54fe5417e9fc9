"""What a command answers to Ctrl-C: one line, in whatever it is doing.

Training answers SIGTERM and SIGHUP, too.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import command_line
from ..errors import one_line

if TYPE_CHECKING:
    from ..config import Config

# Windows has no SIGHUP.
_SIGNALS = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


SAME = "start again with the same command"
NOTHING_SAVED = f"interrupted: nothing is saved; {SAME}"
PREPARED = "interrupted: what is prepared so far is kept; continue with the same command"
CHATTED = "interrupted: of the conversation, only what /save wrote is kept"


class _Answered(KeyboardInterrupt):
    """An interrupt that was answered: no outer answer is printed."""


@contextlib.contextmanager
def answering_ctrl_c(describe: Callable[[], str]) -> Iterator[None]:
    """Context manager in which Ctrl-C is answered; the innermost one answers.

    The answer goes to standard error, also with `--quiet`; under torchrun, only rank 0 prints it.
    The message of the interrupt is the answer, if it has one.

    Args:
        describe: returns the answer, what is kept and how to continue; called when the interrupted
            work is cleaned up.
    """
    try:
        yield
    except _Answered:
        raise
    except KeyboardInterrupt as interrupt:
        if not int(os.environ.get("RANK", 0)):
            with contextlib.suppress(OSError):  # the terminal was closed
                print(one_line(str(interrupt) or describe()), file=sys.stderr, flush=True)
        raise _Answered from interrupt


def saving(out: str | Path, then: str) -> contextlib.AbstractContextManager[None]:
    """Return a context manager in which Ctrl-C is answered by whether a new file or folder exists.

    Args:
        out: what is created, complete or not at all; it does not exist yet.
        then: what to do with it.
    """
    return answering_ctrl_c(
        lambda: f"interrupted: {out} is saved; {then}" if os.path.lexists(out) else NOTHING_SAVED
    )


@contextlib.contextmanager
def answering(describe: Callable[[], str]) -> Iterator[None]:
    """Context manager in which SIGTERM and SIGHUP are like Ctrl-C, and each is answered.

    Args:
        describe: as for `answering_ctrl_c`.
    """
    with answering_ctrl_c(describe), _raising():
        yield


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """Context manager in which the signals raise `KeyboardInterrupt`, unless they are ignored."""

    was_raised = False

    def handle(number: int, frame: Any) -> None:
        nonlocal was_raised
        # SIGHUP comes twice when a terminal is closed: the clean-up is not interrupted by it.
        if number in _SIGNALS[1:] and was_raised:
            return
        was_raised = True
        raise KeyboardInterrupt

    previous = {}
    if threading.current_thread() is threading.main_thread():  # else Python allows no handlers
        previous = {
            number: was
            for number in _SIGNALS
            if (was := signal.getsignal(number)) is signal.SIG_DFL
        }
    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, was in previous.items():
            signal.signal(number, was)


@dataclass
class TrainingProgress:
    """What `train` has done so far."""

    paths: list[str]
    """The arguments: texts, a configuration or a run."""
    file: str | None = None
    """The configuration, once a text has one."""
    config: Config | None = None
    _stamp: tuple[int, int] | None = None
    is_finished: bool = False
    """Whether the run is finished, so that only samples remain."""

    def begin(self, config: Config) -> None:
        """Note that a run with this configuration is about to begin."""
        self.config, self._stamp = config, _log_stamp(self._folder(config))

    def describe(self) -> str:
        """Return one line: what is saved, and the command to continue with."""
        if self.config is None:
            return f"interrupted: nothing is trained yet; {self._restart()}"
        from ..formats.run_dir import list_checkpoints
        from ..train.interrupt import describe_interrupt

        folder = self._folder(self.config)
        if self.is_finished:
            name = shlex.quote(str(folder))
            use = "generate with: " + command_line(f'generate {name} "..."')
            if self.config.has_messages:
                use = f"chat with it: {command_line(f'chat {name}')}"
            return f"interrupted: {folder} is trained and saved; {use}"
        saved = list_checkpoints(folder)
        # A new run moves the checkpoints of the run before when it begins.
        has_begun = _log_stamp(folder) not in (None, self._stamp)
        if saved and (has_begun or self.config.resume == "auto"):
            return describe_interrupt(folder, saved[-1])
        return f"interrupted: nothing is saved yet; {self._restart()}"

    def _folder(self, config: Config) -> Path:
        from ..formats.run_dir import run_folder

        return run_folder(config)

    def _restart(self) -> str:
        if self.file is None or self.file in self.paths:
            return SAME
        return f"start again with: {command_line(f'train {shlex.quote(self.file)}')}"


def _log_stamp(folder: Path) -> tuple[int, int] | None:
    """Return what changes when a run begins in a folder: its metrics log and the time of that."""
    from ..formats.run_dir import METRICS

    with contextlib.suppress(OSError):
        status = (folder / METRICS).stat()
        return status.st_ino, status.st_mtime_ns
    return None
