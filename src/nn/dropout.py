"""Dropout (Srivastava et al., 2014), with masks that a CPU draws quickly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import nn

from ..arguments import Rate, checked

_LEVELS = 2**16

# Of this thread alone. Compiled code guards on it, as it does on a module's mode.
_evaluating: ContextVar[bool] = ContextVar("evaluating", default=False)


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Compute without dropout and gradients in this thread, whatever mode the model is in.

    The model's mode is not changed, so that a training step, another thread, or a generator that
    is resumed in between finds it as the user set it. Must not be held across a `yield`: what
    runs there would be evaluated, too.
    """
    before = _evaluating.set(True)
    try:
        with torch.no_grad():
            yield
    finally:
        _evaluating.reset(before)


def is_training(module: nn.Module) -> bool:
    """Whether a module is in training mode, and not within `evaluating`."""
    return module.training and not _evaluating.get()


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Set a share of `rate` of the elements to 0 and scale the others up: the mean stays.

    On a CPU the rate is rounded to 1/65,536. There PyTorch draws a number of 64 bits for every
    element; 16 of them are enough, which takes about a quarter of the time.
    """
    if rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    words = -(-x.numel() // 4)
    bits = torch.empty(words, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)
    kept = numbers >= dropped - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Module):
    """`dropout` in training, nothing in evaluation.

    Args:
        rate: from 0 to below 1.

    Raises:
        AGI2Error: where it is not.
    """

    @checked
    def __init__(self, rate: Rate) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of any shape to one of the same shape."""
        return dropout(x, self.rate) if is_training(self) else x

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"
