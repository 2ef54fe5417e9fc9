"""Rows of tokens that grow, one forward pass of the model for each new token.

B rows, T tokens, V vocabulary.
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


class Decoder:
    """Rows of text that grow by a token or a few at a time, each step costing its own tokens' work.

    Past the model's positions a row's window slides: its older half is forgotten and the rest is
    read again, so that the cost of sliding, spread over the tokens, stays small. Each row sees
    what it would see alone, whatever the others' lengths.

    Args:
        model: evaluated without dropout, whatever mode it is in. Its weights must not change while
            a text is decoded: the cache would hold keys and values of the old ones.
        vocab_size: V, the tokens to choose from: those the tokenizer has, where the model has more.

    Raises:
        AGI2Error: where the model has fewer tokens.
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
        # The tokens, with room for more to come: (B, capacity), of which `_length` columns are
        # filled. All rows end in the same column; row i begins in column `_starts[i]`.
        self._buffer = torch.empty(0, 0, dtype=torch.long, device="cpu")
        self._length = 0
        self._starts: list[int] = []
        # The last tokens of each row that the model sees, and the cache holds.
        self._windows: list[int] = []
        self._in_use = threading.Lock()

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the decoder for one text, also while its generator is suspended.

        Raises:
            AGI2Error: where it is decoding another text.
        """
        if not self._in_use.acquire(blocking=False):
            raise AGI2Error(
                "this decoder is decoding another text: exhaust or close that generator first, "
                "or take another decoder"
            )
        try:
            yield
        finally:
            self._in_use.release()

    @property
    def tokens(self) -> torch.Tensor:
        """Prompts and new tokens, (B, T); rows of different lengths have padding on the left."""
        return self._buffer[:, : self._length]

    def row(self, index: int) -> torch.Tensor:
        """One row's tokens (1, its own length)."""
        return self._buffer[index : index + 1, self._starts[index] : self._length]

    @property
    def is_padded(self) -> bool:
        """Whether rows have different lengths."""
        return any(self._starts)

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Begin with these prompts, of any lengths: logits (B, V) of the next tokens.

        What a single prompt shares with the text of before is not read again. Of a prompt longer
        than the model's positions only the end is read, with a warning.
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

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, (B,): logits (B, V) of the next."""
        return self.extend(tokens.unsqueeze(1))[:, -1]

    @property
    def room(self) -> int:
        """Tokens that fit before a window slides."""
        return self._positions - self._held.length

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append T tokens to each row, (B, T): logits (B, T, V) of what follows each of them.

        One slides the windows that are full; there must be `room` for more.
        """
        count = tokens.size(1)
        if self._length + count > self._buffer.size(1):
            self._buffer = F.pad(self._buffer, (0, self._length + count))
        self._buffer[:, self._length : self._length + count] = tokens
        self._length += count
        if count <= self.room:
            self._windows = [window + count for window in self._windows]
            return self._forward(tokens, last_only=False)
        half = max(1, self._positions // 2)
        self._windows = [
            half if window == self._positions else window + 1 for window in self._windows
        ]
        self._held.truncate(0)
        return self._forward(self.tokens[:, -max(self._windows) :], last_only=True)

    @torch.inference_mode()
    def take_back(self, count: int) -> None:
        """Remove the last of the tokens that `extend` has just appended, from each row."""
        self._length -= count
        self._windows = [window - count for window in self._windows]
        self._held.truncate(self._held.length - count)

    @torch.inference_mode()
    def reorder(self, rows: torch.Tensor) -> None:
        """Make row i go on from what row `rows[i]` was; rows may become more or fewer."""
        self._buffer = self._buffer[rows]
        self._cache = self._held.select(rows)
        order = rows.tolist()
        self._starts = [self._starts[row] for row in order]
        self._windows = [self._windows[row] for row in order]

    @property
    def _held(self) -> KVCache:
        assert self._cache is not None, "read comes first"
        return self._cache

    def _forward(self, tokens: torch.Tensor, *, last_only: bool) -> torch.Tensor:
        """Read the last columns of the windows, those that the cache does not hold yet.

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
            self._held.truncate(0)  # its layers may no longer agree on what they hold
            raise
        return logits[..., : self.vocab_size]

    def _shared_tokens(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many tokens at the beginning of a single prompt's window the cache holds already."""
        if len(prompts) > 1 or len(self._windows) != 1 or self._buffer.device != self.model.device:
            return 0
        held = self._held.length
        if held > self._windows[0]:  # padding that rows which are gone have left
            return 0
        read = self._buffer[0, self._length - held : self._length].tolist()
        window = prompts[0][-self._positions :]
        pairs = enumerate(zip(read, window, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(held, len(window)))
        return min(shared, len(window) - 1)  # the last token's logits are wanted


# Rows that are decoded together at most: more gain nothing, and some work grows with their square.
_MOST_ROWS = 256


def _cache_bytes(model: GPT2Model, tokens: int) -> int:
    """Bytes of keys and values that a row of so many tokens has at most."""
    config, size = model.config, next(model.parameters()).element_size()
    return 2 * size * config.n_layers * config.d_model * min(tokens, config.max_seq_len)


def rows_at_once(model: GPT2Model) -> int:
    """How many rows are decoded together: their caches take a quarter of the memory at hand."""
    room = available_memory(model.device) // 4
    return max(1, min(_MOST_ROWS, room // _cache_bytes(model, model.config.max_seq_len)))


def check_rows(model: GPT2Model, rows: int, tokens: int, key: str) -> None:
    """Raise where so many rows that must be decoded together do not fit the memory.

    Args:
        model: which decodes.
        rows: of text.
        tokens: of each row, at most.
        key: what sets the number of rows, for the message.

    Raises:
        AGI2Error: with both sizes.
    """
    needed, room = rows * _cache_bytes(model, tokens), available_memory(model.device)
    if needed > room:
        raise AGI2Error(
            f"{key} = {rows}: their keys and values take {human_bytes(needed)}, this machine has "
            f"{human_bytes(room)}: lower {key} or max_length"
        )


def check_prompt(prompt: Sequence[int], vocab_size: int, end_token: EndToken = None) -> None:
    """Raise where a prompt cannot be read, or the token that is to end the text does not exist.

    Raises:
        AGI2Error: where it is empty, or a token is not in the vocabulary.
    """
    for end in end_ids(end_token):
        if not 0 <= end < vocab_size:
            raise AGI2Error(f"end_token {end} is not in the vocabulary of {vocab_size} tokens")
    if len(prompt) == 0:
        raise AGI2Error("the prompt has no tokens")
    if not all(0 <= token < vocab_size for token in prompt):
        raise AGI2Error(f"the prompt has a token above the vocabulary of {vocab_size}")
