"""The loss of next-token prediction, without the logits of all tokens in memory at once.

N tokens, B sequences, T tokens of each, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cuda_utils import LOGITS_AT_ONCE
from ..model import GPT2Model

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From inputs and targets, (B, T) each, to the mean loss."""


class NextTokenLoss(nn.Module):
    """A model and its loss as one module: what is compiled, and what processes share.

    The logits never exist for more than `LOGITS_AT_ONCE` tokens at once.

    Args:
        model: a GPT-2.
    """

    def __init__(self, model: GPT2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Inputs and targets (B, T) to the mean cross-entropy in nats."""
        hidden = self.model.hidden_states(inputs).flatten(0, 1)
        weight, targets = self.model.output_weight, targets.flatten()
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype == torch.float16:
            # Its gradients vanish unless they are scaled before they leave fp32.
            return F.cross_entropy(F.linear(hidden, weight).float(), targets)
        loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)
        return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """cross_entropy(hidden @ weight.T, targets), whose gradients are made along with the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        """Hidden (N, C), weight (V, C) and targets (N,) to the mean loss; products in `dtype`."""
        vocabulary = len(weight)
        matrix = weight.detach()
        if dtype is not None:
            # Tensor cores want sizes that are multiples of 64; the copy is made anyway.
            matrix = F.pad(matrix.to(dtype), (0, 0, 0, -vocabulary % 64))
            hidden = hidden.to(dtype)
        loss = weight.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        # Of a head that is not trained, as with LoRA, nobody asks for it.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        rows = weight.new_empty(min(len(hidden), LOGITS_AT_ONCE), _row_length(vocabulary))
        for x, y, grad in zip(
            hidden.split(LOGITS_AT_ONCE),
            targets.split(LOGITS_AT_ONCE),
            grad_hidden.split(LOGITS_AT_ONCE),
            strict=True,
        ):
            rows = rows[: len(y)]
            scores = rows[:, :vocabulary]
            if dtype is None:
                torch.mm(x, matrix.T, out=scores)
            else:
                logits = x @ matrix.T
                scores.copy_(logits[:, :vocabulary])
            # In place, and over whole rows: on a CPU that takes a quarter of the time.
            rows[:, vocabulary:] = -torch.inf
            torch.log_softmax(rows, -1, out=rows)
            at = (torch.arange(len(y), device=y.device), y)
            loss -= scores[at].sum()
            # d loss / d logits = probability - 1 at the target.
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
        """Both gradients, scaled in place: nobody else holds them."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad / len(grad_hidden)
        if grad_weight is not None:
            grad_weight.mul_(scale)
        return grad_hidden.mul_(scale), grad_weight, None, None


def _row_length(vocabulary: int) -> int:
    """Room for a row of logits: an odd number of cache lines.

    A product whose rows begin anywhere, or all at the same places of the cache, takes up to half
    as long again.
    """
    return 16 * (-(-vocabulary // 16) | 1)
