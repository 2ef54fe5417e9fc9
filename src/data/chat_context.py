"""The context of a conversation: its messages as token ids, trimmed to what a model can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import AGI2Error
from ..tokenizer import Tokenizer
from ..utils import log, plural
from .chat_template import ChatTemplate, Message
from .message_tree import MessageTree, Node

TURN_END = "\n\n"
"""Separator of the turns of a conversation without a chat template, and stop string of a reply."""


class Trimmed(NamedTuple):
    """What of a conversation was left out of its context, before one reply."""

    messages: int = 0
    """Number of old messages that no longer fit."""
    tokens: int = 0
    """Number of their tokens."""
    cut: int = 0
    """Number of tokens cut off the start of a message that is longer than the context."""


class ChatContext:
    """Encodes conversations for a model: by its chat template, or as turns of plain text.

    Args:
        tokenizer: the model's; it has a chat template if it has the tokens of the roles.
        model_seed: text before the turns of a model without a chat template.
    """

    def __init__(self, tokenizer: Tokenizer, model_seed: str = "") -> None:
        self._tokenizer = tokenizer
        self.template = ChatTemplate.find(tokenizer)
        has_seed = bool(model_seed) and self.template is None
        self._seed_tokens = tokenizer.encode(model_seed) if has_seed else []
        self._turn_end = [] if self.template else _encode_turn_end(tokenizer)

    @property
    def seed_tokens(self) -> list[int]:
        """The text before a conversation without a chat template."""
        return list(self._seed_tokens)

    @property
    def seed_length(self) -> int:
        """Number of tokens of the text before a conversation without a chat template."""
        return len(self._seed_tokens)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a reply: see `ChatTemplate.end_tokens`."""
        return () if self.template is None else self.template.end_tokens

    def encode(self, message: Message) -> list[int]:
        """Return the token ids of a message, which may be empty: a reply that was stopped is."""
        if self.template is not None:
            text = self._tokenizer.encode(message.content.strip())
            return self.template.join(message.role, text)
        return self._tokenizer.encode(message.content) + self._turn_end

    def budget(self, system: str, limit: int) -> int:
        """Return the number of tokens that a context of `limit` leaves for messages.

        Raises:
            AGI2Error: if that is not enough for the shortest message.
        """
        head = len(self._head(system))
        around = frame = 0
        if self.template is not None:
            around = len(self.template.reply_start)
            frame = len(self.template.join("user", []))
        left = limit - head - around
        if left > frame:
            return left
        if not head:
            raise AGI2Error(
                f"a context of {plural(limit, 'token')} is too short for a message: its role and "
                f"that of the reply take {around + frame}"
            )
        name = "model_seed" if self.template is None else "the system message"
        raise AGI2Error(
            f"{name} has {plural(head, 'token')}: a context of {limit} leaves no tokens for a "
            "message"
        )

    def tokens(self, tree: MessageTree, limit: int) -> tuple[list[int], Trimmed]:
        """Return the token ids of a conversation, at most `limit`, and what was left out of it.

        If it is too long, the oldest messages are dropped until a quarter of the context is free:
        each time that the start changes, the KV cache is of no use, which must not happen at every
        message. With a chat template, a message is dropped with its reply. A single message that
        is still too long is cut to its end, with a warning.
        """
        before = tree.node.dropped
        first, kept, cut = self._fit(tree, limit)
        turns = tree.turns
        lengths = [len(self.tokens_of(node)) for node in turns[before:first]]
        trimmed = Trimmed(max(0, first - before), sum(lengths), cut)
        tree.node.dropped, tree.node.cut = first, cut
        if cut:
            log.warning("the message is longer than the context: only its end is used")
        elif trimmed.messages:
            log.info(
                "the oldest %s (%s) no longer fit into the context",
                plural(trimmed.messages, "message"),
                plural(trimmed.tokens, "token"),
            )
        ids = [token for message in kept for token in message]
        if self.template is not None and turns and turns[-1].role == "user":
            ids += self.template.reply_start
        return self._head(tree.system) + ids, trimmed

    def left_out(self, tree: MessageTree, limit: int) -> tuple[int, int]:
        """Return what a context leaves out: a number of messages, and of tokens of the others.

        If the last message is a reply that was generated, it is what was left out before it.
        """
        if tree.node.is_generated:
            return tree.node.dropped, tree.node.cut
        first, _, cut = self._fit(tree, limit)
        return first, cut

    def _fit(self, tree: MessageTree, limit: int) -> tuple[int, list[list[int]], int]:
        """Return the index of the first message of a context, the ids of each, and what was cut."""
        budget = self.budget(tree.system, limit)
        turns = tree.turns
        lengths = [len(self.tokens_of(node)) for node in turns]
        first = self._first_kept(turns, lengths, tree.node.dropped, budget)
        kept = [list(self.tokens_of(node)) for node in turns[first:]]
        length = sum(lengths[first:])
        if length <= budget:
            return first, kept, 0
        kept = self._cut(turns[first:], kept, budget)
        return first, kept, length - sum(map(len, kept))

    def _head(self, system: str) -> list[int]:
        if self.template is None:
            return self._seed_tokens
        return self.encode(Message("system", system)) if system else []

    def tokens_of(self, node: Node) -> list[int]:
        """Return the token ids of a message, encoded once."""
        if node.tokens is None:
            assert node.message is not None
            node.tokens = self.encode(node.message)
        return node.tokens

    def _first_kept(
        self, turns: Sequence[Node], lengths: Sequence[int], dropped: int, budget: int
    ) -> int:
        """Return the index of the first message of the context."""
        length = sum(lengths[dropped:])
        if length <= budget:
            return dropped
        first = dropped
        for index in range(dropped + 1, len(turns)):
            if self.template is not None and turns[index].role != "user":
                continue
            if length <= budget - budget // 4:
                break
            length -= sum(lengths[first:index])
            first = index
        return first

    def _cut(self, turns: Sequence[Node], kept: list[list[int]], budget: int) -> list[list[int]]:
        """Cut messages from the start until they have `budget` tokens."""
        if self.template is None:
            return [[token for message in kept for token in message][-budget:]]
        rest = list(zip(turns, kept, strict=True))
        frame = len(self.template.join("user", []))
        while len(rest) > 1 and sum(len(ids) for _, ids in rest[1:]) + frame > budget:
            del rest[0]
        (first, _), *others = rest
        too_many = max(0, sum(len(ids) for _, ids in rest) - budget)
        text = self._tokenizer.encode(first.content.strip())[too_many:]
        assert first.role is not None
        return [self.template.join(first.role, text), *(ids for _, ids in others)]


def _encode_turn_end(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that end a turn.

    Each turn is encoded by itself and its end character by character: GPT-2's pre-tokenizer splits
    "\\n\\n" before text, and the tokens of a turn must not depend on the next turn, or the cached
    prefix would not match. A tokenizer that folds white space cannot represent the separator:
    turns then end with the end-of-text token.
    """
    turn_end = [token for character in TURN_END for token in tokenizer.encode(character)]
    return turn_end if tokenizer.decode(turn_end) == TURN_END else [tokenizer.end_of_text]
