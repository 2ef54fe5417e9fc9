"""The commands of the terminal chat, such as `/retry` and `/set temperature 0.7`."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from ..command_line import command_line
from ..config import Config
from ..config_keys import GenerationConfig
from ..config_loader import parse_override
from ..console import console, has_live_display
from ..data.chat_file import LINES_SUFFIX
from ..errors import AGI2Error, one_line, printable
from ..inference.sampling import generation_options
from ..interactive import TURN_END, InteractivePrompt
from ..utils import plural
from .token_view import choice_table

Ask = Callable[[InteractivePrompt], Generator[str, None, None]]
"""Requests a reply of a conversation, as a stream."""

# Keys of `/set` that have other names in `InteractivePrompt.configure`.
_ARGUMENTS = {"sampling_seed": "seed"}
STATS_KEY = "chat_stats"


@dataclass
class Chat:
    """A chat with a model, or with more than one at the same time."""

    prompts: Mapping[str, InteractivePrompt]
    """Conversations by the names of their models."""
    shows_stats: bool = True
    """Whether to print the speed and the context used after each reply, in a terminal."""
    file: Path | None = None
    """The file that was saved or loaded last."""
    draft: tuple[int, str] | None = None
    """A message to be edited in the terminal: its number and its text."""
    is_over: bool = False

    def label(self, name: str) -> str:
        """Return what precedes a line about one of several models."""
        return f"{name}: " if len(self.prompts) > 1 else ""

    def each(self, action: Callable[[InteractivePrompt], Any]) -> None:
        """Do something with every conversation; print what is wrong, or the text it returns."""
        for name, prompt in self.prompts.items():
            try:
                text = action(prompt)
            except AGI2Error as error:
                text = f"error: {error}"
            if text:
                say("\n".join(self.label(name) + line for line in str(text).split("\n")))


def say(text: str, style: str = "") -> None:
    """Print something that is not part of a reply: to standard error."""
    style = "" if console.no_color else style
    console.print(printable(text, keep="\n"), style=style, markup=False, soft_wrap=True)


def handle(chat: Chat, line: str) -> Ask | None:
    """Run a command; return the reply that it asks for, if any."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        say(f"unknown command {one_line(line.strip(), 80)}; /help lists them")
        return None
    try:
        return command.run(chat, argument.strip())
    except AGI2Error as error:
        say(f"error: {error}")
        return None


def _retry(chat: Chat, _: str) -> Ask:
    prompts = chat.prompts.values()
    if all(prompt.config.is_greedy for prompt in prompts):
        say("at temperature 0 every reply to a message is the same: /set temperature 0.8")
    return lambda prompt: prompt.stream_retry()


def _undo(chat: Chat, _: str) -> None:
    chat.each(lambda prompt: f"undone: {_preview(prompt.undo())}")


def _edit(chat: Chat, argument: str) -> Ask | None:
    all_sent = [
        [each["content"] for each in prompt.messages if each["role"] == "user"]
        for prompt in chat.prompts.values()
    ]
    sent = max(all_sent, key=len)
    first, _, rest = argument.partition(" ")
    number, text = None, argument
    if first.isdecimal() and 1 <= int(first) <= len(sent):
        number, text = int(first), rest.strip()
    if text:
        return lambda prompt: prompt.stream_edit(text, number)
    if not sent:
        raise AGI2Error("there is no message to edit")
    if not sys.stdin.isatty():
        raise AGI2Error("/edit needs the new text: /edit TEXT, or /edit N TEXT")
    number = number or len(sent)
    chat.draft = number, sent[number - 1]
    return None


def _branch(chat: Chat, name: str) -> None:
    def run(prompt: InteractivePrompt) -> str:
        branches = {branch.name: branch for branch in prompt.branches}
        if not name:
            return "\n".join(
                f"{'*' if branch.is_current else ' '} {branch.name}  "
                f"{plural(len(branch.messages), 'message')}"
                + (f"  {_preview(branch.messages[-1].content)}" if branch.messages else "")
                for branch in branches.values()
            )
        if name in branches or name.isdecimal():
            prompt.switch_branch(name)
            return f"in branch {name}: {_last_words(prompt)}"
        prompt.new_branch(name)
        return f"branch {name} begins here; /branch lists all"

    chat.each(run)


