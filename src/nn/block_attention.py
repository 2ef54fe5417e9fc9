"""Causal attention by blocks of queries, of which none is multiplied with keys it may not see.

B batch, H heads, T tokens, D head size, N = B x H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .dropout import cpu_scale, dropout

# Queries of a block; and tokens up to which its weights, which the backward pass needs, are small
# next to the other activations.
_BLOCK_TOKENS, _MAX_BLOCK_TOKENS = 128, 1024


def is_fast_in_blocks(q: torch.Tensor, k: torch.Tensor, rate: float) -> bool:
    """Return whether `attention_in_blocks` is faster than PyTorch's attention.

    PyTorch's on a CPU multiplies bf16 as fp32. That of long sequences needs less memory.

    Args:
        q: the queries, (B, H, T, D).
        k: the keys, (B, H, S, D).
        rate: of dropout on the weights.
    """
    is_bfloat16 = q.dtype == k.dtype == torch.bfloat16  # a KV cache may have another dtype
    if not is_bfloat16 or q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return q.size(2) == k.size(2) and (rate > 0.0 or q.size(2) <= _MAX_BLOCK_TOKENS)


def attention_in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rate: float = 0.0
) -> torch.Tensor:
    """Return causal attention (B, H, T, D) of Q, K and V, each (B, H, T, D), on a CPU, by blocks.

    A block is multiplied with the keys up to its last query only. The softmax is in the dtype of
    the arguments (fp32 inside), also under autocast.

    Args:
        q: the queries; also the keys and the values.
        rate: of dropout on the weights.
    """
    with torch.autocast(q.device.type, enabled=False):
        out: torch.Tensor = _BlockAttention.apply(
            *(each.reshape(-1, *each.shape[2:]) for each in (q, k, v)), rate
        )
    return out.view_as(q)


def _blocks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, _BLOCK_TOKENS):
        yield slice(start, min(start + _BLOCK_TOKENS, tokens))


class _BlockAttention(torch.autograd.Function):
    """Softmax(Q K^T / sqrt(D)) V of (N, T, D), causal.

    The gradients of all blocks are added where they belong. By PyTorch's own derivative of a slice,
    each would be padded with zeros to all tokens.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rate: float
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        saved = []
        for rows in _blocks(q.size(1)):
            scores = (q[:, rows] / math.sqrt(q.size(2))) @ k[:, : rows.stop].mT
            later = torch.ones(scores.size(1), scores.size(1), dtype=torch.bool, device=q.device)
            scores[:, :, rows].masked_fill_(later.triu(1), -torch.inf)
            weights = scores.softmax(-1)
            kept = dropout(weights, rate)
            torch.bmm(kept, v[:, : rows.stop], out=out[:, rows])
            saved += [weights, kept] if rate else [weights]
        ctx.save_for_backward(q, k, v, *saved)
        ctx.rate = rate
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        q, k, v, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = 1 / math.sqrt(q.size(2))
        each = iter(saved)
        for rows in _blocks(q.size(1)):
            weights = next(each)
            kept = next(each) if ctx.rate else weights
            seen = slice(rows.stop)
            of_v[:, seen].baddbmm_(kept.mT, grad[:, rows])
            of_weights = grad[:, rows] @ v[:, seen].mT
            if ctx.rate:  # a weight of 0 has no gradient anyway
                of_weights.mul_(kept.ne(0)).mul_(cpu_scale(ctx.rate))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[:, rows] = of_scores @ k[:, seen] * scale
            of_k[:, seen].baddbmm_(of_scores.mT, q[:, rows], alpha=scale)
        return of_q, of_k, of_v, None
