"""Tokens and positions as vectors. B batch, T time, C channels (`d_model`)."""

from __future__ import annotations

import math

import torch
from torch import nn

from .dropout import Dropout
from .errors import AGI2Error

INIT_STD = 0.02


def draw_normal(weight: torch.Tensor, std: float = INIT_STD) -> None:
    """Fill a weight from a normal distribution of mean 0.

    A tensor on the device `meta` has nothing to fill, and PyTorch would load its compiler, which
    takes seconds, to find that out.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, mean=0.0, std=std)


class TokenEmbeddings(nn.Module):
    """A learned vector for each token, drawn from a normal distribution (mean 0, std 0.02).

    Args:
        vocab_size: number of tokens.
        d_model: width of a vector.
        dropout: rate on the embeddings in training.
    """

    def __init__(self, vocab_size: int, d_model: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model, dtype=torch.float32))
        self.dropout = Dropout(dropout)
        draw_normal(self.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) to embeddings (B, T, C)."""
        return self.dropout(nn.functional.embedding(tokens, self.weight))


class _Positions(nn.Module):
    """What both kinds of position embedding share: a table of shape (max_seq_len, d_model)."""

    weight: torch.Tensor

    def forward(self, seq_len: int, offset: int = 0) -> torch.Tensor:
        """The embeddings (seq_len, d_model) of positions `offset` to `offset + seq_len - 1`.

        Raises:
            AGI2Error: where they reach beyond `max_seq_len`.
        """
        if offset + seq_len > self.weight.size(0):
            raise AGI2Error(
                f"{offset + seq_len} positions asked for, the model has {self.weight.size(0)}"
            )
        return self.weight[offset : offset + seq_len]

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """The embeddings (..., d_model) of given positions (...)."""
        return nn.functional.embedding(positions, self.weight)


class PositionEmbeddings(_Positions):
    """Fixed sine waves (Vaswani et al., 2017, section 3.5): sine in the even columns.

    Column pair i has the wavelength 2 pi 10000^(2i / d_model).
    """

    def __init__(self, max_seq_len: int, d_model: int) -> None:
        super().__init__()
        # On the CPU whatever the default device: a model built without memory still has its table.
        position = torch.arange(max_seq_len, dtype=torch.float64, device="cpu").unsqueeze(1)
        even = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu")
        angle = position * torch.exp(even * (-math.log(10000.0) / d_model))
        table = torch.empty(max_seq_len, d_model, dtype=torch.float32, device="cpu")
        table[:, 0::2] = angle.sin()
        table[:, 1::2] = angle.cos()[:, : d_model // 2]
        if (place := torch.get_default_device()).type != "meta":
            table = table.to(place)
        self.register_buffer("weight", table, persistent=False)


class LearnedPositionEmbeddings(_Positions):
    """A learned vector for each position, as GPT-2 has them."""

    def __init__(self, max_seq_len: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_seq_len, d_model, dtype=torch.float32))
        draw_normal(self.weight)
