"""The engine: one token loop for all sequences, whenever they join and leave.

A step: the scheduler chooses tokens of running sequences and admits waiting ones; the model runner
computes them in one forward pass, or a few; each sequence whose window is complete gets a token,
sampled with its own parameters and random numbers. On a GPU the next decode step is started before
these tokens are read, so that it computes while they are processed here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch

from ..cuda_utils import to_device
from ..errors import AGI2Error
from .logits_processors import process_logits
from .model_runner import Chunk, ModelRunner, warn_if_long
from .prefix_cache import PrefixCache
from .sampling import DrawnTokens, draw
from .scheduler import Scheduler
from .sequence import Sequence
from .speculative import speculate_tokens

STEP_TOKENS = 4096
"""Default limit of the tokens of a step: enough for the throughput of a prefill to be flat."""


@dataclass
class EngineCounts:
    """What an engine has done."""

    prompt_tokens: int = 0
    """Prompt tokens of the sequences that have begun."""
    cached_tokens: int = 0
    """Those whose keys and values were copied instead of computed."""
    generated_tokens: int = 0
    steps: int = 0
    """Steps that computed any tokens."""

    def add_prompt(self, sequence: Sequence, cached: int) -> None:
        """Count a sequence that begins with this many tokens cached."""
        sequence.cached_tokens = cached
        self.prompt_tokens += sequence.prompt_length
        self.cached_tokens += cached


class Engine:
    """Generates the tokens of any number of sequences.

    A sequence gets the tokens that it has alone, at every moment of joining and leaving.

    Args:
        runner: the model; used by one engine at a time.
        max_rows: maximum number of sequences that run at once.
        max_tokens: maximum number of tokens of a step; longer prompts are prefilled in chunks.
        prefix_cache: stores the keys and values of sequences for later ones.
    """

    def __init__(
        self,
        runner: ModelRunner,
        max_rows: int = 1,
        max_tokens: int = STEP_TOKENS,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.runner = runner
        self.prefix_cache = prefix_cache
        self.counts = counts = EngineCounts()
        # The sequences of a decode step that has been started, in the order of its logits (N, V).
        self._started: tuple[list[Sequence], torch.Tensor] | None = None
        # No method of the engine: a cycle of references would keep the KV cache alive.
        self.scheduler = Scheduler(
            max_rows,
            max_tokens,
            lambda sequence, row: _reuse(runner, prefix_cache, counts, sequence, row),
            runner.grid,
        )

    def add(self, sequence: Sequence) -> None:
        """Add a sequence to the end of the queue; the next steps generate its tokens."""
        self.scheduler.add(sequence)

    def step(self) -> list[Sequence]:
        """Run one step; return the sequences that got a token or were finished by it.

        If it raises or is interrupted, sequences that got no token in it get the same token in the
        next step: random numbers are kept, and all rows are computed again.

        Raises:
            AGI2Error: if the model's logits are not finite.
        """
        try:
            self._close_gaps()
            started, self._started = self._started, None
            if started is not None and self.scheduler.running:
                sequences, logits = self._finish_decode(*started)
            else:
                sequences, logits = self._compute()
            self._append(sequences, logits)
            if any(sequence.finish_reason is not None for sequence in sequences):
                self._close_gaps()
        except BaseException as error:
            self._started = None
            if isinstance(error, AGI2Error):  # keys and values may not be finite
                self.runner.reset_rows()
            for sequence in self.scheduler.running:
                sequence.computed = 0
            raise
        return sequences

    def _compute(self) -> tuple[list[Sequence], torch.Tensor]:
        """Compute a step; return the N sequences to sample and their logits (N, V)."""
        self.runner.reserve_rows(max(1, self.scheduler.rows_wanted), self.scheduler.max_rows)
        scheduled, forks = self.scheduler.schedule()
        if not scheduled:
            return [], torch.empty(0, 0, device="cpu")
        self.counts.steps += 1
        logits = self.runner.compute(
            [
                Chunk(
                    row,
                    sequence.computed,
                    sequence.next_tokens(size),
                    _recorder(sequence) if sequence.needs_prompt_logprobs else None,
                )
                for row, sequence, size in scheduled
            ]
        )
        sequences, places = [], []
        for place, (row, sequence, size) in enumerate(scheduled):
            sequence.computed += size
            if sequence.pending == 0:
                if size > 1:
                    self._store(row, sequence)
                sequences.append(sequence)
                places.append(place)
        if not forks and len(places) == len(scheduled):
            return sequences, logits
        place_of_row = {row: place for place, (row, _, _) in enumerate(scheduled)}
        for row, sequence, source in forks:
            self.runner.copy_row(source, row)
            sequence.computed = len(sequence.window)
            self.counts.add_prompt(sequence, sequence.computed)
            sequences.append(sequence)
            places.append(place_of_row[source])
        return sequences, logits[places]

    def _append(self, sequences: SequenceOf[Sequence], logits: torch.Tensor) -> None:
        """Sample a token for each of N sequences from the model's logits (N, V)."""
        places = [place for place, each in enumerate(sequences) if each.max_new_tokens]
        if len(places) < len(sequences):  # only scored
            for each in sequences:
                if not each.max_new_tokens:
                    each.finish("length")
            sequences, logits = [sequences[place] for place in places], logits[places]
        if not sequences:
            return
        drawn = draw_tokens(logits, sequences)
        # A GPU computes the next step while the tokens of this one are processed here.
        started = self._start_decode(sequences, drawn)
        for place, (sequence, token) in enumerate(zip(sequences, drawn.read(), strict=True)):
            is_new = sequence.append(token, logits[place] if sequence.needs_logprobs else None)
            self.counts.generated_tokens += is_new
            if is_new and started is not None:
                self.runner.hold(place, token)
                sequence.computed += 1
        if started is not None:
            self._started = list(sequences), started

    def _start_decode(
        self, sequences: SequenceOf[Sequence], drawn: DrawnTokens
    ) -> torch.Tensor | None:
        """Start the decode step after this one, if it will have the same rows; return its logits.

        Those of sequences that the tokens will have ended are dropped.
        """
        scheduler = self.scheduler
        if not self.runner.model.decode_backend.runs_ahead or scheduler.may_admit:
            return None
        if list(sequences) != scheduler.running:
            return None
        if not all(each.fits_another for each in sequences):
            return None
        if not any(each.needs_another for each in sequences):
            return None
        logits = self.runner.start_decode(drawn.ids.clamp(min=0))  # NO_TOKEN is no token
        self.counts.steps += logits is not None
        return logits

    def _finish_decode(
        self, started: SequenceOf[Sequence], logits: torch.Tensor
    ) -> tuple[list[Sequence], torch.Tensor]:
        """Return the running sequences, all of which are in the started step, and their logits."""
        running = list(self.scheduler.running)
        places = {id(sequence): place for place, sequence in enumerate(started)}
        order = [places[id(sequence)] for sequence in running]
        if order != list(range(len(started))):
            logits = logits.index_select(0, to_device(order, logits.device))
        return running, logits

    def run(self, sequences: Iterable[Sequence]) -> None:
        """Generate all tokens of the sequences.

        Raises:
            AGI2Error: if the runner is in use, or the model's logits are not finite.
        """
        requests = list(sequences)
        with self.runner.reserved():
            longest = max((sequence.prompt_length for sequence in requests), default=0)
            warn_if_long(longest, self.runner.positions)
            for sequence in requests:
                self.add(sequence)
            while not self.scheduler.is_idle:
                self.step()

    def stream(self, sequence: Sequence) -> Generator[int, None, None]:
        """Yield the new tokens of a sequence as they are sampled; finish it if closed.

        Raises:
            AGI2Error: if the runner is in use, or the model's logits are not finite.
        """
        if sequence.options.speculative == "ngram":
            yield from self._speculate(sequence)
            return
        with self.runner.reserved():
            warn_if_long(sequence.prompt_length, self.runner.positions)
            self.add(sequence)
            try:
                while sequence.finish_reason is None:
                    count = len(sequence.tokens)
                    self.step()
                    yield from sequence.tokens[count:]
            finally:
                sequence.finish("cancelled")
                self._close_gaps()

    def _speculate(self, sequence: Sequence) -> Generator[int, None, None]:
        """Yield the new tokens of a sequence that is decoded greedily, with draft tokens."""
        tokens = speculate_tokens(
            self.runner, sequence.tokens, sequence.options.max_length, end_token=sequence.end_tokens
        )
        try:
            for token in tokens:
                sequence.append(token)
                yield token
                if sequence.finish_reason is not None:
                    return
            sequence.finish("end_token")
        finally:
            tokens.close()
            sequence.finish("cancelled")

    def _close_gaps(self) -> None:
        """Free the rows of finished sequences, and move others into the gaps."""
        for row, sequence in enumerate(self.scheduler.running):
            if sequence.finish_reason not in (None, "error"):
                self._store(row, sequence)
        for source, target in self.scheduler.remove_finished():
            self.runner.copy_row(source, target)
        if not self.scheduler.running:
            self._started = None

    def _store(self, row: int, sequence: Sequence) -> None:
        """Store a sequence's row in the prefix cache, unless its window has slid."""
        if self.prefix_cache is not None and not sequence.has_slid:
            self.runner.store(row, self.prefix_cache)


