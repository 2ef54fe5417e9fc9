"""Signals while training: the first asks for a stop, the second stops."""

from __future__ import annotations

import _thread
import shlex
import signal
import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

from ..command_line import command_line
from ..utils import log


class Interrupt:
    """A context in which the first SIGINT, SIGTERM or SIGHUP only sets the flag `is_requested`.

    A second signal raises `KeyboardInterrupt`, except SIGHUP: when a terminal is closed, it comes
    from the kernel and again from the shell. Ignored signals (as under `nohup`) remain ignored.
    """

    # Windows has no SIGHUP.
    _SIGHUP = getattr(signal, "SIGHUP", None)
    _SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_SIGHUP] if _SIGHUP else []))

    def __init__(self) -> None:
        self.is_requested = False
        """Whether a signal was received."""
        self.exits_at_once = False
        """Whether the first signal raises, too, because there is nothing left to save."""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in self._SIGNALS}
            # `None`: a handler that was not set from Python, which cannot be restored.
            unrestorable = (signal.SIG_IGN, None)
            self._previous = {
                number: was for number, was in handlers.items() if was not in unrestorable
            }
            for number in self._previous:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.is_requested and number == self._SIGHUP:
            return
        was_requested, self.is_requested = self.is_requested, True
        if was_requested or self.exits_at_once:
            raise KeyboardInterrupt
        # In a thread: this one may be inside a write, which it cannot enter twice. Not by a
        # `threading.Thread`, whose start waits for a lock that this thread may hold.
        advice = "stopping after this step; once more to stop at once, without saving"
        _thread.start_new_thread(copy_context().run, (log.info, advice))


def describe_interrupt(folder: Path, checkpoint: Path) -> str:
    """Return what an interrupted run has saved, and the command that continues it."""
    resume = command_line(f"train {shlex.quote(str(folder))} --resume")
    return f"interrupted: {checkpoint} is saved; continue with: {resume}"
