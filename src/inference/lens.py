"""How a model comes to its prediction: the logit lens, and the attention of each head.

Both are of the token after the last of a window, and work on prepared models, too: quantized layers
are modules in place of the originals, so that no second copy of the weights is needed.

H heads, L layers, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from ..arguments import NonNegativeInt, PositiveInt, checked
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.dropout import evaluating
from ..transformer import TransformerBlock
from .model_runner import check_prompt


@dataclass(frozen=True)
class LayerPrediction:
    """The next-token distribution that the residual stream has after a layer."""

    layer: int
    """0 for the embeddings, then 1 to L."""
    best: list[tuple[int, float]]
    """The most probable token ids with their probabilities, in descending order."""
    probability: float | None
    """The probability of the target, if there is one."""
    rank: int | None
    """The number of tokens at least as probable as the target, if there is one: 1 for the best."""


@checked
def logit_lens(
    model: GPT2Model,
    tokens: Sequence[int],
    top: PositiveInt = 5,
    target: NonNegativeInt | None = None,
    vocab_size: PositiveInt | None = None,
) -> list[LayerPrediction]:
    """Predict the token after `tokens` from each layer: the logit lens (nostalgebraist, 2020).

    The final layer norm and the head are applied to the residual stream after the embeddings and
    after each layer. The last prediction is the model's own. A post-norm model has no final layer
    norm: its blocks end in one.

    Args:
        model: evaluated without dropout; may be prepared for generation.
        tokens: ids, at most as many as the model has positions.
        top: number of tokens of each prediction.
        target: a token whose probability to return.
        vocab_size: V, if the tokenizer has fewer tokens than the model.

    Returns:
        L + 1 predictions.

    Raises:
        AGI2Error: if there are no tokens or too many, or one is not in the vocabulary.
    """
    size = vocab_size or model.config.vocab_size
    streams: list[torch.Tensor] = []
    if target is not None:
        check_prompt([target], size)
    last = _run(model, tokens, size, lambda block, x: streams.append(x[:, -1:]))
    with evaluating():
        normed = [model.final_norm(stream) for stream in streams] + [last]
        # One product for each layer: that of the last has the shape of the model's own.
        logits = [model.logits(stream)[0, -1, :size] for stream in normed]
        return [_prediction(*each, top, target) for each in enumerate(logits)]


def _prediction(layer: int, logits: torch.Tensor, top: int, target: int | None) -> LayerPrediction:
    probabilities = logits.float().softmax(dim=-1)
    best = probabilities.topk(min(top, probabilities.numel()))
    probability = rank = None
    if target is not None:
        probability = float(probabilities[target])
        rank = int((probabilities >= probabilities[target]).sum())
    pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return LayerPrediction(layer, pairs, probability, rank)


@checked
def last_attention(
    model: GPT2Model, tokens: Sequence[int], vocab_size: PositiveInt | None = None
) -> torch.Tensor:
    """Return the attention weights (L, H, T) of the last token, from which the next is predicted.

    Args:
        model: evaluated without dropout; may be prepared for generation.
        tokens: T ids, at most as many as the model has positions.
        vocab_size: V, if the tokenizer has fewer tokens than the model.

    Raises:
        AGI2Error: if there are no tokens or too many, or one is not in the vocabulary.
    """
    rows: list[torch.Tensor] = []
    size = vocab_size or model.config.vocab_size
    _run(model, tokens, size, lambda block, x: rows.append(block.last_attention(x)[0]))
    return torch.stack(rows)


def _run(
    model: GPT2Model,
    tokens: Sequence[int],
    vocab_size: int,
    record: Callable[[TransformerBlock, torch.Tensor], None],
) -> torch.Tensor:
    """Compute the last token's final hidden state (1, 1, C).

    Args:
        model, tokens: as in `logit_lens`.
        vocab_size: V.
        record: called with each block and its input (1, T, C).
    """
    check_prompt(tokens, vocab_size)
    if len(tokens) > model.config.max_seq_len:
        raise AGI2Error(
            f"{len(tokens)} tokens do not fit into the model's {model.config.max_seq_len} positions"
        )

    def recorded(block: TransformerBlock) -> Callable[..., torch.Tensor]:
        def run(x: torch.Tensor, mask: torch.Tensor | None, **options: bool) -> torch.Tensor:
            record(block, x)
            return cast(torch.Tensor, block(x, mask, **options))

        return run

    blocks = [recorded(cast(TransformerBlock, block)) for block in model.blocks]
    with evaluating():
        ids = torch.tensor([list(tokens)], device=model.device)
        return model.hidden_states(ids, blocks=blocks)[:, -1:]
