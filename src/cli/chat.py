"""The terminal chat: messages with history and editing, replies that Ctrl-C stops."""

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


class _CtrlC:
    """What Ctrl-C does in a chat: it ends a reply, or a chat that is read from a pipe.

    It is noted as well as raised. An exception alone may be lost: Python drops those that are
    raised in a `__del__` or in a weak reference's callback. And where a shell started the process
    in the background, the signal was ignored; as a chat asks for it, it is not.
    """

    def __init__(self) -> None:
        self.pressed = False
        self.raises = True
        self.session: PromptSession[str] | None = None
        self._before: Any = None

    def __enter__(self) -> _CtrlC:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.pressed = True
        if self.raises:
            raise KeyboardInterrupt
        # The prompt's own handler would keep a signal that comes as the prompt is being left.
        if self.session is not None and self.session.app.is_running:
            app = self.session.app
            assert app.loop is not None
            app.loop.call_soon_threadsafe(app.key_processor.send_sigint)


def chat(prompt: InteractivePrompt) -> None:
    """Talk in the terminal, or read messages line by line from a pipe, until it ends."""
    with _CtrlC() as ctrl_c:
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


def _reply(prompt: InteractivePrompt, message: str, ctrl_c: _CtrlC) -> None:
    """Print a reply as it is written; Ctrl-C ends it and keeps what is there."""
    raised, ctrl_c.raises = ctrl_c.raises, True
    try:
        try:
            with closing(prompt.stream_message(message)) as pieces:
                for piece in pieces:
                    if ctrl_c.pressed:  # before the reply began, or where an exception was lost
                        break
                    print_text(piece, end="")
        finally:
            ctrl_c.raises = False  # pressed again, it may not disturb what ends the reply
    except KeyboardInterrupt:
        ctrl_c.pressed = True
    print(" [stopped]" if ctrl_c.pressed else "", flush=True)
    ctrl_c.pressed, ctrl_c.raises = False, raised


def _messages(ctrl_c: _CtrlC) -> Iterator[str]:
    """Lines that the user writes; with history and editing in a terminal."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    session: PromptSession[str] = PromptSession(history=open_history())
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
        ctrl_c.pressed |= _is_taken_back(session)
        yield line


def _is_taken_back(session: PromptSession[str]) -> bool:
    """Whether Ctrl-C came right after the line's end, while the prompt was still being left.

    Till then the terminal makes a key of it, which a signal never follows.
    """
    keyboard = session.app.input
    keys = session.app.key_processor.empty_queue() + get_typeahead(keyboard)
    keys += keyboard.read_keys()  # what the prompt did not wait for
    is_taken_back = bool(keys) and keys[0].key in (Keys.ControlC, Keys.SIGINT)
    store_typeahead(keyboard, keys[is_taken_back:])
    return is_taken_back
