"""Functions that a trainer is handed to evaluate a model and to generate samples."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from ..model import GPT2Model
from ..tokenizer import Tokenizer
from .metrics import Evaluation


@runtime_checkable
class Evaluate(Protocol):
    """A function with the signature of `evaluation.loss.evaluate`, for the windows of a run."""

    def __call__(  # noqa: D102 (see the class)
        self,
        model: GPT2Model,
        dataset: Any,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        max_tokens: int,
        precision: torch.dtype,
    ) -> Evaluation: ...


@runtime_checkable
class Sample(Protocol):
    """A function that generates text of at most `max_length` tokens."""

    def __call__(  # noqa: D102
        self, model: GPT2Model, tokenizer: Tokenizer, *, max_length: int, seed: int
    ) -> str: ...
