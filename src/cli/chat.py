"""The terminal chat: line editing and history for messages, Ctrl-C to stop a reply."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.keys import Keys

from ..console import console, print_text
from ..errors import printable
from ..interactive import InteractivePrompt
from .chat_history import open_history

HELP = """/clear  forget the conversation
/help   show this
/quit   leave (so does Ctrl-D)
Ctrl-C  stop a reply"""


class _SigintHandler:
    """SIGINT handler of a chat: Ctrl-C stops a reply, or ends a chat that reads a pipe.

    The handler sets `pressed` as well as raising `KeyboardInterrupt`, because Python discards
    exceptions raised in a `__del__` or a weakref callback. Installing it also undoes the SIG_IGN
    that a shell sets for background processes.
    """

    def __init__(self) -> None:
        self.pressed = False
        self.raises = True
        self.session: PromptSession[str] | None = None
        self._previous: Any = None

    def __enter__(self) -> _SigintHandler:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _press(self, *_: object) -> None:
        self.pressed = True
        if self.raises:
            raise KeyboardInterrupt
        # Not prompt_toolkit's own handler: it swallows a SIGINT that arrives as the prompt exits.
        if self.session is not None and self.session.app.is_running:
            app = self.session.app
            assert app.loop is not None
            app.loop.call_soon_threadsafe(app.key_processor.send_sigint)


def chat(prompt: InteractivePrompt) -> None:
    """Run a chat until end of input or `/quit`, in a terminal or line by line from a pipe."""
    with _SigintHandler() as ctrl_c:
        for line in _messages(ctrl_c):
            command = line.strip()
            if command == "/quit":
                return
            if command == "/help":
                console.print(HELP)
            elif command == "/clear":
                prompt.clear_context()
                console.print("the conversation is forgotten")
            elif command.startswith("/"):
                shown = printable(command)
                console.print(f"unknown command {shown}; /help lists them", markup=False)
            elif command:
                _reply(prompt, line, ctrl_c)


def _reply(prompt: InteractivePrompt, message: str, ctrl_c: _SigintHandler) -> None:
    """Stream a reply to standard output; Ctrl-C stops it and keeps the partial reply."""
    raised, ctrl_c.raises = ctrl_c.raises, True
    try:
        try:
            with closing(prompt.stream_message(message)) as pieces:
                for piece in pieces:
                    if ctrl_c.pressed:  # before the reply began, or its exception was discarded
                        break
                    print_text(piece, end="")
        finally:
            ctrl_c.raises = False  # a second Ctrl-C must not interrupt the clean-up
    except KeyboardInterrupt:
        ctrl_c.pressed = True
    print(" [stopped]" if ctrl_c.pressed else "", flush=True)
    ctrl_c.pressed, ctrl_c.raises = False, raised


def _messages(ctrl_c: _SigintHandler) -> Iterator[str]:
    """Yield the lines of standard input; with history and line editing in a terminal."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    session: PromptSession[str] = PromptSession(history=open_history(), enable_suspend=True)
    console.print("Write a message, or /help.")
    ctrl_c.raises, ctrl_c.session = False, session
    while True:
        ctrl_c.pressed = False
        try:
            line = session.prompt("> ", handle_sigint=False)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        ctrl_c.pressed |= _interrupted_after_enter(session)
        yield line


def _interrupted_after_enter(session: PromptSession[str]) -> bool:
    """Return whether Ctrl-C was typed right after Enter, before the prompt restored the terminal.

    Until then the terminal is in raw mode: Ctrl-C arrives as a key press, not as SIGINT. The key
    is consumed; the other keys stay in the typeahead buffer.
    """
    keyboard = session.app.input
    keys = session.app.key_processor.empty_queue() + get_typeahead(keyboard)
    keys += keyboard.read_keys()  # input that arrived after the prompt's last read
    is_interrupted = bool(keys) and keys[0].key in (Keys.ControlC, Keys.SIGINT)
    store_typeahead(keyboard, keys[is_interrupted:])
    return is_interrupted
