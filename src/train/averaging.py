"""An exponential moving average of the weights (EMA; Polyak and Juditsky, 1992)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from ..model import GPT2Model
from .optimizer import AVERAGE, Optimizer

T = TypeVar("T")


class WeightAverage:
    """The average of the weights over the steps of a run, kept in the state of their optimizers.

    It is saved and loaded with that state, and sharded as the weights are. A step with decay d sets
    it to d times itself plus 1 - d times the weights. The first steps have a smaller decay, so that
    it does not stay near the initial weights: at most (1 + step) / (10 + step).

    Args:
        optimizers: the optimizers of the weights.
        decay: the decay of a step, in (0, 1); `None` for no average.
    """

    def __init__(self, optimizers: Sequence[Optimizer], decay: float | None) -> None:
        self._optimizers, self._decay = optimizers, decay

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the weights that have an average, and it."""
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                if AVERAGE in state:
                    yield parameter, state[AVERAGE]

    @property
    def exists(self) -> bool:
        """Whether there is an average: from the first step on, on every rank."""
        return self._decay is not None and next(self._pairs(), None) is not None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average the weights in after an optimizer step, with the number of steps before it."""
        if self._decay is None:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                if AVERAGE in state:
                    state[AVERAGE].lerp_(parameter, 1 - decay)
                else:
                    state[AVERAGE] = parameter.detach().clone()

    def model_of(self, model: GPT2Model) -> GPT2Model | None:
        """Return a copy of a model whose weights are the average, without dropout; `None` if none.

        They are shared: the copy changes with the average. Weights without an average are those of
        the model.
        """
        if not self.exists:
            return None
        shared = {id(each): each for each in model.parameters()}
        for parameter, average in self._pairs():
            shared[id(parameter)] = nn.Parameter(average, requires_grad=False)
        return copy.deepcopy(model, shared).eval()

    def evaluate(self, evaluate: Callable[[], T]) -> T | None:
        """Return what a function returns while the weights are the average; `None` without one."""
        if not self.exists:
            return None
        with self.swapped():
            return evaluate()

    @contextlib.contextmanager
    def swapped(self, is_swapped: bool = True) -> Iterator[None]:
        """Context manager in which the weights and their average are exchanged, or nothing is."""
        self._swap(is_swapped)
        try:
            yield
        finally:
            self._swap(is_swapped)

    @torch.no_grad()
    def _swap(self, is_swapped: bool) -> None:
        for parameter, average in self._pairs() if is_swapped else ():
            weight = parameter.clone()
            parameter.copy_(average)
            average.copy_(weight)
