"""Windows of pairs of preferences: what was chosen, then what was rejected, each padded.

R rows, W inputs of one of the two. A pair in the shards is the ids of the chosen conversation, an
end-of-text token, and the ids of the rejected one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ..errors import AGI2Error
from ..utils import plural
from .chat_template import ChatTemplate
from .conversation_windows import Segment, conversation_bounds
from .shards import ShardedTokens
from .windows import IGNORE_INDEX


class _Sides(NamedTuple):
    """Offsets in a pair: what both begin with, and the two ends."""

    rejected: int
    """Where the rejected conversation begins."""
    system: int
    """Number of ids of the system message that are kept."""
    first: int
    """Where the first kept turn begins, in each conversation."""
    reply: int
    """Where the first message that differs begins, in each."""
    chosen_end: int
    """Where the last turn of the chosen conversation ends."""
    rejected_end: int
    """The same of the rejected conversation, from its beginning."""


class PreferenceWindows:
    """Pairs as batches of inputs, targets and reference log-probabilities; see `Windows`.

    A row, (2 W,), has the chosen conversation in its first half and the rejected one in its second,
    each padded on the right with `IGNORE_INDEX` as targets. Targets are the assistant's words and
    ends of turns from the first message on that differs. Of a longer conversation than `width`
    inputs, the first turns are left out, in both; a pair whose last turn does not fit is left out.

    Args:
        tokens: the text, whose documents are pairs.
        width: the most inputs of one of the two.
        template: the chat template of their tokenizer.
        what: what the pairs are for, for messages.

    Raises:
        AGI2Error: if no pair is left.
    """

    def __init__(
        self, tokens: ShardedTokens, width: int, template: ChatTemplate, what: str = "train on"
    ) -> None:
        self.tokens: np.ndarray | ShardedTokens = tokens
        self._template, self._width = template, width
        begins, ends = conversation_bounds(tokens)
        self._found, self.same, self.long, self.shortened = len(begins), 0, 0, 0
        kept: list[tuple[int, _Sides]] = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            sides = self._sides(tokens[begin:end])
            if sides is not None:
                kept.append((begin, sides))
        if not kept:
            raise AGI2Error(
                f"preferences: of {plural(self._found, 'pair')} none is left to {what}: "
                f"{self.long:,} longer than seq_len {width}, {self.same:,} with the same tokens"
            )
        self._pairs = np.array([(begin, *sides) for begin, sides in kept], np.int64)
        sizes = self._inputs_of_sides()
        self._longest = int(sizes.max())
        self._mean_inputs = float(sizes.sum() / len(sizes))
        self._attention_length = float((sizes.astype(np.float64) ** 2).sum() / sizes.sum())
        counts = [int(self._targets(index).sum()) for index in range(len(self))]
        self._bounds = np.cumsum([0, *counts])
        self.reference = torch.zeros(int(self._bounds[-1]), device="cpu")
        """Log-probabilities of the targets in the starting model, in order, (targets,)."""

    def _sides(self, ids: np.ndarray) -> _Sides | None:
        """Return the offsets in a pair; `None` if it is left out."""
        template = self._template
        rejected = int(np.flatnonzero(ids == template.tokenizer.end_of_text)[0]) + 1
        a, b = ids[: rejected - 1], ids[rejected:]
        size = min(len(a), len(b))
        differ = np.flatnonzero(a[:size] != b[:size])
        begins = template.message_starts(a)
        before = begins[begins <= differ[0]] if len(differ) else begins[:0]
        if not len(before) or a[before[-1]] != template.reply_start[0]:
            self.same += 1
            return None
        reply = int(before[-1])
        ends = [int(np.flatnonzero(each == template.end_of_turn)[-1]) + 1 for each in (a, b)]
        system = int(begins[1]) if a[0] == template.join("system", ())[0] else 0
        turns = begins[(begins >= system) & (begins < reply)][::2].tolist()
        spare = self._width + 1 - max(ends)
        fitting = [
            (kept, first) for kept in (system, 0) for first in turns if kept - first <= spare
        ]
        if not fitting:
            self.long += 1
            return None
        self.shortened += fitting[0] != (system, system)
        return _Sides(rejected, *fitting[0], reply, *ends)

    def _inputs_of_sides(self) -> np.ndarray:
        """Return the number of inputs of the two conversations of each pair, (pairs, 2)."""
        _, _, system, first, _, *ends = self._pairs.T
        return np.stack([system + end - first - 1 for end in ends], axis=1)

    def _segments(self, index: int) -> Iterator[tuple[list[Segment], int]]:
        """Yield the segments of a pair's two conversations, and the size of the prompt in them."""
        begin, rejected, system, first, reply, *ends = self._pairs[index].tolist()
        for start, end in zip((begin, begin + rejected), ends, strict=True):
            yield [(start, system), (start + first, end - first)], system + reply - first

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs and the targets of a pair, (2 W,) each."""
        inputs = np.zeros((2, self._longest), np.int64)
        targets = np.full((2, self._longest), IGNORE_INDEX, np.int64)
        for side, (segments, prompt) in enumerate(self._segments(index)):
            ids = np.concatenate([self.tokens[at : at + n] for at, n in segments]).astype(np.int64)
            counted = self._template.target_mask(ids) & (np.arange(len(ids)) >= prompt)
            inputs[side, : len(ids) - 1] = ids[:-1]
            targets[side, : len(ids) - 1] = np.where(counted, ids, IGNORE_INDEX)[1:]
        return inputs.ravel(), targets.ravel()

    def _targets(self, index: int) -> np.ndarray:
        """Return which targets of a pair count, (2 W,)."""
        return self._row(index)[1] != IGNORE_INDEX

    def describe(self) -> Iterator[str]:
        """Yield lines on the padding, and on pairs that are shortened or left out."""
        padding = 1 - self._mean_inputs / (2 * self._longest)
        yield f"{plural(len(self), 'pair')} an epoch, {100 * padding:.1f} % padding"
        if self.shortened:
            longer = f"{plural(self.shortened, 'pair')} longer than seq_len {self._width}"
            yield f"{longer}: their first turns are left out"
        if self.long:
            yield f"{plural(self.long, 'pair')} left out: the last turn is longer than seq_len"
        if self.same:
            yield f"{plural(self.same, 'pair')} left out: the replies have the same tokens"

    # See `Windows`.

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def seq_len(self) -> int:
        """Tokens of a row, and one more."""
        return 2 * self._longest + 1

    @property
    def mean_targets(self) -> float:
        """Mean number of inputs of a pair, and so of targets, also those that do not count."""
        return self._mean_inputs

    @property
    def attention_length(self) -> float:
        """Mean length of the conversation of a target, over all targets."""
        return self._attention_length

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return 0: the pairs are the same in every epoch."""
        return 0

    def weight(self, order: torch.Tensor, offset: int) -> int:
        """Return the number of pairs."""
        return len(order)

    def batch(self, order: torch.Tensor, offset: int) -> tuple[torch.Tensor, ...]:
        """Return pairs as inputs, targets and reference log-probabilities, (R, 2 W) each."""
        indices = order.tolist()
        shape = (len(indices), 2 * self._longest)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        reference = torch.zeros(shape, dtype=self.reference.dtype, device="cpu")
        for place, index in enumerate(indices):
            inputs[place], targets[place] = self._row(index)
            own = self.reference[self._bounds[index] : self._bounds[index + 1]]
            reference[place, torch.from_numpy(targets[place] != IGNORE_INDEX)] = own
        return torch.from_numpy(inputs), torch.from_numpy(targets), reference