def _recorder(sequence: Sequence) -> Callable[[int, torch.Tensor], None] | None:
    """Return what is called with the logits of the prompt's tokens; None for later ones."""
    is_prompt = len(sequence.tokens) == sequence.prompt_length
    return sequence.record_prompt if is_prompt else None


def _reuse(
    runner: ModelRunner,
    prefix_cache: PrefixCache | None,
    counts: EngineCounts,
    sequence: Sequence,
    row: int,
) -> int:
    """Admit a sequence to a row; return the length of the prefix of its window that the row holds.

    The keys and values that a prefix cache has are copied to the row.
    """
    window = sequence.window
    if sequence.needs_prompt_logprobs:
        held = 0
    elif prefix_cache is None:
        held = runner.reusable(row, window)
    else:
        held = runner.restore(row, window, prefix_cache)
    counts.add_prompt(sequence, held)
    return held


def draw_tokens(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> DrawnTokens:
    """Sample the next token of each sequence from the model's logits (N, V).

    Sequences whose logits processors have the same parameters and as many tokens to look at are
    processed together. A token does not depend on the other sequences.
    """
    looked_at = [sequence.processed_tokens() for sequence in sequences]
    first, (seen, start) = sequences[0].sampling_key, looked_at[0]
    if all(sequence.sampling_key is first for sequence in sequences) and all(
        len(tokens) == len(seen) and each == start for tokens, each in looked_at
    ):
        return draw(*_processed(logits, sequences, looked_at))
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, (sequence, (seen, start)) in enumerate(zip(sequences, looked_at, strict=True)):
        key = (sequence.sampling_key, len(seen), start)
        groups.setdefault(key, []).append(place)
    ids, parts, order = [], [], []
    for places in groups.values():
        rows = logits.index_select(0, to_device(places, logits.device))
        part, numbers = _processed(
            rows, [sequences[place] for place in places], [looked_at[place] for place in places]
        )
        ids.append(draw(part, numbers).ids)
        parts.append(part)
        order += places
    place_of = to_device(sorted(range(len(order)), key=order.__getitem__), logits.device)
    return DrawnTokens(torch.cat(ids).index_select(0, place_of), parts)


def _processed(
    logits: torch.Tensor,
    sequences: SequenceOf[Sequence],
    looked_at: SequenceOf[tuple[list[int], int]],
) -> tuple[torch.Tensor, list[float] | None]:
    """Process the logits of sequences of the same options that have as many tokens to look at.

    Returns:
        The processed logits (N, V), and the sequences' random numbers, None in greedy decoding.
    """
    first, (seen, start) = sequences[0], looked_at[0]
    if seen:
        rows = to_device([tokens for tokens, _ in looked_at], logits.device)
    else:
        rows = torch.empty(len(sequences), 0, dtype=torch.long, device=logits.device)
    processed = process_logits(logits, rows, first.options, start, first.end_tokens)
    numbers = None if first.is_greedy else [sequence.uniform() for sequence in sequences]
    return processed, numbers
