"""Transformer block: attention and feed-forward network, each with a residual connection."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from .arguments import PositiveInt, Rate, check_vectors, checked
from .attention import MultiHeadAttention
from .errors import AGI2Error
from .ffn import FeedForward
from .nn.dropout import drop_rows, is_training
from .nn.kv_cache import LayerCache


class TransformerBlock(nn.Module):
    """Causal self-attention and a feed-forward network, with residual connections and layer norms.

    Args:
        d_model: width of the model (C).
        n_heads: attention heads.
        d_ff: width of the feed-forward network's hidden layer.
        dropout: rate in training.
        activation: of the feed-forward network; see `FeedForward`.
        bias: whether linear layers and layer norms have biases.
        norm_position: `pre`, x + f(norm(x)), as in GPT-2; `post`, norm(x + f(x)), as in the
            original transformer (Vaswani et al., 2017).

    Raises:
        AGI2Error: if `norm_position` is neither, a size is below 1, `n_heads` does not divide
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
        self.skip_rate = 0.0
        """Probability in training that a sequence skips a sublayer (stochastic depth)."""
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
        """Apply the block: (B, T, C) to (B, T, C).

        Args:
            x: the residual stream.
            mask: as in `MultiHeadAttention.forward`; combined with the causal mask.
            causal: whether a token attends only to tokens up to its own position.
            cache: keys and values of earlier tokens, to which the new ones are appended.

        Raises:
            AGI2Error: if a shape or a type is wrong.
        """
        check_vectors("x", x, self.attention.d_model, dims=3)
        if self.pre_norm:
            x = _add(x, self._skip(self._attend(self.attention_norm(x), mask, causal, cache)))
            return _add(x, self._skip(self.ffn(self.ffn_norm(x))))
        x = self.attention_norm(_add(x, self._skip(self._attend(x, mask, causal, cache))))
        return self.ffn_norm(_add(x, self._skip(self.ffn(x))))

    def _skip(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop a sublayer's output, (B, T, C), of some sequences in training."""
        if self.skip_rate and is_training(self):
            return drop_rows(branch, self.skip_rate)
        return branch

    def last_attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention weights (B, H, T) of the last token, for the input (B, T, C)."""
        return self.attention.last_weights(self.attention_norm(x) if self.pre_norm else x)

    @property
    def norms(self) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """The layer norms of attention and of the feed-forward network."""
        return self.attention_norm, self.ffn_norm

    def _attend(
        self, x: torch.Tensor, mask: torch.Tensor | None, causal: bool, cache: LayerCache | None
    ) -> torch.Tensor:
        out = self.attention(x, mask=mask, causal=causal, cache=cache)
        return cast(torch.Tensor, out)

    def extra_repr(self) -> str:
        """Return the position of the layer norms."""
        return f"norm_position={'pre' if self.pre_norm else 'post'}"


def _add(x: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return `x + update`, in the dtype of the residual stream `x`.

    Cast before: PyTorch's addition of different dtypes takes 15 times as long on a CPU.
    """
    return x + update.to(x.dtype)
