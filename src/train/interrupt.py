"""Signals while training: the first asks for a stop, the second stops."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ..utils import log


class Interrupt:
    """A context in which the first SIGINT, SIGTERM or SIGHUP only sets the flag `asked`.

    A second signal raises `KeyboardInterrupt`, except SIGHUP: when a terminal is closed, it comes
    from the kernel and again from the shell. Ignored signals (as under `nohup`) remain ignored.
    """

    # Windows has no SIGHUP.
    _HANG_UP = getattr(signal, "SIGHUP", None)
    _SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if _HANG_UP else []))

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal was received."""
        self.at_once = False
        """Whether the first signal raises, too, because there is nothing left to save."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in self._SIGNALS}
            # `None`: a handler that was not set from Python, which cannot be restored.
            kept = (signal.SIG_IGN, None)
            self._before = {number: was for number, was in found.items() if was not in kept}
            for number in self._before:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == self._HANG_UP:
            return
        was_asked, self.asked = self.asked, True
        if was_asked or self.at_once:
            raise KeyboardInterrupt
        log.info("stopping after this step; once more to stop at once, without saving")