def _last_words(prompt: InteractivePrompt) -> str:
    messages = prompt.messages
    return _preview(messages[-1]["content"]) if messages else "no messages yet"


def _save(chat: Chat, argument: str) -> None:
    path = _path(argument) if argument else chat.file
    if path is None:
        raise AGI2Error("/save needs a file: /save chat.json, or a .jsonl to append a line to")
    if len(chat.prompts) > 1 and path.suffix.lower() != LINES_SUFFIX:
        raise AGI2Error(f"{path} can hold one conversation: name a .jsonl file for more")
    chat.file = path

    def save(prompt: InteractivePrompt) -> str:
        prompt.save(path)
        return f"saved to {path}"

    chat.each(save)


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise AGI2Error("/load needs a file: /load chat.json, or /load chats.jsonl N")
    name, number = argument, None
    if (found := re.fullmatch(r"(.+?)\s+(\d+)", argument)) and not os.path.exists(argument):
        name, number = found[1], int(found[2])
    path = _path(name)

    def load(prompt: InteractivePrompt) -> str:
        prompt.load(path, number)
        chat.file = path
        return f"loaded {plural(len(prompt.messages), 'message')}; the last: {_last_words(prompt)}"

    chat.each(load)


def _path(name: str) -> Path:
    """Return a path, in which `~` is the home folder if there is one."""
    return Path(os.path.expanduser(name))


def _system(chat: Chat, text: str) -> None:
    def run(prompt: InteractivePrompt) -> str:
        if text:
            prompt.system = "" if text == "-" else text
        if not prompt.has_roles:
            return "the model has no chat template, so no system message"
        return f"system message: {prompt.system}" if prompt.system else "no system message"

    chat.each(run)


def _seed(chat: Chat, value: str) -> None:
    if value:
        _set(chat, f"sampling_seed {value}")
    else:
        chat.each(lambda prompt: f"seed {prompt.seed}")


def settable_keys() -> list[str]:
    """Return the keys that `/set` can change."""
    keys = generation_options(Config()).keys() - {"seed", "model_seed"}
    keys |= {"sampling_seed", "max_context_length", STATS_KEY}
    return [key for key in GenerationConfig.model_fields if key in keys]


def _set(chat: Chat, argument: str) -> None:
    if not argument:
        chat.each(lambda prompt: "\n".join(f"{k} = {v}" for k, v in _settings(chat, prompt)))
        return
    key, _, value = re.sub(r"\s*=\s*|\s+", " ", argument, count=1).partition(" ")
    if key not in settable_keys():
        close = difflib.get_close_matches(key, settable_keys(), 1)
        hint = f"did you mean {close[0]}?" if close else "/set lists the keys"
        if key in Config.model_fields:
            command = command_line(f"chat ... --set {key}={value or 'VALUE'}")
            hint = f"give it when the chat begins: {command}"
        raise AGI2Error(f"/set cannot change {key}: {hint}")
    if not value:
        chat.each(lambda prompt: f"{key} = {dict(_settings(chat, prompt))[key]}")
        return
    _, parsed = parse_override(f"{key}={value}")
    if key == STATS_KEY:
        if not isinstance(parsed, bool):
            raise AGI2Error(f"{key} must be true or false, not {value}")
        chat.shows_stats = parsed
        return
    if parsed is None and key in ("max_length", "max_context_length", "sampling_seed"):
        raise AGI2Error(f"{key} needs a value")

    def change(prompt: InteractivePrompt) -> str:
        prompt.configure(**{_ARGUMENTS.get(key, key): parsed})
        return f"{key} = {dict(_settings(chat, prompt))[key]}"

    chat.each(change)


