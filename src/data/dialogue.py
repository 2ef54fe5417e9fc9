"""A conversation with branches: its messages, to look at, change, save and load. No model."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import checked, convert
from ..errors import AGI2Error
from ..tokenizer import Tokenizer
from ..utils import log, plural
from .chat_context import ChatContext
from .chat_file import load_conversation, save_conversation
from .chat_template import ROLES, Message, as_messages, check_order
from .message_tree import Branch, MessageTree


class ContextMessage(NamedTuple):
    """A message of a conversation, and whether it is in the context."""

    role: str
    content: str
    tokens: int
    """Number of its tokens."""
    is_in_context: bool
    cut: int = 0
    """Number of its first tokens that are not in the context."""


class Dialogue(ABC):
    """A conversation with a model: messages with roles, or turns of plain text, in branches.

    Args:
        tokenizer: the model's; a conversation has roles if it has a chat template.
        model_seed: text that precedes the conversation and is never dropped.
        system: the system message.

    Raises:
        AGI2Error: if both are given and the conversation has roles, or there is a system message
            and it has none.
    """

    def __init__(self, tokenizer: Tokenizer, model_seed: str, system: str) -> None:
        self.tokenizer = tokenizer
        self._context = ChatContext(tokenizer, model_seed)
        if self.has_roles and model_seed and system:
            raise AGI2Error("model_seed and system are both the system message: give one of them")
        self._check_system(system)
        system = system or (model_seed if self.has_roles else "")
        self._tree = MessageTree(_with_system(system.strip(), []))
        self.history: list[str] = []
        """Messages and replies, alternating, as far as they are still in the context."""
        self._shown_history: list[str] = []
        self._replying = threading.Lock()

    @property
    @abstractmethod
    def context_limit(self) -> int:
        """Maximum number of conversation tokens before each reply."""

    @property
    def has_roles(self) -> bool:
        """Whether the model has a chat template: messages with roles, and a system message."""
        return self._context.template is not None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._replying.acquire(blocking=False):
            raise AGI2Error(
                "a reply of this conversation is still being generated: finish it, or close its "
                "generator, first"
            )
        try:
            self._take_over_history()
            yield
        finally:
            self._replying.release()

    def _look(self) -> MessageTree:
        """Return the messages, with what the caller has changed in `history`."""
        if not self._replying.locked():
            self._take_over_history()
        return self._tree

    @property
    def messages(self) -> list[dict[str, str]]:
        """The complete conversation, as `{"role": ..., "content": ...}`; may be set.

        Setting it replaces the conversation; the old one stays in a branch of its own. A reply may
        be empty, as one that was stopped is; without roles, so may any message.
        """
        return [dict(message._asdict()) for message in self._look().messages]

    @messages.setter
    def messages(self, values: Iterable[Any]) -> None:
        messages = as_messages(values, ("assistant",) if self.has_roles else ROLES)
        if messages:
            check_order(messages)
        with self._exclusive():
            self._replace(messages)

    @property
    def system(self) -> str:
        """The system message; "" if there is none. May be set, if the model has roles."""
        return self._tree.system

    @system.setter
    def system(self, text: str) -> None:
        text = convert(str, "system", text).strip()
        with self._exclusive():
            turns = [node.message for node in self._tree.turns if node.message is not None]
            self._replace(_with_system(text, turns))

    def _replace(self, messages: list[Message]) -> None:
        system = messages[0].content if messages and messages[0].role == "system" else ""
        self._check_system(system)
        self._context.budget(system, self.context_limit)
        self._tree.replace(messages)
        self._show_history()

    def _check_system(self, system: str) -> None:
        if system and not self.has_roles:
            raise AGI2Error(
                "the model has no chat template, so no system message: leave it out, or set "
                "model_seed"
            )

    @property
    def branches(self) -> list[Branch]:
        """All branches of the conversation, the oldest first."""
        return self._look().branches

    @checked
    def switch_branch(self, name: str) -> None:
        """Go to the end of another branch.

        Raises:
            AGI2Error: if there is none of this name.
        """
        with self._exclusive():
            self._tree.switch(name)
            self._show_history()

    @checked
    def new_branch(self, name: str = "") -> None:
        """Begin a branch here, which the next message continues; by default named by a number.

        Raises:
            AGI2Error: if the name is taken or cannot be one.
        """
        with self._exclusive():
            self._tree.fork(name)

    def undo(self) -> str:
        """Go back to before the last message, and return it; `switch_branch` brings it back.

        Raises:
            AGI2Error: if there is no message.
        """
        with self._exclusive():
            last = self._user_turns("there is nothing to undo")[-1]
            text = self._tree.turns[last].content
            self._tree.go_back(last)
            self._show_history()
            return text

    @checked
    def save(self, path: Path) -> None:
        """Save the conversation of this branch as JSON, as training data has it.

        With the suffix `.jsonl` it is appended as a line. An exchange with an empty reply is left
        out, and the log says so.

        Raises:
            AGI2Error: if there is none, or the file cannot be written or holds something else.
        """
        with self._exclusive():
            messages = _complete(self._tree.messages)
        if not any(message.role == "user" for message in messages):
            raise AGI2Error("there is no conversation to save yet")
        check_order(messages)
        save_conversation(messages, path)

    @checked
    def load(self, path: Path, number: int | None = None) -> None:
        """Load a conversation from JSON; the present one stays in a branch of its own.

        Args:
            path: a file that `save` has written, or JSON lines of training data with `messages`.
            number: number of the conversation in JSON lines, from 1; by default the last.

        Raises:
            AGI2Error: if there is none, or it is invalid.
        """
        messages = load_conversation(path, number)
        with self._exclusive():
            self._replace(messages)

    def _clear(self) -> None:
        """Forget all messages and branches; keep the system message."""
        self._tree = MessageTree(_with_system(self.system, []))
        self._show_history()

    def context_tokens(self) -> list[int]:
        """Return the conversation as token ids, at most `context_limit`.

        If it is too long, the oldest messages are dropped until a quarter of the context is free:
        dropping turns invalidates the KV cache, which must not happen at every message. A single
        message that is still too long is truncated to its last tokens, with a warning.
        """
        ids, _ = self._context.tokens(self._look(), self.context_limit)
        self._show_history()
        return ids

    def context_messages(self) -> list[ContextMessage]:
        """Return the complete conversation, with what of it is in the context."""
        tree = self._look()
        dropped, to_cut = self._context.left_out(tree, self.context_limit)
        first = dropped + len(tree.path) - len(tree.turns)
        messages = []
        for index, node in enumerate(tree.path):
            size, cut = len(self._context.tokens_of(node)), 0
            is_kept = node.role == "system" or index >= first
            if is_kept and node.role != "system":
                cut = min(size, to_cut)
                to_cut -= cut
            is_kept &= cut < size
            messages.append(
                ContextMessage(node.role or "user", node.content, size, is_kept, cut * is_kept)
            )
        return messages

    def context_size(self) -> int:
        """Return the number of tokens of the conversation that are in the context."""
        messages = self.context_messages()
        kept = sum(each.tokens - each.cut for each in messages if each.is_in_context)
        return kept + self._context.seed_length

    def _user_turn(self, number: int | None) -> int:
        """Return the index of the user's n-th message, by default of the last."""
        turns = self._user_turns("there is no message to edit")
        if number is None:
            return turns[-1]
        if not 1 <= number <= len(turns):
            raise AGI2Error(f"there is no message {number}: there {_are(len(turns))} so far")
        return turns[number - 1]

    def _user_turns(self, problem: str) -> list[int]:
        """Return the indices of the user's messages; raise an `AGI2Error` if there are none."""
        turns = [i for i, node in enumerate(self._tree.turns) if node.role == "user"]
        if not turns:
            raise AGI2Error(problem)
        return turns

    def _show_history(self) -> None:
        """Update `history`."""
        turns = self._tree.turns[self._tree.node.dropped :]
        self._shown_history = [node.content for node in turns]
        if not isinstance(self.history, list):
            self.history = []
        self.history[:] = self._shown_history

    def _take_over_history(self) -> None:
        """Take over what the caller has changed in `history`, which is a plain list."""
        if self.history == self._shown_history:
            return
        texts = convert(Sequence[str], "history", self.history)
        turns, dropped = self._tree.turns, self._tree.node.dropped
        kept = dropped
        for node, text in zip(turns[dropped:], texts, strict=False):
            if node.content != text:
                break
            kept += 1
        self._tree.go_back(kept)
        for text in texts[kept - dropped :]:
            follows_user = self._tree.node.role == "user"
            self._tree.append(Message("assistant" if follows_user else "user", text))
        self._tree.node.dropped = dropped
        self._show_history()


def _with_system(text: str, turns: list[Message]) -> list[Message]:
    return [Message("system", text), *turns] if text else turns


def _are(count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {plural(count, 'message')}"


def _complete(messages: list[Message]) -> list[Message]:
    """Return messages without the exchanges that have an empty one, as training data has them."""
    kept: list[Message] = []
    left_out = 0
    for message in messages:
        is_empty = not message.content.strip()
        left_out += is_empty
        if message.role != "assistant" and not is_empty:
            kept.append(message)
        elif message.role == "assistant" and kept and kept[-1].role == "user":
            kept = kept[:-1] if is_empty else [*kept, message]
    if left_out:
        log.warning("%s with an empty message left out", plural(left_out, "exchange"))
    return kept
