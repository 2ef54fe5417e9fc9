"""Model runner: prefill, decode steps and rollback of a batch of sequences with a KV cache.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from ..cuda_utils import available_memory
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.dropout import evaluating
from ..nn.kv_cache import KVCache
from ..utils import human_bytes, log, plural
from .sampling import EndToken, end_ids


class ModelRunner:
    """A batch of sequences with a KV cache: each step computes the new tokens only.

    Past the model's positions a row's window slides: the older half is dropped and the rest is
    prefilled again, which keeps the amortized cost per token small. A row's logits are those it
    would have alone, whatever the lengths of the others.

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
        self._positions = model.config.max_seq_len
        self._cache: KVCache | None = None
        # Token ids, (B, capacity), of which `_length` columns are filled. Rows are left-padded:
        # all end in the same column; row i begins in column `_starts[i]`.
        self._buffer = torch.empty(0, 0, dtype=torch.long, device="cpu")
        self._length = 0
        self._starts: list[int] = []
        # Number of last tokens of each row that the model attends to, which the cache holds.
        self._windows: list[int] = []
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
    def tokens(self) -> torch.Tensor:
        """Prompts and new tokens, (B, T), left-padded with 0."""
        return self._buffer[:, : self._length]

    def row(self, index: int) -> torch.Tensor:
        """Return the tokens of one row without padding, (1, T)."""
        return self._buffer[index : index + 1, self._starts[index] : self._length]

    @property
    def is_padded(self) -> bool:
        """Whether any row has padding."""
        return any(self._starts)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Prefill prompts of any lengths; return logits (B, V) of the next tokens.

        The prefix that a single prompt shares with the previous sequence is reused from the KV
        cache. A prompt longer than the model's positions is truncated on the left, with a warning.
        """
        longest = max(map(len, prompts))
        if longest > self._positions:
            log.warning(
                "the prompt has %s, the model sees %d at a time: only the last are read",
                plural(longest, "token"),
                self._positions,
            )
        shared = self._shared_tokens(prompts)
        self._starts = [longest - len(prompt) for prompt in prompts]
        self._length = longest
        rows = [[0] * start + list(row) for start, row in zip(self._starts, prompts, strict=True)]
        self._buffer = F.pad(torch.tensor(rows, device=self.model.device), (0, longest))
        self._windows = [min(len(prompt), self._positions) for prompt in prompts]
        if shared:
            self._held.truncate(shared)
        else:
            self._cache = self.model.new_cache(len(prompts))
        return self._forward(self.tokens[:, shared - max(self._windows) :], last_only=True)[:, -1]

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run a decode step: append a token to each row, (B,); return logits (B, V) of the next."""
        return self.extend(tokens.unsqueeze(1))[:, -1]

    @property
    def remaining_capacity(self) -> int:
        """Number of tokens that fit into the KV cache before a window slides."""
        return self._positions - self._held.length

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append T tokens to each row, (B, T); return logits (B, T, V), one forward pass for all.

        A single token slides full windows; more than one must fit into `room`.
        """
        count = tokens.size(1)
        if self._length + count > self._buffer.size(1):
            self._buffer = F.pad(self._buffer, (0, self._length + count))
        self._buffer[:, self._length : self._length + count] = tokens
        self._length += count
        if count <= self.remaining_capacity:
            self._windows = [window + count for window in self._windows]
            return self._forward(tokens, last_only=False)
        half = max(1, self._positions // 2)
        self._windows = [
            half if window == self._positions else window + 1 for window in self._windows
        ]
        self._held.truncate(0)
        return self._forward(self.tokens[:, -max(self._windows) :], last_only=True)

    @torch.inference_mode()
    def rollback(self, count: int) -> None:
        """Roll back the last `count` tokens that `extend` has just appended, in each row."""
        self._length -= count
        self._windows = [window - count for window in self._windows]
        self._held.truncate(self._held.length - count)

    @torch.inference_mode()
    def reorder(self, rows: torch.Tensor) -> None:
        """Make row i a copy of the old row `rows[i]`; the batch size may change."""
        self._buffer = self._buffer[rows]
        self._cache = self._held.select(rows)
        order = rows.tolist()
        self._starts = [self._starts[row] for row in order]
        self._windows = [self._windows[row] for row in order]

    @property
    def _held(self) -> KVCache:
        assert self._cache is not None, "prefill comes first"
        return self._cache

    def _forward(self, tokens: torch.Tensor, *, last_only: bool) -> torch.Tensor:
        """Run the model on the last columns of the windows, those not in the KV cache yet.

        Returns:
            Logits (B, T, V), or of the last column alone (B, 1, V).
        """
        width = self._held.length + tokens.size(1)
        is_text = None
        if min(self._windows) < width:
            starts = [[width - window] for window in self._windows]
            padding = torch.tensor(starts, device=tokens.device)
            is_text = torch.arange(width, device=tokens.device) >= padding
        try:
            with evaluating():
                logits = self.model(tokens, is_text, cache=self._held, last_only=last_only)
        except BaseException:
            self._held.truncate(0)  # interrupted between layers, their lengths may differ
            raise
        return logits[..., : self.vocab_size]

    def _shared_tokens(self, prompts: Sequence[Sequence[int]]) -> int:
        """Return the length of the prefix of a single prompt's window that is in the KV cache."""
        if len(prompts) > 1 or len(self._windows) != 1 or self._buffer.device != self.model.device:
            return 0
        held = self._held.length
        if held > self._windows[0]:  # padding left by longer rows that have been removed
            return 0
        read = self._buffer[0, self._length - held : self._length].tolist()
        window = prompts[0][-self._positions :]
        pairs = enumerate(zip(read, window, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(held, len(window)))
        return min(shared, len(window) - 1)  # the last token's logits are wanted


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
