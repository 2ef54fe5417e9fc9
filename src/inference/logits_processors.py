"""Logits processors, as pure functions. B batch, V vocabulary, T time.

The order is that of `transformers`: bias, penalties and n-gram bans first, also in greedy decoding;
then temperature, top-k, top-p, min-p and typical-p; then the sampler (`sampling.sample`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from ..config_keys import GenerationConfig
from ..cuda_utils import to_device
from .sampling import MASKED, EndToken, end_ids


def process_logits(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    options: GenerationConfig,
    prompt_length: int,
    end_token: EndToken = None,
) -> torch.Tensor:
    """Apply all logits processors to logits (B, V); masked tokens get -inf.

    Args:
        logits: not modified, but returned themselves if no option changes them.
        tokens: prompt and new tokens, (B, T).
        options: with `logit_bias` by token id.
        prompt_length: number of prompt tokens among the T.
        end_token: one or several, masked while there are fewer than `min_length` new tokens.
    """
    if options.logit_bias:
        logits = apply_logit_bias(logits, options.logit_bias)
    logits = apply_repetition_penalty(logits, tokens, options.repetition_penalty)
    if options.presence_penalty or options.frequency_penalty:
        generated = tokens[:, prompt_length:]
        logits = apply_count_penalties(
            logits, generated, options.presence_penalty, options.frequency_penalty
        )
    logits = apply_no_repeat_ngram(logits, tokens, options.no_repeat_ngram)
    ends = end_ids(end_token)
    if ends and tokens.size(1) - prompt_length < options.min_length:
        logits = logits.index_fill(1, _ids_on(ends, logits.device), MASKED)
    if options.is_greedy:
        return logits
    logits = logits.float() / options.temperature
    logits = apply_top_p(apply_top_k(logits, options.top_k), options.top_p)
    return apply_typical_p(apply_min_p(logits, options.min_p), options.typical_p)


@lru_cache(maxsize=64)  # each step needs the same, and a GPU takes its time for a copy
@torch.inference_mode(False)
def _ids_on(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return token ids (N,) on a device; not to be changed."""
    return torch.tensor(ids, device=device)


def apply_logit_bias(logits: torch.Tensor, bias: Mapping[Any, float]) -> torch.Tensor:
    """Add a bias to the logits (B, V) of some tokens, by id."""
    ids = _ids_on(tuple(bias), logits.device)
    values = to_device(list(bias.values()), logits.device, logits.dtype)
    return logits.index_add(1, ids, values.expand(logits.size(0), -1))


def apply_repetition_penalty(
    logits: torch.Tensor, seen: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Penalize tokens that have occurred (CTRL; Keskar et al., 2019, section 4.1).

    Args:
        logits: (B, V).
        seen: token ids of each row so far, (B, T).
        penalty: divides positive logits, multiplies negative ones; 1 changes nothing.
    """
    if penalty == 1.0:
        return logits
    score = logits.gather(1, seen)
    score = torch.where(score > 0, score / penalty, score * penalty)
    return logits.scatter(1, seen, score)


def apply_count_penalties(
    logits: torch.Tensor, generated: torch.Tensor, presence: float, frequency: float
) -> torch.Tensor:
    """Subtract the presence and frequency penalties from the logits of generated tokens.

    As in OpenAI's API: `logit - frequency * count - presence * (count > 0)`.

    Args:
        logits: (B, V).
        generated: generated token ids of each row, (B, N).
        presence: once per generated token; below 0 encourages repetition.
        frequency: once per occurrence; below 0 encourages repetition.
    """
    ones = torch.ones_like(generated, dtype=torch.float)
    counts = torch.zeros_like(logits, dtype=torch.float).scatter_add_(1, generated, ones)
    return logits - frequency * counts - presence * (counts > 0)


def apply_no_repeat_ngram(
    logits: torch.Tensor, tokens: torch.Tensor, size: int | None
) -> torch.Tensor:
    """Mask tokens that would complete an n-gram a second time (Paulus et al., 2018).

    Args:
        logits: (B, V).
        tokens: token ids of each row so far, (B, T).
        size: n; None masks nothing.
    """
    if size is None or tokens.size(1) < size:
        return logits
    ngrams = tokens.unfold(1, size, 1)
    prefix = tokens[:, tokens.size(1) - (size - 1) :]
    rows, positions = (ngrams[..., :-1] == prefix.unsqueeze(1)).all(dim=-1).nonzero(as_tuple=True)
    banned = torch.zeros_like(logits, dtype=torch.bool)
    banned[rows, ngrams[rows, positions, -1]] = True
    return logits.masked_fill(banned, MASKED)


def apply_top_k(logits: torch.Tensor, k: int | None) -> torch.Tensor:
    """Keep the k most probable tokens of each row (Fan et al., 2018), and ties with the k-th."""
    if k is None or k >= logits.size(-1):
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, MASKED)


def apply_top_p(logits: torch.Tensor, p: float | None) -> torch.Tensor:
    """Keep the fewest most probable tokens that reach p (nucleus; Holtzman et al., 2020)."""
    if p is None or p >= 1.0:
        return logits
    return _keep_share(logits, logits, p)


def apply_min_p(logits: torch.Tensor, p: float | None) -> torch.Tensor:
    """Keep tokens at least p times as probable as the most probable (Nguyen et al., 2024)."""
    if p is None:
        return logits
    threshold = logits.amax(dim=-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < threshold, MASKED)


def apply_typical_p(logits: torch.Tensor, p: float | None) -> torch.Tensor:
    """Keep the smallest set, of probability p or more, of tokens whose surprisal is nearest to the
    entropy (locally typical sampling; Meister et al., 2023)."""
    if p is None or p >= 1.0:
        return logits
    surprise = -logits.log_softmax(dim=-1)
    terms = (logits.softmax(dim=-1) * surprise).nan_to_num(0.0)  # 0 * inf is NaN
    # Not `sum`, whose order of additions depends on the number of rows.
    entropy = terms.cumsum(dim=-1)[..., -1:]
    return _keep_share(logits, -(surprise - entropy).abs(), p)


# This many tokens nearly always reach p, and sorting the vocabulary takes many times as long.
_FEW = 512


def _keep_share(logits: torch.Tensor, rank: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of highest-ranked tokens, rank (B, V), of probability p or more."""
    probabilities = logits.softmax(dim=-1)
    if logits.size(-1) > _FEW:
        best, order = rank.topk(_FEW, dim=-1)
        kept = _before(probabilities.gather(-1, order)).lt(p).sum(dim=-1, keepdim=True).clamp(min=1)
        excluded = rank < best.gather(-1, kept - 1)
        # Otherwise sort: more tokens are needed, or the last one kept ties with others.
        if (kept < _FEW).all() and torch.equal((~excluded).sum(dim=-1, keepdim=True), kept):
            return logits.masked_fill(excluded, MASKED)
    order = rank.argsort(dim=-1, descending=True, stable=True)
    excluded = _before(probabilities.gather(-1, order)) >= p
    return logits.masked_fill(excluded.scatter(-1, order, excluded), MASKED)


def _before(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the exclusive cumulative sum: 0 for the first token, which is always kept.

    It never decreases, so that as many tokens are kept whether few of them are sorted or all.
    """
    return F.pad(probabilities.cumsum(dim=-1)[..., :-1], (1, 0))
