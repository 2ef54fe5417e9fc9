"""Input of the terminal chat: line editing, several lines, history and completion."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from .chat_commands import COMMANDS, STATS_KEY, Chat, settable_keys
from .chat_history import open_history
from .completion import complete_override


class ChatCompleter(Completer):
    """Completes commands, and their keys, values, files and branches; nothing in a message."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield the completions of the word before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, argument = text.partition(" ")
        argument = argument.lstrip()
        if not space:
            yield from _matching(COMMANDS, command, " ")
        elif command == "/set":
            key, separator, value = argument.replace("=", " ").partition(" ")
            if separator:
                yield from _matching(_values(key), value.lstrip())
            else:
                yield from _matching(settable_keys(), key, " ")
        elif command == "/branch":
            prompts = self._chat.prompts.values()
            names = dict.fromkeys(b.name for prompt in prompts for b in prompt.branches)
            yield from _matching(names, argument)
        elif command in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)


def _values(key: str) -> list[str]:
    found = [each.partition("=")[2] for each in complete_override(f"{key}=")]
    return found or (["true", "false"] if key == STATS_KEY else [])


def _matching(names: Iterable[str], start: str, end: str = "") -> Iterator[Completion]:
    for name in names:
        if name.startswith(start):
            yield Completion(name + end, -len(start), display=name)


def open_session(chat: Chat) -> PromptSession[str]:
    """Return a prompt with the history of earlier chats."""
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=open_history(),
        enable_suspend=True,
        completer=ChatCompleter(chat),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,  # no menu, for which lines would be reserved
        key_bindings=bindings,
        prompt_continuation=lambda width, line, wraps: " " * width,
    )


@contextlib.contextmanager
def prompt_on_terminal() -> Iterator[None]:
    """Context manager in which the prompt is on standard error if replies go to a pipe or a file.

    With both elsewhere, it is written with the replies. In a terminal without cursor control, it is
    written without escape codes.
    """
    stream = sys.stdout if sys.stdout.isatty() or not sys.stderr.isatty() else sys.stderr
    if stream.isatty() and is_dumb_terminal():
        output: Output = PlainTextOutput(stream)
    elif stream is sys.stderr:
        output = create_output(stdout=stream)
    else:
        yield
        return
    with create_app_session(output=output):
        yield


def interrupted_after_enter(session: PromptSession[str]) -> bool:
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
