"""Token and position embeddings. B batch, T time, C channels (`d_model`), V vocabulary."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .arguments import PositiveInt, Rate, as_tensor, checked, convert
from .errors import AGI2Error
from .nn.dropout import Dropout

INIT_STD = 0.02


def init_normal(weight: torch.Tensor, std: float = INIT_STD) -> None:
    """Initialize a weight in place from a normal distribution of mean 0.

    Tensors on the meta device are skipped: PyTorch would import its compiler for them, which takes
    seconds.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, mean=0.0, std=std)


class TokenEmbeddings(nn.Module):
    """Token embeddings (V, C), initialized from a normal distribution (mean 0, std 0.02).

    Args:
        vocab_size: number of tokens.
        d_model: width of an embedding.
        dropout: rate on the embeddings, in training.

    Raises:
        AGI2Error: if a size is below 1, or the rate is not in [0, 1).
    """

    @checked
    def __init__(self, vocab_size: PositiveInt, d_model: PositiveInt, dropout: Rate = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model, dtype=torch.float32))
        self.dropout = Dropout(dropout)
        init_normal(self.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up token ids (B, T), or any other shape: embeddings (B, T, C).

        Raises:
            AGI2Error: if they are not integers, or (checked on a CPU only) not in the vocabulary.
        """
        tokens = as_token_ids("tokens", tokens, self.weight.device)
        return self.dropout(embed(tokens, self.weight))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"vocab_size={self.weight.size(0)}, d_model={self.weight.size(1)}"


def as_token_ids(name: str, tokens: Any, device: torch.device | None = None) -> torch.Tensor:
    """Convert token ids to an int64 or int32 tensor.

    Args:
        name: of the argument, for messages.
        tokens: a tensor, or an array or nested lists of integers.
        device: the target device; by default unchanged.

    Raises:
        AGI2Error: if they are not integers.
    """
    if not isinstance(tokens, torch.Tensor):
        tokens = as_tensor(name, tokens)
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise AGI2Error(f"{name} must be integers, the ids of tokens, not {tokens.dtype}")
    if tokens.dtype not in (torch.int64, torch.int32):
        tokens = tokens.long()
    if device is not None and tokens.device != device:
        tokens = tokens.to(device)
    return tokens


def embed(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Look up rows of a matrix (V, C) by token ids (...): (..., C).

    Raises:
        AGI2Error: if an id is out of range, on a CPU. On a GPU it is an asynchronous CUDA error.
    """
    if torch.compiler.is_compiling():
        return nn.functional.embedding(tokens, weight)
    try:
        return nn.functional.embedding(tokens, weight)
    except IndexError as error:
        raise AGI2Error(
            f"a token id is not in the vocabulary of {weight.size(0)} tokens: the ids reach from "
            f"{int(tokens.min())} to {int(tokens.max())}"
        ) from error


class _Positions(nn.Module):
    """Base class of position embeddings: a table `weight` of shape (max_seq_len, d_model)."""

    weight: torch.Tensor

    def forward(self, seq_len: int, offset: int = 0) -> torch.Tensor:
        """Return the embeddings (seq_len, d_model) of positions `offset` to `offset + seq_len - 1`.

        Raises:
            AGI2Error: if they exceed `max_seq_len`.
        """
        # torch.export passes SymInt, which must not be converted; torch.compile plain integers.
        if type(seq_len) is not int and not isinstance(seq_len, torch.SymInt):
            seq_len = convert(int, "seq_len", seq_len)
        if type(offset) is not int and not isinstance(offset, torch.SymInt):
            offset = convert(int, "offset", offset)
        if seq_len < 0 or offset < 0:
            raise AGI2Error(f"seq_len {seq_len} and offset {offset} must be at least 0")
        if offset + seq_len > self.weight.size(0):
            raise AGI2Error(
                f"{offset + seq_len} positions requested, the model has {self.weight.size(0)}"
            )
        return self.weight[offset : offset + seq_len]

    def lookup(self, positions: torch.Tensor) -> torch.Tensor:
        """Look up positions (...): embeddings (..., d_model)."""
        return nn.functional.embedding(positions, self.weight)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"max_seq_len={self.weight.size(0)}, d_model={self.weight.size(1)}"


class PositionEmbeddings(_Positions):
    """Sinusoidal position embeddings (Vaswani et al., 2017, section 3.5).

    Sine in the even columns, cosine in the odd ones; column pair i has the wavelength
    2 pi 10000^(2i / d_model).
    """

    @checked
    def __init__(self, max_seq_len: PositiveInt, d_model: PositiveInt) -> None:
        super().__init__()
        # On the CPU whatever the default device: a model built on meta needs a real table, too.
        position = torch.arange(max_seq_len, dtype=torch.float64, device="cpu").unsqueeze(1)
        even = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu")
        angle = position * torch.exp(even * (-math.log(10000.0) / d_model))
        table = torch.empty(max_seq_len, d_model, dtype=torch.float32, device="cpu")
        table[:, 0::2] = angle.sin()
        table[:, 1::2] = angle.cos()[:, : d_model // 2]
        if (default_device := torch.get_default_device()).type != "meta":
            table = table.to(default_device)
        self.register_buffer("weight", table, persistent=False)


class LearnedPositionEmbeddings(_Positions):
    """Learned position embeddings, as in GPT-2, initialized like `TokenEmbeddings`."""

    @checked
    def __init__(self, max_seq_len: PositiveInt, d_model: PositiveInt) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_seq_len, d_model, dtype=torch.float32))
        init_normal(self.weight)
