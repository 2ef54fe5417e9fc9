"""Dropout (Srivastava et al., 2014), with fast random masks on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import nn

from ..arguments import Rate, checked
from .training_kernels import ScaleKept, has_kernels

_LEVELS = 2**16

# Local to a thread.
_evaluating: ContextVar[bool] = ContextVar("evaluating", default=False)


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Disable dropout and gradients in this thread, whatever mode the model is in.

    The model's mode is not changed, so that a training step, another thread, or a generator that
    is resumed in between finds it as the user set it. Must not be held across a `yield`: the
    code that runs there would be affected, too.
    """
    before = _evaluating.set(True)
    try:
        with torch.no_grad():
            yield
    finally:
        _evaluating.reset(before)


def is_training(module: nn.Module) -> bool:
    """Return whether a module is in training mode, and not within `evaluating`.

    In code compiled by `torch.compile`, gradients must be enabled, too: it recompiles when the grad
    mode changes, but cannot trace a `ContextVar` in every version of PyTorch, and would split the
    model into a graph for each dropout.
    """
    if torch.compiler.is_compiling():
        return module.training and torch.is_grad_enabled()
    return module.training and not _evaluating.get()


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Zero elements with probability `rate` and scale the others by 1 / (1 - rate).

    On a CPU the rate is rounded to 1/65,536: 16 random bits for each element, where PyTorch
    generates 64, take about a quarter of the time.
    """
    if rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = _dropped_levels(rate)
    words = -(-x.numel() // 4)
    bits = torch.empty(words, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -_LEVELS // 2
    lowest, scale = dropped - _LEVELS // 2, cpu_scale(rate)
    if has_kernels(x):
        kept: torch.Tensor = ScaleKept.apply(x, numbers, lowest, scale)
        return kept
    return x * (numbers >= lowest).to(x.dtype).mul_(scale)


def cpu_scale(rate: float) -> float:
    """Return the factor of the elements that `dropout` keeps on a CPU."""
    return _LEVELS / (_LEVELS - _dropped_levels(rate))


def _dropped_levels(rate: float) -> int:
    return min(round(rate * _LEVELS), _LEVELS - 1)


def drop_rows(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Zero each row of (B, ...) with probability `rate`, and scale the others by 1 / (1 - rate).

    Of a residual branch this is stochastic depth (Huang et al., 2016), by sequence.
    """
    kept = torch.rand(x.size(0), device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1 - rate)).view(-1, *[1] * (x.dim() - 1))


class Dropout(nn.Module):
    """Dropout in training mode; the identity in evaluation mode and within `evaluating`.

    Args:
        rate: probability of an element to be zeroed, in [0, 1).

    Raises:
        AGI2Error: if the rate is out of range.
    """

    @checked
    def __init__(self, rate: Rate) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to a tensor of any shape."""
        return dropout(x, self.rate) if is_training(self) else x

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"