def _settings(chat: Chat, prompt: InteractivePrompt) -> list[tuple[str, str]]:
    own: dict[str, Any] = {
        "sampling_seed": prompt.seed,
        "max_context_length": prompt.max_context_length,
        STATS_KEY: chat.shows_stats,
        "stop": [each for each in prompt.config.stop if prompt.has_roles or each != TURN_END],
    }
    values = [(key, own.get(key, getattr(prompt.config, key))) for key in settable_keys()]
    return [(key, _as_toml(value)) for key, value in values]


def _as_toml(value: Any) -> str:
    """Return a value as `/set` takes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {v}" for k, v in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)


def _probs(chat: Chat, _: str) -> None:
    def show(prompt: InteractivePrompt) -> None:
        table = choice_table(prompt.choices, prompt.tokenizer, console)
        table.rstrip()
        console.print(table, soft_wrap=True)

    chat.each(show)


def _context(chat: Chat, _: str) -> None:
    chat.each(_describe_context)


def _describe_context(prompt: InteractivePrompt) -> str:
    messages = prompt.context_messages()
    lines = [
        f"context: {plural(prompt.context_size(), 'token')}; {prompt.context_limit:,} fit before a "
        f"reply, which may have {prompt.max_length:,}"
    ]
    number = 0
    for each in messages:
        number += each.role == "user"
        label = str(number) if each.role == "user" else ""
        note = "" if each.is_in_context else "(not in the context) "
        if each.cut:
            note = f"(without its first {plural(each.cut, 'token')}) "
        head = f"{label:>3}  {each.role:<9}  {each.tokens:>5,}  {note}"
        lines.append(head + _preview(each.content, cell_len(head)))
    return "\n".join(lines)


def _preview(text: str, used: int = 30) -> str:
    """Return the start of a text on one line that fits the terminal beside `used` columns."""
    line = printable(" ".join(text.split()))
    width = max(20, (console.width if has_live_display() else 80) - used)
    return line if cell_len(line) <= width else set_cell_size(line, width - 3).rstrip() + "..."


def _clear(chat: Chat, _: str) -> None:
    for prompt in chat.prompts.values():
        prompt.clear_context()
    say("the conversation is forgotten")


def _help(chat: Chat, _: str) -> None:
    say(HELP)


def _quit(chat: Chat, _: str) -> None:
    chat.is_over = True


class Command(NamedTuple):
    """A command of the chat."""

    run: Callable[[Chat, str], Ask | None]
    arguments: str
    help: str


COMMANDS = {
    "/retry": Command(_retry, "", "another reply to the last message"),
    "/undo": Command(_undo, "", "remove the last message and its reply"),
    "/edit": Command(_edit, "[N] [TEXT]", "replace the last message, or the N-th"),
    "/branch": Command(_branch, "[NAME]", "list the branches; go to one, or begin one here"),
    "/save": Command(_save, "[FILE]", "save the conversation as JSON; .jsonl: append a line"),
    "/load": Command(_load, "FILE [N]", "load a conversation; .jsonl: the last line, or the N-th"),
    "/system": Command(_system, "[TEXT]", "show or set the system message; - removes it"),
    "/seed": Command(_seed, "[N]", "show or set the random seed"),
    "/set": Command(_set, "[KEY] [VALUE]", "show or change options: /set temperature 0.7"),
    "/probs": Command(_probs, "", "the probabilities of the last reply's tokens"),
    "/context": Command(_context, "", "what the model has of the conversation"),
    "/clear": Command(_clear, "", "forget the conversation"),
    "/help": Command(_help, "", "show this"),
    "/quit": Command(_quit, "", "leave (so does Ctrl-D)"),
}

HELP = "\n".join(
    [
        *(f"{f'{name} {each.arguments}':<20} {each.help}" for name, each in COMMANDS.items()),
        f"{'//TEXT':<20} send /TEXT as a message",
        f"{'Alt-Enter':<20} a new line in the message",
        f"{'Ctrl-C':<20} stop a reply",
    ]
)
