"""Windows of conversations: packed, and cut at turns if they are longer than a window.

A conversation in the shards is its ids as `ChatTemplate.encode` gives them. What is after the last
end of a turn, a line feed, is in no window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ..errors import AGI2Error
from ..utils import plural
from .chat_template import ChatTemplate
from .packing import best_fit
from .shards import ShardedTokens

Segment = tuple[int, int]
"""Consecutive tokens: the index of the first, and their number."""


class Piece(NamedTuple):
    """A conversation, or a part of one.

    Its ids are those of its segments. All but the last are inputs, and the target of each is the
    next one.
    """

    segments: list[Segment]
    uncounted: int = 0
    """Number of ids at the beginning that are no targets that count, whoever says them."""


class ConversationRow(NamedTuple):
    """The pieces of conversations in a window."""

    pieces: list[Piece]


class ConversationPlan:
    """Windows of conversations, the same in every epoch; see `window_plans.Plan`.

    Best-fit decreasing packs the pieces. What the assistant says is a target in exactly one piece.
    The system message is in each piece of a conversation, if it fits.

    Args:
        tokens: the text, whose last documents are conversations.
        width: inputs of a window.
        template: the chat template of their tokenizer.

    Raises:
        AGI2Error: if `width` is too small for any conversation.
    """

    def __init__(self, tokens: ShardedTokens, width: int, template: ChatTemplate) -> None:
        self._width, cutter = width, _Cutter(width, template)
        begins, ends = conversation_bounds(tokens)
        lengths = ends - cutter.after_last - begins
        is_long = lengths > width + 1
        self._firsts, self._counts = begins, lengths
        self._bounds = np.arange(len(lengths) + 1)
        """The segments of piece i are those from `bounds[i]` to `bounds[i + 1]`."""
        self._uncounted = np.zeros(len(lengths), np.int32)
        self.conversations, self.cut = len(lengths), int(is_long.sum())
        self.shortened = 0
        """Number of conversations of which some piece lacks what was said before."""
        if self.cut:
            self._cut(tokens, np.flatnonzero(is_long), cutter)
        totals = np.add.reduceat(self._counts, self._bounds[:-1]) if len(lengths) else lengths
        self._inputs = totals - 1
        self._order, self._rows = best_fit(self._inputs, width)
        """The pieces of row r are `order[rows[r]]` to before `order[rows[r + 1]]`."""

    def _cut(self, tokens: ShardedTokens, long: np.ndarray, cutter: _Cutter) -> None:
        """Replace long conversations by their pieces."""
        segments: list[Segment] = []
        sizes: list[int] = []
        uncounted: list[int] = []
        for index in long.tolist():
            first, count = int(self._firsts[index]), int(self._counts[index])
            pieces, is_shortened = cutter.cut(tokens[first : first + count])
            self.shortened += is_shortened
            for piece in pieces:
                segments += [(first + at, length) for at, length in piece.segments]
                sizes.append(len(piece.segments))
                uncounted.append(piece.uncounted)
        is_short = np.ones(len(self._firsts), bool)
        is_short[long] = False
        cut = np.array(segments, np.int64)
        self._firsts = np.concatenate([self._firsts[is_short], cut[:, 0]])
        self._counts = np.concatenate([self._counts[is_short], cut[:, 1]])
        counts = np.concatenate([[0], np.ones(int(is_short.sum()), np.int64), sizes])
        self._bounds = np.cumsum(counts)
        self._uncounted = np.concatenate([self._uncounted[is_short], np.array(uncounted, np.int32)])

    def __len__(self) -> int:
        return len(self._rows) - 1

    def _row_inputs(self) -> np.ndarray:
        return np.add.reduceat(self._inputs[self._order], self._rows[:-1])

    @property
    def pieces(self) -> int:
        """Number of pieces of all conversations."""
        return len(self._inputs)

    @property
    def longest(self) -> int:
        """Number of inputs of the longest window."""
        return int(self._row_inputs().max(initial=0))

    @property
    def targets(self) -> int:
        """Number of inputs of all windows, each of which has a target, counted or not."""
        return int(self._inputs.sum())

    def attention_length(self, is_masked: bool) -> float:
        """Return the mean length of the piece of a target: no other is attended to."""
        lengths = self._inputs.astype(np.float64)
        return float((lengths**2).sum() / max(lengths.sum(), 1))

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return 0: the windows are the same in every epoch."""
        return 0

    def rows(self, order: torch.Tensor, offset: int) -> list[ConversationRow]:
        """Return windows, by their indices (R,)."""
        return [
            ConversationRow(
                [self._piece(each) for each in self._order[self._rows[i] : self._rows[i + 1]]]
            )
            for i in order.tolist()
        ]

    def _piece(self, index: int) -> Piece:
        own = slice(self._bounds[index], self._bounds[index + 1])
        segments = zip(self._firsts[own].tolist(), self._counts[own].tolist(), strict=True)
        return Piece(list(segments), int(self._uncounted[index]))

    def describe(self) -> Iterator[str]:
        """Yield lines on conversations that were cut."""
        if self.cut:
            more = self.pieces - (self.conversations - self.cut)
            yield (
                f"{self.cut:,} of {plural(self.conversations, 'conversation')} longer than seq_len "
                f"{self._width}: cut at turns into {plural(more, 'piece')}"
            )
        if self.shortened:
            yield (
                f"{plural(self.shortened, 'conversation')} with a turn longer than that: pieces of "
                "it lack some of what was said before"
            )


