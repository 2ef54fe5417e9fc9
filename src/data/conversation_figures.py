"""Figures of conversations: turns, targets, and how long they are in a context. C conversations."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tokenizer import Tokenizer
from .chat_template import Message

_ROLE, _END = 1, 1
"""Tokens of a message before and after its text, line feeds aside."""


@dataclass(frozen=True)
class ConversationFigures:
    """What is known of conversations, with a vocabulary and for a context of some length."""

    conversations: int
    turns: int
    """Messages of the user with their replies."""
    system_messages: int
    tokens: int
    """Number of all tokens, those of the roles and of the ends included."""
    targets: int
    """How many of them are targets of the loss: what the assistant says, and the ends of that."""
    longest: int
    """Number of tokens of the longest conversation."""
    longest_name: str
    seq_len: int
    cut: int
    """Number of conversations that are longer than `seq_len` and cut at turns."""
    shortened: int
    """How many of them have a turn that does not fit, so that some of it is left out."""


class ConversationCounter:
    """Counts messages and tokens of conversations."""

    def __init__(self) -> None:
        self._lengths, self._needed = array("q"), array("q")
        self._turns = self._systems = self._targets = self._tokens = 0
        self._longest, self._longest_name = -1, ""

    def add(
        self, name: str, messages: Sequence[Message], sizes: Sequence[int], tokenizer: Tokenizer
    ) -> None:
        """Add a conversation.

        Args:
            name: its name.
            messages: its messages.
            sizes: numbers of tokens of their texts.
            tokenizer: the tokenizer that has counted them.
        """
        line_feed = len(tokenizer.encode("\n"))
        system = turn = longest_turn = 0
        for message, size in zip(messages, sizes, strict=True):
            whole = _ROLE + line_feed + size + _END + line_feed
            self._tokens += whole
            if message.role == "system":
                system = whole
            elif message.role == "user":
                self._turns += 1
                turn = whole
            else:
                self._targets += size + _END
                longest_turn = max(longest_turn, turn + whole - line_feed)
        length = sum(sizes) + len(messages) * (_ROLE + _END + 2 * line_feed)
        self._systems += system > 0
        # What follows the last end of a turn, a line feed, is in no window.
        self._lengths.append(length - line_feed)
        self._needed.append(system + longest_turn)
        if length > self._longest:
            self._longest, self._longest_name = length, name

    def finish(self, seq_len: int) -> ConversationFigures | None:
        """Return the figures for a context; `None` if there are no conversations."""
        if not self._lengths:
            return None
        lengths, needed = (np.frombuffer(each, np.int64) for each in (self._lengths, self._needed))
        return ConversationFigures(
            conversations=len(lengths),
            turns=self._turns,
            system_messages=self._systems,
            tokens=self._tokens,
            targets=self._targets,
            longest=self._longest,
            longest_name=self._longest_name,
            seq_len=seq_len,
            cut=int((lengths > seq_len + 1).sum()),
            shortened=int((needed > seq_len + 1).sum()),
        )
