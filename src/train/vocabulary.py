"""Embeddings of tokens that are added to the vocabulary of a trained model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..model import GPT2Model
from ..tokenizer import END_OF_TURN, ROLE_TOKENS, Tokenizer


def role_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens of the roles and of the end of a turn; none without roles."""
    special = tokenizer.special_tokens
    names = (*ROLE_TOKENS.values(), END_OF_TURN)
    return [special[name] for name in names] if tokenizer.has_roles else []


@torch.no_grad()
def extend_vocabulary(model: GPT2Model, first: int, size: int) -> None:
    """Give the tokens `first` to `size` - 1 the mean of the embeddings before them, in place.

    So a new token is about as likely as an average one, and the probabilities of the others hardly
    change (Hewitt, 2021). The head's rows, too, if it is not tied.

    Args:
        model: its matrices grow if they have fewer rows than `size`.
        first: number of tokens that are known.
        size: number of tokens in all.
    """
    model.require_weights("trained")
    layers: list[nn.Module] = [model.token_embeddings]
    if model.head is not None:
        layers.append(model.head)
    for layer in layers:
        weight = layer.get_parameter("weight")
        extended = weight.new_empty(max(size, len(weight)), weight.size(1))
        extended[: len(weight)] = weight
        extended[first:size] = weight[:first].mean(0)
        layer.weight = nn.Parameter(extended, weight.requires_grad)
        if isinstance(layer, nn.Linear):
            layer.out_features = len(extended)
    model.config = replace(model.config, vocab_size=max(size, model.config.vocab_size))
