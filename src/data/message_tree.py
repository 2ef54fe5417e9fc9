"""A conversation with branches: each message continues another one. No tokens, no model.

A branch is the line of messages from the start to its last message, and has a number or a name.
Going back (undo, retry, edit) forgets nothing: a message that continues an earlier one begins a new
branch, and the old line keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import AGI2Error, safe_repr
from .chat_template import Message, Role

_MAX_NAME = 40


class Node:
    """A message and the one that it continues.

    Args:
        message: None for the start of a conversation.
        parent: the message before it; None for the start.
        is_generated: whether a model has generated it in this conversation.
    """

    def __init__(
        self, message: Message | None, parent: Node | None, is_generated: bool = False
    ) -> None:
        self.message = message
        self.parent = parent
        self.is_generated = is_generated
        self.attempts = 0
        """Number of replies that were generated to it."""
        self.dropped: int = 0 if parent is None else parent.dropped
        """Number of messages, the system message aside, that a context up to here leaves out."""
        self.cut: int = 0 if parent is None else parent.cut
        """Number of tokens cut off the start of the others."""
        self.tokens: list[int] | None = None
        """Its token ids, once they are known."""

    @property
    def role(self) -> Role | None:
        """Who says it; None for the start."""
        return None if self.message is None else self.message.role

    @property
    def content(self) -> str:
        """What it says; "" for the start."""
        return "" if self.message is None else self.message.content


class Branch(NamedTuple):
    """A line of the conversation."""

    name: str
    messages: list[Message]
    is_current: bool


class MessageTree:
    """All branches of a conversation, and the current position in one of them."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.node = Node(None, None)
        """The last message of the conversation at the current position."""
        self.branch = "1"
        self._tips = {"1": self.node}
        self._numbers = 1
        for message in messages:
            self.append(message)

    @property
    def path(self) -> list[Node]:
        """The messages up to the current position, the system message included."""
        return _path_to(self.node)

    @property
    def turns(self) -> list[Node]:
        """The messages up to the current position, without the system message."""
        return _turns(self.path)

    @property
    def system(self) -> str:
        """The content of the system message; "" if there is none."""
        return "".join(node.content for node in self.path[:1] if node.role == "system")

    @property
    def messages(self) -> list[Message]:
        """The messages up to the current position, as they are."""
        return _messages(self.path)

    @property
    def branches(self) -> list[Branch]:
        """All branches, the oldest first."""
        return [
            Branch(name, _messages(_path_to(tip)), name == self.branch)
            for name, tip in self._tips.items()
        ]

    def append(self, message: Message, is_generated: bool = False) -> None:
        """Add a message at the current position; behind the end of no branch, begin a new one."""
        if self.node is not self._tips[self.branch]:
            self.branch = self._next_number()
        self.node = self._tips[self.branch] = Node(message, self.node, is_generated)

    def go_back(self, length: int) -> None:
        """Go back to the first `length` messages without the system message."""
        for _ in range(len(self.turns) - length):
            assert self.node.parent is not None
            self.node = self.node.parent

    def replace(self, messages: Sequence[Message]) -> None:
        """Replace the conversation; what both begin with is kept, the old one stays as a branch.

        White space around a message does not count.
        """
        path = self.path
        shared = 0
        for node, message in zip(path, messages, strict=False):
            if (node.role, node.content.strip()) != (message.role, message.content.strip()):
                break
            shared += 1
        if not _turns(_path_to(self._tips[self.branch])):  # nothing to keep
            self._tips[self.branch] = path[shared - 1] if shared else _start_of(self.node)
        self.node = path[shared - 1] if shared else _start_of(self.node)
        for message in messages[shared:]:
            self.append(message)

    def switch(self, name: str) -> None:
        """Go to the end of a branch.

        Raises:
            AGI2Error: if there is none of this name.
        """
        if name not in self._tips:
            known = ", ".join(self._tips)
            raise AGI2Error(f"there is no branch {safe_repr(name)}; the branches are {known}")
        self.branch, self.node = name, self._tips[name]

    def fork(self, name: str = "") -> None:
        """Begin a branch at the current position.

        Args:
            name: its name; by default the next number.

        Raises:
            AGI2Error: if the name is taken, a number, has white space or is too long.
        """
        if name in self._tips:
            raise AGI2Error(f"there is a branch {safe_repr(name)} already")
        if name and (name.isdecimal() or name.split() != [name] or len(name) > _MAX_NAME):
            raise AGI2Error(
                f"a branch is named by one word of at most {_MAX_NAME} characters that is not a "
                f"number, not {safe_repr(name)}"
            )
        self.branch = name or self._next_number()
        self._tips[self.branch] = self.node

    def _next_number(self) -> str:
        self._numbers += 1
        return str(self._numbers)


def _path_to(node: Node) -> list[Node]:
    path: list[Node] = []
    while node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


def _start_of(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def _turns(path: list[Node]) -> list[Node]:
    return path[1:] if path and path[0].role == "system" else path


def _messages(path: Iterable[Node]) -> list[Message]:
    return [node.message for node in path if node.message is not None]
