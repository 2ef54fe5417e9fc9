"""Model runner: computes tokens of the rows of a KV cache: prefill, decode steps and rollback.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from ..cuda_utils import to_device
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.dropout import evaluating
from ..nn.kv_cache import KVCache
from .cache_memory import cache_bytes
from .cache_memory import check_rows as check_rows  # also names of this module, as those below
from .cache_memory import max_batch_rows as max_batch_rows
from .chunks import Chunk as Chunk
from .chunks import grouped, padded, record_logits
from .kept_cache import keep, take
from .prefix_cache import PrefixCache
from .prompts import check_prompt as check_prompt
from .prompts import warn_if_long as warn_if_long

GRID = 32
"""Tokens of a piece in which rows are computed one by one (see `ModelRunner.grid`)."""


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
        batch_invariant: whether `compute` gives each row, on a CPU, bit for bit what it gives it
            alone, which takes longer without the CPU kernels. On a GPU rounding may differ.

    Raises:
        AGI2Error: if the model has fewer tokens.
    """

    def __init__(self, model: GPT2Model, vocab_size: int, *, batch_invariant: bool = False) -> None:
        if vocab_size > model.config.vocab_size:
            raise AGI2Error(
                f"vocab_size {vocab_size} is above the model's {model.config.vocab_size} tokens"
            )
        self.model = model
        self.vocab_size = vocab_size
        self.batch_invariant = batch_invariant
        self.positions = model.config.max_seq_len
        self._cache: KVCache | None = None
        # Token ids that each row of the cache holds, as far as a later prompt may reuse them.
        self._held_tokens: list[list[int]] = []
        # How many of them, from the first on, were computed in complete pieces of the grid.
        self._gridded: list[int] = []
        # Token ids of a prompt's continuations, (B, capacity); `_length` columns are filled.
        self._buffer = torch.empty(0, 0, dtype=torch.long, device="cpu")
        self._length, self._in_use = 0, threading.Lock()

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
        return 0 if cache is None else cache.batch_size * cache_bytes(self.model, self.positions)

    @property
    def grid(self) -> int:
        """Number of tokens into whose multiples a window must be divided.

        Above 1 if PyTorch computes the model on a CPU and results must be batch-invariant: its
        products differ in the last bits with their shapes. Each row is computed by itself, in
        pieces between multiples of this, and later sequences reuse complete pieces only.
        """
        is_exact = not self.batch_invariant or self.model.decode_backend.batch_invariant
        return 1 if is_exact or self.model.device.type != "cpu" else GRID

    def reserve_rows(self, rows: int, limit: int = 0) -> None:
        """Make sure that the KV cache has this many rows; those that it has keep their tokens.

        Args:
            rows: the number that is needed.
            limit: number up to which rows are doubled, so that they are rarely copied.
        """
        cache = self._cache
        if cache is None or cache.device != self.model.device:
            self._cache = None  # before the next one takes memory
            self._use(self._new_cache(rows))
            self._held_tokens, self._gridded = [[] for _ in range(rows)], [0] * rows
        elif cache.batch_size < rows:
            rows = max(rows, min(2 * cache.batch_size, limit))
            with torch.inference_mode():
                self._use(cache.grow(rows))
            self._held_tokens += [[] for _ in range(rows - cache.batch_size)]
            self._gridded += [0] * (rows - cache.batch_size)

    def _new_cache(self, rows: int) -> KVCache:
        kept = take(self.model, rows) if self.model.decode_backend.keeps_caches else None
        with torch.inference_mode():
            return self.model.new_cache(rows) if kept is None else kept

    def _use(self, cache: KVCache) -> None:
        """Use a KV cache from now on; it is kept for the model's next runner, if that is faster."""
        if cache is not self._cache and self.model.decode_backend.keeps_caches:
            keep(self.model, cache, self)
        self._cache = cache

    @torch.inference_mode()
    def release_rows(self) -> None:
        """Free the memory of all rows but the first, which keeps its tokens."""
        if self._cache is not None and self._cache.batch_size > 1:
            self._use(self._cache.select(torch.tensor([0], device=self._cache.device)))
            del self._held_tokens[1:], self._gridded[1:]

    def reset_rows(self) -> None:
        """Forget the tokens of all rows; what was not finite is gone."""
        if self._cache is not None:
            self._cache.reset()
            self._held_tokens, self._gridded = [[] for _ in self._gridded], [0] * len(self._gridded)

    def reusable(self, row: int, window: Sequence[int]) -> int:
        """Return the length of the prefix of a window, less than all of it, that a row holds.

        Reserve the row first.
        """
        held = self._held_tokens[row]
        pairs = enumerate(zip(held, window, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(held), len(window)))
        shared = min(shared, len(window) - 1)  # the last token's logits are wanted
        return shared if self.grid == 1 else min(shared, self._gridded[row]) // GRID * GRID

    @torch.inference_mode()
    def restore(self, row: int, window: Sequence[int], cache: PrefixCache) -> int:
        """Copy the prefix of a window that a prefix cache holds to a row, if the row holds less.

        Returns:
            The length of the prefix of the window, less than all of it, that the row holds.
        """
        held = self.reusable(row, window)
        first, blocks = held // cache.block, cache.match(window[:-1])
        while len(blocks) * cache.block % self.grid:
            blocks.pop()
        if len(blocks) <= first:
            return held
        length = first * cache.block
        self._truncate({row: length})
        for values in blocks[first:]:
            self._held.write(row, length, values)
            self._held_tokens[row] += window[length : length + cache.block]
            length += cache.block
        self._gridded[row] = length if self.grid > 1 else 0
        return length

    @torch.inference_mode()
    def store(self, row: int, cache: PrefixCache) -> None:
        """Store the tokens of a row in a prefix cache."""
        tokens = self._held_tokens[row]
        if self.grid > 1:
            tokens = tokens[: self._gridded[row]]
        cache.insert(tokens, lambda start, stop: self._held.read(row, start, stop))

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
        if self.grid > 1:
            return torch.cat([self._compute_alone(chunk) for chunk in chunks])
        if all(len(chunk.tokens) == 1 for chunk in chunks):  # a decode step
            return self._compute_together(chunks)
        parts: list[torch.Tensor] = []
        places: list[int] = []
        for group in grouped(chunks, self._held):
            parts.append(self._compute_together(group))
            places += [chunk.row for chunk in group]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[sorted(range(len(places)), key=places.__getitem__)]

    @torch.inference_mode()
    def start_decode(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Start a decode step of the first rows, whose tokens (N,) a GPU may still be computing.

        Call `hold` when the tokens are known.

        Returns:
            The logits (N, V), or None if the decode backend does not compute this step.
        """
        count, cache = len(tokens), self._held
        backend = self.model.decode_backend
        stop = min(backend.rows_of_step(0, count)[1], cache.batch_size)
        most, lengths = cache.capacity - 1, cache.lengths
        self._truncate({row: most for row in range(count, stop) if lengths[row] > most})
        with evaluating():
            logits = backend.decode(tokens, cache.view(0, stop), max(lengths[:count]))
        if logits is None:
            return None
        cache.set_lengths({row: lengths[row] + 1 for row in range(count)})
        return logits[:count, : self.vocab_size]

    def hold(self, row: int, token: int) -> None:
        """Take note of the token of a row that `start_decode` has appended."""
        self._held_tokens[row].append(token)

    def _compute_alone(self, chunk: Chunk) -> torch.Tensor:
        """Compute a chunk in pieces of the grid; return its logits (1, V)."""
        row, offset, tokens, record = chunk
        logits, stop = torch.empty(0, device="cpu"), offset + len(tokens)
        while offset < stop:
            end = min(offset // GRID * GRID + GRID, stop)
            piece, tokens = tokens[: end - offset], tokens[end - offset :]
            logits = self._compute_together([Chunk(row, offset, piece, record)])
            if offset == self._gridded[row] and len(piece) == GRID:
                self._gridded[row] = end
            offset = end
        return logits

    def _compute_together(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Run one forward pass over adjacent rows; return the logits (N, V) of each chunk.

        Rows between that have no chunk compute a token that is dropped.
        """
        width = max(len(chunk.tokens) for chunk in chunks)
        first, stop = chunks[0].row, chunks[-1].row + 1
        if width == 1:
            first, stop = self.model.decode_backend.rows_of_step(first, stop)
            stop = min(stop, self._held.batch_size)
        if len(chunks) < stop - first or width > 1:
            # A row may hold more of an earlier window than leaves space for padding.
            most, lengths = self._held.capacity - width, self._held.lengths
            self._truncate({row: most for row in range(first, stop) if lengths[row] > most})
        rows = padded(chunks, first, stop, width)
        with evaluating():
            logits = self._forward(chunks, rows, first)[..., : self.vocab_size]
        self._held.set_lengths({row: offset + len(tokens) for row, offset, tokens, _ in chunks})
        for row, _, tokens, _ in chunks:
            self._held_tokens[row] += tokens
        if len(chunks) == len(rows):
            return logits
        if chunks[-1].row - first < len(chunks):
            return logits[: len(chunks)]  # indexing by a list would wait for a GPU
        return logits[[chunk.row - first for chunk in chunks]]

    def _forward(self, chunks: Sequence[Chunk], rows: list[list[int]], first: int) -> torch.Tensor:
        """Append tokens to adjacent rows; return the logits (B, V or more) after the last of each.

        Args:
            chunks: those whose logits are returned or recorded; each row without is padding.
            rows: the tokens (B, T), padded on the right.
            first: the first row.
        """
        cache, width = self._held.view(first, first + len(rows)), len(rows[0])
        is_recorded = any(chunk.record is not None for chunk in chunks)
        if width == 1 and not is_recorded:
            longest = max(chunk.offset for chunk in chunks)
            decoded = self.model.decode_backend.decode([each for (each,) in rows], cache, longest)
            if decoded is not None:
                return decoded
        inputs, last = to_device(rows, cache.device), None
        if width > 1:
            counts = [width] * len(rows)
            for row, _, tokens, _ in chunks:
                counts[row - first] = len(tokens)
            last = to_device(counts, cache.device) if min(counts) < width else None
        if not is_recorded:
            return self.model(inputs, cache=cache, last_only=True, counts=last)[:, -1]
        hidden = self.model.hidden_states(inputs, cache=cache)
        record_logits(chunks, hidden, first, lambda x: self.model.logits(x)[:, : self.vocab_size])
        last = last if last is not None else torch.full((len(rows),), width, device=cache.device)
        hidden = hidden[torch.arange(len(rows), device=cache.device), last - 1]
        return self.model.logits(hidden.unsqueeze(1))[:, -1]

    def _truncate(self, lengths: dict[int, int]) -> None:
        """Shorten rows to lengths by row."""
        for row, length in lengths.items():
            del self._held_tokens[row][length:]
            self._gridded[row] = min(self._gridded[row], length // GRID * GRID)
        if lengths:
            self._held.set_lengths(lengths)

    @torch.inference_mode()
    def copy_row(self, source: int, target: int) -> None:
        """Replace the tokens of a row by a copy of another row's."""
        self._held_tokens[target] = []  # nothing to reuse if the copy is interrupted
        self._held.copy_row(source, target)
        self._held_tokens[target] = list(self._held_tokens[source])
        self._gridded[target] = self._gridded[source]

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
        ids, cache = tokens.tolist(), self._held.view(0, len(rows))
        with evaluating():
            decode, first = self.model.decode_backend.decode, [each[0] for each in ids]
            logits = decode(first, cache, length) if count == 1 else None
            if logits is None:
                logits = self.model(tokens, cache=cache)
        self._held.set_lengths(dict.fromkeys(rows, length + count))
        for held, new in zip(self._held_tokens, ids, strict=True):
            held += new
        return logits.view(len(rows), count, -1)[..., : self.vocab_size]

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
        self._use(self._held.select(rows))
        self._held_tokens = [list(self._held_tokens[row]) for row in rows.tolist()]
        self._gridded = [self._gridded[row] for row in rows.tolist()]
