"""The chat template: messages to token ids, and which of them are targets of the loss.

A message is a role token, a line feed, its text, an end-of-turn token and a line feed; a reply is
generated after `<|assistant|>` and a line feed. No token is put before the first message. llama.cpp
knows this format as `phi3`, so that it is right there with and without its Jinja engine.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ..command_line import command_line
from ..errors import AGI2Error, safe_repr
from ..tokenizer import END_OF_TURN, ROLE_TOKENS, Tokenizer
from ..utils import write_text

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)

JINJA = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + (message['content'] | trim) + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""The template in the Jinja language, in which other programs read it."""
FILE_NAME = "chat_template.jinja"


def save_template(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `chat_template.jinja` beside a tokenizer that has roles, for other programs.

    Raises:
        AGI2Error: if it cannot be written.
    """
    if tokenizer.has_roles:
        write_text(folder / FILE_NAME, JINJA)


def check_template(folder: Path) -> None:
    """Check that the chat template in a folder, if there is one, is this one.

    Raises:
        AGI2Error: if it is another, or cannot be read.
    """
    path = folder / FILE_NAME
    if not os.path.lexists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_TEMPLATE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise AGI2Error(f"{path} cannot be read: {error}") from error
    if text.strip() != JINJA:
        raise AGI2Error(
            f"{path} is another chat template than AGI2's, in which this model's conversations "
            "would be wrong; delete it to use AGI2's"
        )


_MAX_TEMPLATE = 2**20


class Message(NamedTuple):
    """A message of a conversation."""

    role: Role
    content: str


def as_messages(values: Any, may_be_empty: Collection[Role] = ()) -> list[Message]:
    """Convert messages, each a `Message` or a mapping of `role` and `content`.

    White space around a text is not part of the message.

    Args:
        values: the messages.
        may_be_empty: roles of which a message may have no text.

    Raises:
        AGI2Error: if one is anything else, has another role, or has no text.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise AGI2Error(f"messages must be a list of messages, not {safe_repr(values)}")
    return [_as_message(value, index, may_be_empty) for index, value in enumerate(values, 1)]


def _as_message(value: Any, number: int, may_be_empty: Collection[Role]) -> Message:
    if isinstance(value, Message):
        role, content = value
    elif isinstance(value, Mapping):
        role, content = value.get("role"), value.get("content")  # type: ignore[assignment]
    else:
        raise AGI2Error(
            f"message {number} must have a role and a content, but is {safe_repr(value)}"
        )
    if not isinstance(role, str) or role not in ROLES:
        raise AGI2Error(
            f"message {number} has the role {safe_repr(role)}: roles are {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        raise AGI2Error(f"message {number} ({role}) has no text, but {safe_repr(content)}")
    if not (content := content.strip()) and role not in may_be_empty:
        raise AGI2Error(f"message {number} ({role}) is empty")
    return Message(role, content)


def check_order(messages: Sequence[Message], *, ends_with: Role | None = None) -> None:
    """Check that users and the assistant take turns, after a system message or none.

    Args:
        messages: the messages.
        ends_with: the role of the last message; by default any.

    Raises:
        AGI2Error: if they do not, or there are no messages.
    """
    is_system_first = bool(messages) and messages[0].role == "system"
    turns = messages[is_system_first:]
    if not turns:
        raise AGI2Error("a conversation needs a message of the user")
    for index, message in enumerate(turns):
        expected: Role = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise AGI2Error(
                f"message {index + 1 + is_system_first} is of the role {message.role}, where "
                f"{expected} is expected: after a system message or none, user and assistant "
                "take turns, and the user begins"
            )
    if ends_with is not None and turns[-1].role != ends_with:
        raise AGI2Error(
            f"the last message is of the role {turns[-1].role}, where {ends_with} is expected"
        )


class ChatTemplate:
    """The chat template for the ids of a tokenizer.

    Args:
        tokenizer: a tokenizer with the tokens of the roles; see `add_to`.

    Raises:
        AGI2Error: if it lacks them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_tokens
        if lacking := _lacking(tokenizer):
            raise AGI2Error(
                f"this model has no chat template: its tokenizer lacks {', '.join(lacking)}; "
                f"{command_line('tune')} adds them"
            )
        self.tokenizer = tokenizer
        self.end_of_turn = special[END_OF_TURN]
        self._line_feed = tokenizer.encode("\n")
        self._starts = {
            role: [special[token], *self._line_feed] for role, token in ROLE_TOKENS.items()
        }

    @classmethod
    def find(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Return the template of a tokenizer; `None` if it lacks the tokens of the roles."""
        return cls(tokenizer) if tokenizer.has_roles else None

    @staticmethod
    def add_to(tokenizer: Tokenizer) -> int:
        """Add the tokens of the roles that are missing; return their number.

        Raises:
            AGI2Error: if one of them is in the vocabulary, but not as a special token; or the
                vocabulary cannot have more tokens.
        """
        names = _lacking(tokenizer)
        tokenizer.add_special_tokens(*names)
        return len(names)

    @property
    def reply_start(self) -> list[int]:
        """Ids after which a reply is generated."""
        return list(self._starts["assistant"])

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a reply, besides the tokenizer's: those with which a message begins."""
        return tuple(starts[0] for starts in self._starts.values())

    def encode(
        self, messages: Iterable[Any], *, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and which of them are targets of the loss.

        Args:
            messages: see `as_messages`; in any order.
            add_generation_prompt: whether to end with `reply_start`.

        Raises:
            AGI2Error: if a message is invalid.
        """
        found = as_messages(messages)
        tokens, offsets = self.tokenizer.encode_batch([message.content for message in found])
        texts = [part.tolist() for part in np.split(tokens, offsets[1:-1])]
        ids: list[int] = []
        targets: list[bool] = []
        for message, text in zip(found, texts, strict=False):
            message_ids = self.join(message.role, text)
            is_target = message.role == "assistant"
            start, end = len(self._starts[message.role]), len(message_ids) - len(self._line_feed)
            ids += message_ids
            targets += (
                is_target and start <= position < end for position in range(len(message_ids))
            )
        if add_generation_prompt:
            ids += self.reply_start
            targets += [False] * len(self.reply_start)
        return ids, targets

    def join(self, role: Role, text: Iterable[int]) -> list[int]:
        """Return the ids of a message, given those of its text."""
        return [*self._starts[role], *text, self.end_of_turn, *self._line_feed]

    def encode_message(self, message: Any) -> list[int]:
        """Return the ids of a message: those of a conversation are the ids of its messages."""
        return self.encode([message])[0]

    def decode(self, ids: Sequence[int]) -> list[Message]:
        """Return the messages of which these are the ids; a last one that was cut, too."""
        roles = {self._starts[role][0]: role for role in ROLES}
        starts = [index for index, id in enumerate(ids) if id in roles]
        return [
            Message(roles[ids[start]], self._text_of(ids[start:end]))
            for start, end in pairwise([*starts, len(ids)])
        ]

    def _text_of(self, ids: Sequence[int]) -> str:
        """Return the text of a message, without the tokens around it.

        These are left out by their number: a vocabulary without the line feed has another token.
        """
        start = len(self.reply_start)
        ends = [index for index, id in enumerate(ids) if id == self.end_of_turn]
        return self.tokenizer.decode(ids[start : ends[0] if ends else None]).strip()

    def message_starts(self, ids: np.ndarray) -> np.ndarray:
        """Return where the messages of a conversation begin, given its ids, (T,)."""
        return np.flatnonzero(np.isin(ids, [starts[0] for starts in self._starts.values()]))

    def target_mask(self, ids: np.ndarray) -> np.ndarray:
        """Return which ids are targets: the assistant's words and the end of each turn of theirs.

        Only from the ids, since text has no special tokens.

        Args:
            ids: a conversation, or more than one, (..., T); or a part that begins with a message.

        Returns:
            Booleans, (..., T).
        """
        positions = np.arange(ids.shape[-1])

        def last(is_one: np.ndarray) -> np.ndarray:
            """Return the last position up to each where `is_one`; -1 if there is none."""
            return np.maximum.accumulate(np.where(is_one, positions, -1), axis=-1)

        roles = [starts[0] for starts in self._starts.values()]
        role_at = last(np.isin(ids, roles))
        role = np.take_along_axis(ids, role_at.clip(min=0), axis=-1)
        end = last(ids == self.end_of_turn)
        # An end of turn belongs to its message: only what follows it is outside.
        end_before = np.concatenate([np.full_like(end[..., :1], -1), end[..., :-1]], axis=-1)
        assistant = self._starts["assistant"]
        is_text = (positions >= role_at + len(assistant)) & (end_before < role_at)
        return (role == assistant[0]) & is_text


def _lacking(tokenizer: Tokenizer) -> list[str]:
    known = tokenizer.special_tokens
    return [name for name in (*ROLE_TOKENS.values(), END_OF_TURN) if name not in known]
