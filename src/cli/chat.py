"""The terminal chat: messages, commands and replies; Ctrl-C stops a reply."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

from prompt_toolkit.application import get_app_or_none

from ..console import console, print_text
from ..errors import AGI2Error
from ..interactive import InteractivePrompt
from ..utils import plural
from .chat_columns import column_width, print_columns
from .chat_commands import HELP as HELP
from .chat_commands import Ask, Chat, handle, say
from .chat_input import interrupted_after_enter, open_session, prompt_on_terminal


class _SigintHandler:
    """SIGINT handler of a chat: Ctrl-C stops a reply, or ends a chat that reads a pipe.

    The handler sets `pressed` as well as raising `KeyboardInterrupt`, because Python discards
    exceptions raised in a `__del__` or a weakref callback. Installing it also undoes the SIG_IGN
    that a shell sets for background processes.
    """

    def __init__(self) -> None:
        self.pressed = False
        self.raises = True
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
        app = get_app_or_none()  # that of a terminal without cursor control is not the session's
        if app is not None and app.is_running and app.loop is not None:
            app.loop.call_soon_threadsafe(app.key_processor.send_sigint)


def chat(
    prompts: InteractivePrompt | Mapping[str, InteractivePrompt], shows_stats: bool = True
) -> None:
    """Run a chat until end of input or `/quit`, in a terminal or line by line from a pipe.

    Args:
        prompts: a conversation, or more than one by the names of their models: each message is
            sent to all of them.
        shows_stats: whether to print figures of each reply, in a terminal.
    """
    if isinstance(prompts, InteractivePrompt):
        prompts = {"": prompts}
    for prompt in prompts.values():
        prompt.records_choices = True
    session = Chat(prompts, shows_stats)
    with _SigintHandler() as ctrl_c, prompt_on_terminal():
        for line in _messages(session, ctrl_c):
            ask = _ask(session, line)
            if ask is not None:
                _reply(session, ask, ctrl_c)
            if session.is_over:
                return


def _ask(chat: Chat, line: str) -> Ask | None:
    """Return the reply that a line asks for; run it if it is a command."""
    draft, chat.draft = chat.draft, None
    if not line.strip():
        return None
    if draft is not None:
        return lambda prompt: prompt.stream_edit(line, draft[0])
    if not line.lstrip().startswith("/"):
        return lambda prompt: prompt.stream_message(line)
    if line.lstrip().startswith("//"):
        return lambda prompt: prompt.stream_message(line.lstrip()[1:])
    return handle(chat, line)


def _reply(chat: Chat, ask: Ask, ctrl_c: _SigintHandler) -> None:
    """Stream replies to standard output; Ctrl-C stops them and keeps what there is."""
    raised, ctrl_c.raises = ctrl_c.raises, True
    width = column_width(len(chat.prompts)) if len(chat.prompts) > 1 else None
    try:
        try:
            if width is None:
                _print_in_turn(chat, ask, ctrl_c)
            else:
                _print_in_columns(chat, ask, ctrl_c, width)
        finally:
            ctrl_c.raises = False  # a second Ctrl-C must not interrupt the clean-up
    except KeyboardInterrupt:
        ctrl_c.pressed = True
    if ctrl_c.pressed:
        # Only replies go to standard output: two streams, but one line in a terminal.
        print(" [stopped]", end="", file=sys.stderr, flush=True)
        print(flush=True)
    ctrl_c.pressed, ctrl_c.raises = False, raised


def _print_in_turn(chat: Chat, ask: Ask, ctrl_c: _SigintHandler) -> None:
    for name, prompt in chat.prompts.items():
        if len(chat.prompts) > 1:
            print_text(f"--- {name} ---")
        problems: list[AGI2Error] = []
        with closing(_pieces(ask(prompt), ctrl_c, problems)) as pieces:
            for piece in pieces:
                print_text(piece, end="")
        if ctrl_c.pressed:
            return
        if not problems:
            print(flush=True)
        _print_end(chat, name, problems)


def _print_in_columns(chat: Chat, ask: Ask, ctrl_c: _SigintHandler, width: int) -> None:
    problems: dict[str, list[AGI2Error]] = {name: [] for name in chat.prompts}
    with ExitStack() as streams:
        pieces = [
            streams.enter_context(closing(_pieces(ask(prompt), ctrl_c, problems[name])))
            for name, prompt in chat.prompts.items()
        ]
        print_columns(list(chat.prompts), pieces, width)
    for name in chat.prompts:
        _print_end(chat, name, problems[name])


def _pieces(
    reply: Generator[str, None, None], ctrl_c: _SigintHandler, problems: list[AGI2Error]
) -> Generator[str, None, None]:
    """Yield a reply until Ctrl-C; in a terminal, add to `problems` what ends it."""
    try:
        with closing(reply):
            for piece in reply:
                if ctrl_c.pressed:  # before the reply began, or its exception was discarded
                    return
                yield piece
    except AGI2Error as error:
        if not sys.stdin.isatty():
            raise
        problems.append(error)


def _print_end(chat: Chat, name: str, problems: list[AGI2Error]) -> None:
    """Print what has ended a reply, or else its speed and the context used, in a terminal."""
    for error in problems:
        say(f"{chat.label(name)}error: {error}")
    prompt = chat.prompts[name]
    reply = prompt.last_reply
    is_shown = chat.shows_stats and sys.stdout.isatty() and console.is_terminal
    if problems or reply is None or not is_shown:
        return
    positions = prompt.model.config.max_seq_len
    capacity = min(positions, prompt.context_limit + prompt.max_length)
    cut = ", cut at max_length" if reply.finish_reason == "length" else ""
    say(
        f"[{chat.label(name)}{plural(reply.new_tokens, 'token')}, "
        f"{reply.tokens_per_second:,.0f} tok/s, "
        f"context {prompt.context_size():,} of {capacity:,}{cut}]",
        style="dim",
    )


def _messages(chat: Chat, ctrl_c: _SigintHandler) -> Iterator[str]:
    """Yield the lines of standard input; with history and line editing in a terminal."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    session = open_session(chat)
    say("Write a message, or /help.")
    ctrl_c.raises = False
    while True:
        ctrl_c.pressed = False
        label, text = (
            ("> ", "") if chat.draft is None else (f"edit {chat.draft[0]}> ", chat.draft[1])
        )
        try:
            line = session.prompt(label, default=text, handle_sigint=False)
        except KeyboardInterrupt:
            chat.draft = None
            continue
        except EOFError:
            return
        ctrl_c.pressed |= interrupted_after_enter(session)
        yield line