def conversation_bounds(tokens: ShardedTokens) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the first token of each conversation, and of the token after it."""
    starts = tokens.document_starts.astype(np.int64)
    ends = np.append(starts[1:] - 1, len(tokens))  # before the end-of-text token
    first = len(starts) - tokens.figures.conversations
    return starts[first:], ends[first:]


class _Cutter:
    """Cuts conversations at turns: what a user says, and the reply.

    Args:
        width: inputs of a window.
        template: the chat template.
    """

    def __init__(self, width: int, template: ChatTemplate) -> None:
        self._start = len(template.reply_start)
        """Number of tokens before the text of a message."""
        self.after_last = len(template.join("assistant", ())) - self._start - 1
        """Number of tokens after the end of a turn."""
        self._capacity = width + 1
        self._roles = [template.join(role, ())[0] for role in ("system", "user", "assistant")]
        shortest = 4 * self._start
        if width < shortest:
            raise AGI2Error(f"seq_len {width} is too short for conversations: at least {shortest}")

    def cut(self, ids: np.ndarray) -> tuple[list[Piece], bool]:
        """Return the pieces of a conversation, and whether one lacks what was said before.

        Args:
            ids: the conversation, to the end of the last turn, (N,).
        """
        begins = np.flatnonzero(np.isin(ids, self._roles)).tolist()
        system = 0
        if ids[0] == self._roles[0]:
            system = begins[1]
            del begins[0]
        ends = [each - self.after_last for each in begins[2::2]] + [len(ids)]
        turns = list(zip(begins[::2], begins[1::2], ends, strict=True))
        pieces: list[Piece] = []
        is_shortened, index = False, 0
        while index < len(turns):
            user, reply, end = turns[index]
            kept = system if system + end - user <= self._capacity else 0
            index += 1
            if end - user > self._capacity:
                pieces += self._cut_turn(user, reply, end)
            else:
                while index < len(turns) and kept + turns[index][2] - user <= self._capacity:
                    end = turns[index][2]
                    index += 1
                pieces.append(Piece([(0, kept)] * (kept > 0) + [(user, end - user)]))
            is_shortened |= kept < system or end - user > self._capacity
        return pieces, is_shortened

    def _cut_turn(self, user: int, reply: int, end: int) -> Iterator[Piece]:
        """Yield the pieces of a turn that is longer than a window.

        The user's message loses its beginning if it takes more than half of the window, and more
        than the reply leaves. The rest of the reply is in pieces that begin with the role and,
        uncounted, what is said before: else replies would seem to begin, and end, in the middle.
        """
        start, capacity = self._start, self._capacity
        limit = max(capacity // 2, capacity - (end - reply))
        context = [(user, reply - user)]
        if reply - user > limit:
            context = [(user, start), (reply - (limit - start), limit - start)]
        stop = min(end, reply + capacity - min(limit, reply - user))
        yield Piece([*context, (reply, stop - reply)])
        while stop < end:
            before = min((capacity - start) // 2, stop - reply - start)
            first, stop = stop - before, min(end, stop - before + capacity - start)
            yield Piece([(reply, start), (first, stop - first)], start + before)
