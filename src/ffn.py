"""The position-wise feed-forward network. B batch, T time, C channels (`d_model`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .arguments import PositiveInt, Rate, check_vectors, checked
from .errors import AGI2Error
from .nn.dropout import Dropout
from .nn.linear import Linear
from .nn.recompute import recomputed
from .nn.training_kernels import Gelu, has_kernels


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return Gelu.apply(x) if has_kernels(x) else F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """Position-wise feed-forward network: two linear layers, an activation between, and dropout.

    Args:
        d_model: width of input and output.
        d_ff: width of the hidden layer.
        dropout: rate after the activation and after the second linear layer, in training.
        activation: `gelu_tanh` (the tanh approximation of GELU, as in GPT-2; Hendrycks and Gimpel,
            2016), `gelu` (exact), `relu` or `silu`.
        bias: whether the linear layers have biases.

    Raises:
        AGI2Error: if the activation is unknown, a size is below 1, or the rate is not in [0, 1).
    """

    @checked
    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        dropout: Rate = 0.1,
        *,
        activation: str = "gelu_tanh",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise AGI2Error(f"activation must be one of {known}, not {activation!r}")
        self.d_model, self.d_ff, self.activation_name = d_model, d_ff, activation
        self.activation = ACTIVATIONS[activation]
        self.expand = Linear(d_model, d_ff, bias=bias)
        self.contract = Linear(d_ff, d_model, bias=bias)
        self.dropout = Dropout(dropout)
        self.recomputes = True
        """Whether the activation is recomputed for its gradient; not within a checkpoint, which
        recomputes all of it and would not free what this keeps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the network to (B, T, C), or any (..., C); the shape is kept."""
        check_vectors("x", x, self.d_model)
        hidden = self.expand(x)
        activated = self.activation(hidden)
        dropped = self.dropout(activated)
        can_recompute = self.recomputes and hidden.requires_grad and has_kernels(hidden)
        if dropped is not activated or not can_recompute:
            return self.dropout(self.contract(dropped))
        # Without dropout: the activation takes a hundredth of the time, and its output the most
        # memory of all.
        kept = hidden.detach()
        with recomputed(activated, lambda: self.activation(kept)):
            return self.contract(activated)

    def extra_repr(self) -> str:
        """Return the sizes and the activation."""
        return f"d_model={self.d_model}, d_ff={self.d_ff}, activation={self.activation_name}"
