"""Rows of tokens that grow, one forward pass of the model for each new token.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .errors import AGI2Error
from .model import GPT2Model


class Decoder:
    """Rows of text that grow by one token at a time, each step costing one token's work.

    Past the model's positions the window slides: the older half is forgotten and the rest is
    read again, so that the cost of sliding, spread over the tokens, stays small.

    Args:
        model: in evaluation mode.
        prompt: token ids; only the last `max_seq_len` of them are seen.
        vocab_size: V, the tokens to choose from: those the tokenizer has, where the model has more.
    """

    def __init__(self, model: GPT2Model, prompt: Sequence[int], vocab_size: int) -> None:
        self.model = model
        self._vocab_size = vocab_size
        self.tokens = torch.tensor([list(prompt)], device=model.device)
        self._positions = model.config.max_seq_len
        self._cache = model.new_cache(1)

    @torch.inference_mode()
    def prefill(self) -> torch.Tensor:
        """Read the prompt: logits (1, V) of the next token."""
        return self._read(self.tokens[:, -self._positions :])

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, (B,): logits (B, V) of the next."""
        self.tokens = torch.cat([self.tokens, tokens.unsqueeze(1)], dim=1)
        if self._cache.length < self._positions:
            return self._read(tokens.unsqueeze(1))
        self._cache.truncate(0)
        return self._read(self.tokens[:, -max(1, self._positions // 2) :])

    @torch.inference_mode()
    def reorder(self, rows: torch.Tensor) -> None:
        """Make row i go on from what row `rows[i]` was."""
        self.tokens = self.tokens[rows]
        self._cache = self._cache.select(rows)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, cache=self._cache, last_only=True)[:, -1, : self._vocab_size]


def check_options(
    vocab_size: int,
    prompt: Sequence[int],
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> None:
    """Raise where a prompt or an option cannot be used.

    Raises:
        AGI2Error: which names it and its bounds.
    """
    checks = [
        (max_length >= 1, f"max_length must be at least 1, not {max_length}"),
        (0 <= temperature < math.inf, f"temperature must be a number from 0 on, not {temperature}"),
        (top_k is None or top_k >= 1, f"top_k must be at least 1, not {top_k}"),
        (top_p is None or 0 < top_p <= 1, f"top_p must be above 0 and at most 1, not {top_p}"),
        (
            0 < repetition_penalty < math.inf,
            f"repetition_penalty must be above 0, not {repetition_penalty}",
        ),
        (len(prompt) > 0, "the prompt has no tokens"),
        (
            all(0 <= token < vocab_size for token in prompt),
            f"the prompt has a token above the vocabulary of {vocab_size}",
        ),
    ]
    for is_right, message in checks:
        if not is_right:
            raise AGI2Error(message)
