"""Scheduler: which tokens of which sequences the next forward pass computes. No model.

A sequence is waiting, then running in a row of the KV cache, then finished. Running sequences
occupy the first rows without a gap: when one finishes, the sequence of the last row moves into its
row. First come, first served: the order depends on nothing but the calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .sequence import Sequence


class Scheduled(NamedTuple):
    """Pending tokens of a sequence for the next step."""

    row: int
    sequence: Sequence
    size: int


class Fork(NamedTuple):
    """A sequence whose window is computed in this step for another one: copy that row."""

    row: int
    sequence: Sequence
    source: int


class Step(NamedTuple):
    """What the next step computes; at least one token if any sequence is unfinished."""

    scheduled: list[Scheduled]
    """In the order of the rows."""
    forks: list[Fork]


class Move(NamedTuple):
    """A running sequence that has changed its row."""

    source: int
    target: int


class Scheduler:
    """Admits sequences to rows and distributes the tokens of each step.

    Sequences in a decode step come first, so that they keep going while long prompts are prefilled
    in chunks. Sequences of equal windows, such as several samples of one prompt, are prefilled
    once: the others are forked from the first.

    Args:
        max_rows: maximum number of running sequences.
        max_tokens: maximum number of tokens of a step; it limits the rows, too, as each running
            sequence needs one.
        grid: tokens of a window are computed up to multiples of this, or to its end; those of a
            decode step are not what the same tokens are in a prefill, if above 1.
        reusable: called with a waiting sequence and a free row; returns the length of the prefix of
            the sequence's window that the row's KV cache holds, less than the whole window.
    """

    def __init__(
        self,
        max_rows: int,
        max_tokens: int,
        reusable: Callable[[Sequence, int], int] = lambda sequence, row: 0,
        grid: int = 1,
    ) -> None:
        self.max_tokens = max(max_tokens, grid)
        # Beside all rows but one, in decode steps, the other has a piece of its prefill.
        self.max_rows = min(max_rows, self.max_tokens - grid + 1)
        self._grid = grid
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """The sequence of each row."""
        self._reusable = reusable
        self._arrived = 0

    @property
    def is_idle(self) -> bool:
        """Whether no sequence is waiting or running."""
        return not self.waiting and not self.running

    @property
    def may_admit(self) -> bool:
        """Whether a sequence is waiting and a row is free."""
        return bool(self.waiting) and len(self.running) < self.max_rows

    @property
    def rows_wanted(self) -> int:
        """Number of rows that the next step may use."""
        return min(self.max_rows, len(self.running) + len(self.waiting))

    def add(self, sequence: Sequence) -> None:
        """Add a sequence to the end of the queue."""
        sequence.arrival = self._arrived
        self._arrived += 1
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Choose the tokens of the next step, and admit waiting sequences to free rows."""
        may_admit = self.may_admit
        if not may_admit and all(each.pending == 1 for each in self.running):
            return Step([Scheduled(row, each, 1) for row, each in enumerate(self.running)], [])
        counts = self._running_counts()
        twins = self._admit(counts) if may_admit else []
        scheduled = [
            Scheduled(row, sequence, counts[id(sequence)])
            for row, sequence in enumerate(self.running)
            if counts.get(id(sequence), 0)
        ]
        if not twins:
            return Step(scheduled, [])
        rows = {id(sequence): row for row, sequence in enumerate(self.running)}
        forks = [Fork(rows[id(sequence)], sequence, rows[id(twin)]) for sequence, twin in twins]
        return Step(scheduled, forks)

    def remove_finished(self) -> list[Move]:
        """Forget finished sequences; return the moves that close gaps in the rows, in order."""
        self._drop_finished_waiting()
        moves, row = [], 0
        while row < len(self.running):
            if self.running[row].finish_reason is None:
                row += 1
                continue
            last = self.running.pop()
            if row < len(self.running):
                self.running[row] = last  # if it is finished, too, it is the next to be replaced
                if last.finish_reason is None:
                    moves.append(Move(len(self.running), row))
        return moves

    def _running_counts(self) -> dict[int, int]:
        """Return the number of tokens of this step for each running sequence, by id."""
        counts = {id(each): 1 for each in self.running if each.pending == 1}
        budget = self.max_tokens - len(counts)
        for each in sorted(self.running, key=lambda each: each.arrival):
            if id(each) not in counts:
                counts[id(each)] = self._fitting(each, budget)
                budget -= counts[id(each)]
        return counts

    def _fitting(self, sequence: Sequence, budget: int) -> int:
        """Return the number of pending tokens of a sequence to compute, at most `budget`."""
        if sequence.pending <= budget:
            return sequence.pending
        stop = (sequence.computed + budget) // self._grid * self._grid
        return max(0, stop - sequence.computed)

    def _admit(self, counts: dict[int, int]) -> list[tuple[Sequence, Sequence]]:
        """Admit waiting sequences and add their tokens to `counts`.

        Returns:
            The sequences that are forked, each with the one whose window is the same.
        """
        twins = {tuple(each.window): each for each in self.running if self._may_fork(each)}
        budget = self.max_tokens - sum(counts.values())
        admitted: list[Sequence] = []
        forks: list[tuple[Sequence, Sequence]] = []
        self._drop_finished_waiting()
        while self.waiting and len(self.running) + len(admitted) + len(forks) < self.max_rows:
            sequence = self.waiting[0]
            twin = sequence
            if not sequence.needs_prompt_logprobs:
                twin = twins.setdefault(tuple(sequence.window), sequence)
            if twin is not sequence:
                if counts[id(twin)] < twin.pending:  # fork it when the window is complete
                    break
                forks.append((self.waiting.popleft(), twin))
            elif budget < self._grid:
                break
            else:
                row = len(self.running) + len(admitted)
                sequence.computed = self._reusable(sequence, row)
                counts[id(sequence)] = self._fitting(sequence, budget)
                budget -= counts[id(sequence)]
                admitted.append(self.waiting.popleft())
        # Forks take the rows after all that are prefilled: adjacent rows share a forward pass.
        self.running += [*admitted, *(sequence for sequence, _ in forks)]
        return forks

    def _may_fork(self, sequence: Sequence) -> bool:
        """Return whether a running sequence's keys and values are those of a prefill."""
        return self._grid == 1 or len(sequence.tokens) == sequence.prompt_length

    def _drop_finished_waiting(self) -> None:
        if any(each.finish_reason is not None for each in self.waiting):
            self.waiting = deque(each for each in self.waiting if each.finish_reason is None)
