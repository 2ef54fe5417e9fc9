"""Log-probabilities of tokens, as OpenAI's API has them: the model's, before logits processors.

T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class TokenProbability(NamedTuple):
    """The model's probability of a token, before logits processors."""

    probability: float
    best: list[tuple[int, float]]
    """The most probable token ids with their probabilities, in descending order."""


class TokenLogprobs(NamedTuple):
    """The model's log-probability of a token in nats, before logits processors."""

    logprob: float
    best: list[tuple[int, float]]
    """The most probable token ids with their log-probabilities, in descending order."""
    named: list[float]
    """The log-probabilities of the tokens that the request names, in its order."""

    @property
    def probabilities(self) -> TokenProbability:
        """The same as probabilities."""
        best = [(token, math.exp(logprob)) for token, logprob in self.best]
        return TokenProbability(math.exp(self.logprob), best)


def token_logprobs(
    logits: torch.Tensor, tokens: Sequence[int], top: int, named: Sequence[int]
) -> list[TokenLogprobs]:
    """Return the log-probabilities of T tokens, one for each row of logits (T, V).

    Args:
        logits: the model's, in any floating type.
        tokens: token ids.
        top: number of most probable tokens; at most V are returned.
        named: ids of more tokens, below V.
    """
    top = min(top, logits.size(-1))
    logprobs = logits.float().log_softmax(dim=-1)
    ids = torch.tensor([[token, *named] for token in tokens], device=logprobs.device)
    best = logprobs.topk(top, dim=-1)
    columns = (best.indices.tolist(), best.values.tolist(), logprobs.gather(1, ids).tolist())
    return [
        TokenLogprobs(own, list(zip(indices, values, strict=True)), others)
        for indices, values, (own, *others) in zip(*columns, strict=True)
    ]
