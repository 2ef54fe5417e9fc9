"""One layer of the model: attention and feed-forward, each with a residual connection."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from .arguments import PositiveInt, Rate, check_vectors, checked
from .attention import MultiHeadAttention
from .errors import AGI2Error
from .ffn import FeedForward
from .nn.kv_cache import LayerCache


class TransformerBlock(nn.Module):
    """Causal self-attention, then a feed-forward network, around a residual stream.

    Args:
        d_model: width of the model (C).
        n_heads: attention heads.
        d_ff: width of the feed-forward's hidden layer.
        dropout: rate in training.
        activation: the feed-forward's.
        bias: whether linear layers and layer norms have biases.
        norm_position: `pre`, x + f(norm(x)), as GPT-2; `post`, norm(x + f(x)), as the original.

    Raises:
        AGI2Error: where `norm_position` is neither, a size is below 1, `n_heads` does not divide
            `d_model`, or the rate is not in [0, 1).
    """

    @checked
    def __init__(
        self,
        d_model: PositiveInt,
        n_heads: PositiveInt,
        d_ff: PositiveInt,
        dropout: Rate = 0.1,
        *,
        activation: str = "gelu_tanh",
        bias: bool = True,
        norm_position: str = "pre",
    ) -> None:
        super().__init__()
        if norm_position not in ("pre", "post"):
            raise AGI2Error(f"norm_position must be pre or post, not {norm_position!r}")
        self.pre_norm = norm_position == "pre"
        self.attention_norm = nn.LayerNorm(d_model, bias=bias, dtype=torch.float32)
        self.attention = MultiHeadAttention(d_model, n_heads, dropout, bias=bias)
        self.ffn_norm = nn.LayerNorm(d_model, bias=bias, dtype=torch.float32)
        self.ffn = FeedForward(d_model, d_ff, dropout, activation=activation, bias=bias)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        causal: bool = True,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """(B, T, C) to (B, T, C).

        Args:
            x: the residual stream.
            mask: narrows what a causal token may attend to; as in `MultiHeadAttention.forward`.
            causal: whether a token attends only to those up to its own place.
            cache: keys and values of earlier tokens, to which these are added.

        Raises:
            AGI2Error: where a shape or a type is wrong.
        """
        check_vectors("x", x, self.attention.d_model, dims=3)
        if self.pre_norm:
            x = x + self._attend(self.attention_norm(x), mask, causal, cache)
            return x + self.ffn(self.ffn_norm(x))
        x = self.attention_norm(x + self._attend(x, mask, causal, cache))
        return self.ffn_norm(x + self.ffn(x))

    @property
    def norms(self) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """Attention's and the feed-forward's."""
        return self.attention_norm, self.ffn_norm

    def _attend(
        self, x: torch.Tensor, mask: torch.Tensor | None, causal: bool, cache: LayerCache | None
    ) -> torch.Tensor:
        out = self.attention(x, mask=mask, causal=causal, cache=cache)
        return cast(torch.Tensor, out)

    def extra_repr(self) -> str:
        """Where the layer norms are."""
        return f"norm_position={'pre' if self.pre_norm else 'post'}"
