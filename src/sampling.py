"""From logits to a token, in small pure functions. B batch, V vocabulary, T time."""

from __future__ import annotations

import torch

NEVER = float("-inf")
COLDEST = 1e-5
"""Temperatures below this are greedy: they would overflow the logits."""


def apply_repetition_penalty(
    logits: torch.Tensor, seen: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Make tokens that are already there less likely (Keskar et al., 2019, section 4.1).

    Args:
        logits: (B, V).
        seen: token ids of each row so far, (B, T).
        penalty: positive logits are divided by it, negative ones multiplied; 1 changes nothing.
    """
    if penalty == 1.0:
        return logits
    score = logits.gather(1, seen)
    score = torch.where(score > 0, score / penalty, score * penalty)
    return logits.scatter(1, seen, score)


def apply_top_k(logits: torch.Tensor, k: int | None) -> torch.Tensor:
    """Keep the k likeliest tokens of each row (Fan et al., 2018); ties with the k-th stay."""
    if k is None or k >= logits.size(-1):
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, NEVER)


def apply_top_p(logits: torch.Tensor, p: float | None) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose share reaches p (Holtzman et al., 2020)."""
    if p is None or p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    shares = ordered.softmax(dim=-1)
    # A token goes when those before it already reach p: the likeliest always stays.
    ordered = ordered.masked_fill(shares.cumsum(dim=-1) - shares >= p, NEVER)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def sample(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw a token for each row: logits (B, V) to ids (B,). Temperature 0 takes the likeliest."""
    if temperature < COLDEST:
        return logits.argmax(dim=-1)
    logits = apply_top_p(apply_top_k(logits.float() / temperature, top_k), top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)
