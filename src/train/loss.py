"""Chunked cross-entropy for next-token prediction, which never materializes all logits at once.

N tokens (B * T), B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cuda_utils import LOGITS_CHUNK_TOKENS
from ..model import GPT2Model

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes inputs and targets, (B, T) each; returns the mean loss."""


class NextTokenLoss(nn.Module):
    """A model and its loss as one module, which is wrapped in DDP or FSDP and compiled.

    Logits are materialized for at most `LOGITS_CHUNK_TOKENS` tokens at a time.

    Args:
        model: the model.
    """

    def __init__(self, model: GPT2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy, in nats per token, of inputs and targets (B, T)."""
        hidden = self.model.hidden_states(inputs).flatten(0, 1)
        weight, targets = self.model.output_weight, targets.flatten()
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype == torch.float16:
            # Its gradients underflow unless the scaler scales them while they are in fp32.
            return F.cross_entropy(F.linear(hidden, weight).float(), targets)
        loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)
        return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """cross_entropy(hidden @ weight.T, targets), with the gradients computed in `forward`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        """Return the mean loss of hidden (N, C), weight (V, C) of the LM head and targets (N,).

        Matrix products are in `dtype`, or, if `None`, in that of the arguments.
        """
        vocabulary = len(weight)
        matrix = weight.detach()
        if dtype is not None:
            # Pad V to a multiple of 64 for tensor cores; the cast copies the weight anyway.
            matrix = F.pad(matrix.to(dtype), (0, 0, 0, -vocabulary % 64))
            hidden = hidden.to(dtype)
        loss = weight.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        # Not needed if the LM head is frozen, as with LoRA.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        rows = weight.new_empty(min(len(hidden), LOGITS_CHUNK_TOKENS), _row_length(vocabulary))
        for x, y, grad in zip(
            hidden.split(LOGITS_CHUNK_TOKENS),
            targets.split(LOGITS_CHUNK_TOKENS),
            grad_hidden.split(LOGITS_CHUNK_TOKENS),
            strict=True,
        ):
            rows = rows[: len(y)]
            scores = rows[:, :vocabulary]
            if dtype is None:
                torch.mm(x, matrix.T, out=scores)
            else:
                logits = x @ matrix.T
                scores.copy_(logits[:, :vocabulary])
            # In place, and on contiguous rows, padding included: 4 times as fast on a CPU.
            rows[:, vocabulary:] = -torch.inf
            torch.log_softmax(rows, -1, out=rows)
            at = (torch.arange(len(y), device=y.device), y)
            loss -= scores[at].sum()
            # d loss / d logits = softmax(logits) - one_hot(targets).
            rows.exp_()
            scores[at] -= 1.0
            if dtype is None:
                if grad_weight is not None:
                    grad_weight.addmm_(scores.T, x)
            else:
                logits[:, :vocabulary].copy_(scores)
                scores = logits
                scores[:, vocabulary:] = 0.0
                if grad_weight is not None:
                    grad_weight += (scores.T @ x)[:vocabulary]
            grad.copy_(scores @ matrix)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss / len(targets)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        """Return the gradients of `hidden` and `weight`, scaled in place by `grad` / N."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad / len(grad_hidden)
        if grad_weight is not None:
            grad_weight.mul_(scale)
        return grad_hidden.mul_(scale), grad_weight, None, None


def _row_length(vocabulary: int) -> int:
    """Return the padded length of a row of fp32 logits: an odd number of 64-byte cache lines.

    Unaligned rows, and rows that map to the same cache sets (a stride of a power of two), make a
    matrix product up to 50% slower.
    """
    return 16 * (-(-vocabulary // 16) | 1)
