"""Model runner: computes tokens of the rows of a KV cache: prefill, decode steps and rollback.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..cuda_utils import available_memory
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.dropout import evaluating
from ..nn.kv_cache import KVCache
from ..utils import human_bytes, log, plural
from .prefix_cache import PrefixCache
from .sampling import EndToken, end_ids

RECORDED_TOKENS = 64
"""Tokens of a prompt whose logits are recorded at a time: it limits the memory."""


class Chunk(NamedTuple):
    """Tokens to compute in a row of the KV cache, behind the first `offset` that it holds."""

    row: int
    offset: int
    tokens: list[int]
    record: Callable[[int, torch.Tensor], None] | None = None
    """Called with the place of the first of T of the tokens and their logits (T, V), if given."""


class ModelRunner:
    """A model with a KV cache, whose rows have lengths of their own.

    `compute` is what the engine uses: each row belongs to a sequence. `prefill`, `decode`,
    `extend`, `rollback` and `reorder` are for one prompt and continuations of equal lengths, as
    beams and speculation need: past the model's positions their windows slide (see `Sequence`). A
    row's logits are those it would have alone.

    Args:
        model: evaluated without dropout, whatever mode it is in. Its weights must not change while
            a sequence is decoded: the cache would hold keys and values of the old ones.
        vocab_size: V, tokens to choose from: the tokenizer's, if the model has more.

    Raises:
        AGI2Error: if the model has fewer tokens.
    """

    def __init__(self, model: GPT2Model, vocab_size: int) -> None:
        if vocab_size > model.config.vocab_size:
            raise AGI2Error(
                f"vocab_size {vocab_size} is above the model's {model.config.vocab_size} tokens"
            )
        self.model = model
        self.vocab_size = vocab_size
        self.positions = model.config.max_seq_len
        self._cache: KVCache | None = None
        # Token ids that each row of the cache holds, as far as a later prompt may reuse them.
        self._held_tokens: list[list[int]] = []
        # Token ids of a prompt's continuations, (B, capacity); `_length` columns are filled.
        self._buffer = torch.empty(0, 0, dtype=torch.long, device="cpu")
        self._length = 0
        self._in_use = threading.Lock()

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Reserve the runner for one sequence, also while its generator is suspended.

        Raises:
            AGI2Error: if it is decoding another sequence.
        """
        if not self._in_use.acquire(blocking=False):
            raise AGI2Error(
                "this runner is decoding another text: exhaust or close that generator first, "
                "or use another runner"
            )
        try:
            yield
        finally:
            self._in_use.release()

    @property
    def _held(self) -> KVCache:
        assert self._cache is not None, "prefill comes first"
        return self._cache

    @property
    def cache_bytes(self) -> int:
        """Size of the KV cache."""
        cache = self._cache
        return 0 if cache is None else cache.batch_size * _cache_bytes(self.model, self.positions)

    def reserve_rows(self, rows: int) -> None:
        """Make sure that the KV cache has this many rows; those that it has keep their tokens."""
        cache = self._cache
        if cache is None or cache.device != self.model.device:
            with torch.inference_mode():
                self._cache = self.model.new_cache(rows)
            self._held_tokens = [[] for _ in range(rows)]
        elif cache.batch_size < rows:
            self._held_tokens += [[] for _ in range(rows - cache.batch_size)]
            with torch.inference_mode():
                self._cache = cache.grow(rows)

    def reusable(self, row: int, window: Sequence[int]) -> int:
        """Return the length of the prefix of a window, less than all of it, that a row holds.

        Reserve the row first.
        """
        held = self._held_tokens[row]
        pairs = enumerate(zip(held, window, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(held), len(window)))
        return min(shared, len(window) - 1)  # the last token's logits are wanted

    @torch.inference_mode()
    def restore(self, row: int, window: Sequence[int], cache: PrefixCache) -> int:
        """Copy the prefix of a window that a prefix cache holds to a row, if the row holds less.

        Returns:
            The length of the prefix of the window, less than all of it, that the row holds.
        """
        held = self.reusable(row, window)
        first = held // cache.block
        blocks = cache.match(window[:-1])[first:]
        if not blocks:
            return held
        length = first * cache.block
        self._truncate({row: length})
        for values in blocks:
            self._held.write(row, length, values)
            self._held_tokens[row] += window[length : length + cache.block]
            length += cache.block
        return length

    @torch.inference_mode()
    def store(self, row: int, cache: PrefixCache) -> None:
        """Store the tokens of a row in a prefix cache."""
        cache.insert(self._held_tokens[row], lambda start, stop: self._held.read(row, start, stop))

    @torch.inference_mode()
    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute tokens of some rows; return the logits (N, V) after the last token of each chunk.

        An exception, such as an interrupt, leaves the rows as they were, less what is behind the
        offsets.

        Args:
            chunks: N, at most one for each row, in the order of the rows.
        """
        lengths = self._held.lengths
        self._truncate({row: offset for row, offset, *_ in chunks if offset < lengths[row]})
        if all(len(chunk.tokens) == 1 for chunk in chunks):  # a decode step
            return self._compute_together(chunks)
        parts: list[torch.Tensor] = []
        places: list[int] = []
        for group in self._groups(chunks):
            parts.append(self._compute_together(group))
            places += [chunk.row for chunk in group]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[sorted(range(len(places)), key=places.__getitem__)]

    def _groups(self, chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
        """Divide chunks into those that one forward pass computes, padded on the right.

        All together if at most half is padding; otherwise decode steps first, then adjacent rows as
        long as at most half is padding.
        """
        if self._is_dense(chunks):
            yield list(chunks)
            return
        if single := [chunk for chunk in chunks if len(chunk.tokens) == 1]:
            yield single
        group: list[Chunk] = []
        for chunk in chunks:
            if len(chunk.tokens) > 1:
                if group and not self._is_dense([*group, chunk]):
                    yield group
                    group = []
                group.append(chunk)
        if group:
            yield group

    def _is_dense(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether a forward pass of these rows, and those between, is at most half padding.

        The padding must fit behind the tokens of every row, too.
        """
        first, last = chunks[0].row, chunks[-1].row
        width = max(len(chunk.tokens) for chunk in chunks)
        needed = sum(len(chunk.tokens) for chunk in chunks)
        if (last - first + 1) * width > 2 * needed:
            return False
        return max(self._held.lengths[first : last + 1]) + width <= self._held.capacity

    def _compute_together(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Run one forward pass over adjacent rows; return the logits (N, V) of each chunk.

        Rows between that have no chunk compute a token that is dropped.
        """
        width = max(len(chunk.tokens) for chunk in chunks)
        first, stop = chunks[0].row, chunks[-1].row + 1
        if width == 1:
            first, stop = self.model.decode_backend.rows_of_step(first, stop)
            stop = min(stop, self._held.batch_size)
        rows = [[0] * width for _ in range(first, stop)]
        counts = [width] * len(rows)
        for row, _, tokens, _ in chunks:
            rows[row - first][: len(tokens)] = tokens
            counts[row - first] = len(tokens)
        if len(chunks) < len(rows) or width > 1:
            # A row may hold more of an earlier window than leaves space for padding.
            most, lengths = self._held.capacity - width, self._held.lengths
            self._truncate({row: most for row in range(first, stop) if lengths[row] > most})
        device = self._held.device
        with evaluating():
            hidden = self.model.hidden_states(
                torch.tensor(rows, device=device), cache=self._held.view(first, stop)
            )
            for row, offset, tokens, record in chunks:
                if record is not None:
                    self._record(hidden[row - first, : len(tokens)], offset, record)
            if min(counts) < width:
                last = torch.tensor(counts, device=device) - 1
                hidden = hidden[torch.arange(len(rows), device=device), last].unsqueeze(1)
            logits = self.model.logits(hidden[:, -1:])[:, -1, : self.vocab_size]
        self._held.set_lengths({row: offset + len(tokens) for row, offset, tokens, _ in chunks})
        for row, _, tokens, _ in chunks:
            self._held_tokens[row] += tokens
        if len(chunks) == len(rows):
            return logits
        return logits[[chunk.row - first for chunk in chunks]]

    def _record(
        self, hidden: torch.Tensor, offset: int, record: Callable[[int, torch.Tensor], None]
    ) -> None:
        """Pass the logits of tokens with these hidden states (T, C) to `record`."""
        for start in range(0, len(hidden), RECORDED_TOKENS):
            part = hidden[start : start + RECORDED_TOKENS]
            record(offset + start, self.model.logits(part)[:, : self.vocab_size])

    def _truncate(self, lengths: dict[int, int]) -> None:
        """Shorten rows to lengths by row."""
        for row, length in lengths.items():
            del self._held_tokens[row][length:]
        if lengths:
            self._held.set_lengths(lengths)

    @torch.inference_mode()
    def copy_row(self, source: int, target: int) -> None:
        """Replace the tokens of a row by a copy of another row's."""
        self._held_tokens[target] = []  # nothing to reuse if the copy is interrupted
        self._held.copy_row(source, target)
        self._held_tokens[target] = list(self._held_tokens[source])

    @property
    def tokens(self) -> torch.Tensor:
        """The prompt and the new tokens of its continuations, (B, T)."""
        return self._buffer[:, : self._length]

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> torch.Tensor:
        """Prefill a prompt in a single row; return logits (1, V) of the next token.

        The prefix that it shares with the previous sequence is reused from the KV cache. A prompt
        longer than the model's positions is truncated on the left, with a warning.
        """
        warn_if_long(len(prompt), self.positions)
        tokens = [int(token) for token in prompt]
        window = tokens[-self.positions :]
        if self._cache is not None and self._cache.batch_size > 1:
            self._cache = None
        self.reserve_rows(1)
        shared = self.reusable(0, window)
        self._length = len(tokens)
        self._buffer = F.pad(torch.tensor([tokens], device=self.model.device), (0, self._length))
        return self.compute([Chunk(0, shared, window[shared:])])

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run a decode step: append a token to each row, (B,); return logits (B, V) of the next."""
        return self.extend(tokens.unsqueeze(1))[:, -1]

    @property
    def remaining_capacity(self) -> int:
        """Number of tokens that fit into the KV cache before a window slides."""
        return self.positions - self._held.length

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append T tokens to each row, (B, T); return logits (B, T, V), one forward pass for all.

        A single token slides full windows; more than one must fit into `remaining_capacity`.
        """
        count = tokens.size(1)
        if self._length + count > self._buffer.size(1):
            self._buffer = F.pad(self._buffer, (0, self._length + count))
        self._buffer[:, self._length : self._length + count] = tokens
        self._length += count
        rows, length = range(self._held.batch_size), self._held.length
        if count > self.remaining_capacity:
            half = max(1, self.positions // 2)
            last = self._buffer[:, self._length - half : self._length].tolist()
            return self.compute([Chunk(row, 0, last[row]) for row in rows]).unsqueeze(1)
        with evaluating():
            logits = self.model(tokens, cache=self._held.view(0, len(rows)))
        self._held.set_lengths(dict.fromkeys(rows, length + count))
        for held, new in zip(self._held_tokens, tokens.tolist(), strict=True):
            held += new
        return logits[..., : self.vocab_size]

    @torch.inference_mode()
    def rollback(self, count: int) -> None:
        """Roll back the last `count` tokens that `extend` has just appended, in each row."""
        self._length -= count
        length = self._held.length - count
        self._truncate(dict.fromkeys(range(self._held.batch_size), length) if count else {})

    @torch.inference_mode()
    def reorder(self, rows: torch.Tensor) -> None:
        """Make row i a copy of the old row `rows[i]`; the batch size may change."""
        self._buffer = self._buffer[rows]
        self._cache = self._held.select(rows)
        order = rows.tolist()
        self._held_tokens = [list(self._held_tokens[row]) for row in order]


def warn_if_long(length: int, positions: int) -> None:
    """Log a warning if a prompt of this length does not fit into the model's positions."""
    if length > positions:
        log.warning(
            "the prompt has %s, the model sees %d at a time: only the last are read",
            plural(length, "token"),
            positions,
        )


# Maximum batch size: more rows do not raise throughput, and some work is quadratic in them.
_MAX_ROWS = 256


def _cache_bytes(model: GPT2Model, tokens: int) -> int:
    """Return the bytes that the KV cache of one row of this many tokens takes at most."""
    config, size = model.config, next(model.parameters()).element_size()
    return 2 * size * config.n_layers * config.d_model * min(tokens, config.max_seq_len)


def max_batch_rows(model: GPT2Model) -> int:
    """Return the batch size whose KV cache fits into a quarter of the available memory."""
    budget = available_memory(model.device) // 4
    return max(1, min(_MAX_ROWS, budget // _cache_bytes(model, model.config.max_seq_len)))


def check_rows(model: GPT2Model, rows: int, tokens: int, key: str) -> None:
    """Check that the KV cache of rows that must be decoded together fits into memory.

    Args:
        model: the model that decodes.
        rows: number of rows.
        tokens: maximum length of a row.
        key: the option that sets the number of rows, for the message.

    Raises:
        AGI2Error: if it does not fit; the message has both sizes.
    """
    needed, available = rows * _cache_bytes(model, tokens), available_memory(model.device)
    if needed > available:
        raise AGI2Error(
            f"{key} = {rows}: their keys and values take {human_bytes(needed)}, this machine has "
            f"{human_bytes(available)}: lower {key} or max_length"
        )


def check_prompt(prompt: Sequence[int], vocab_size: int, end_token: EndToken = None) -> None:
    """Check a prompt's token ids and the end tokens.

    Raises:
        AGI2Error: if the prompt is empty, or a token is not in the vocabulary.
    """
    for end in end_ids(end_token):
        if not 0 <= end < vocab_size:
            raise AGI2Error(f"end_token {end} is not in the vocabulary of {vocab_size} tokens")
    if len(prompt) == 0:
        raise AGI2Error("the prompt has no tokens")
    if not all(0 <= token < vocab_size for token in prompt):
        raise AGI2Error(f"the prompt has a token above the vocabulary of {vocab_size}")
