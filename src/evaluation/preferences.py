"""Evaluation on pairs of preferences: the loss of DPO, accuracy, margin and the KL estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..cuda_utils import autocast
from ..data.preference_windows import PreferenceWindows
from ..model import GPT2Model
from ..nn.dropout import evaluating
from ..tokenizer import Tokenizer
from ..train.metrics import Evaluation
from ..train.preference_figures import figures
from ..train.preference_loss import PreferenceLoss
from ..utils import log


@dataclass(frozen=True)
class PairEvaluation(Evaluation):
    """The result of evaluating a model on pairs of preferences: `loss` is that of DPO, per pair."""

    pairs: int
    figures: dict[str, float]
    """See `preference_figures.figures`."""

    @property
    def no_bits_per_byte(self) -> str:
        """Why bits per byte are undefined."""
        return "the loss is that of pairs"

    @property
    def logged(self) -> dict[str, float | None]:
        """What is logged besides the loss."""
        return {f"val_{name}": value for name, value in self.figures.items()}

    def describe_bits(self) -> str:
        """Return the figures, for the log."""
        found = self.figures
        return (
            f"accuracy {100 * found['accuracy']:.1f} %, margin {found['margin']:.3f}, "
            f"KL {found['kl']:.4f}"
        )

    def log_as_best(self) -> None:
        """Log the result of the best weights."""
        log.info("best weights: val loss %.4f, %s", self.loss, self.describe_bits())


def evaluate_pairs(
    model: GPT2Model,
    dataset: PreferenceWindows,
    tokenizer: Tokenizer,
    *,
    beta: float,
    batch_size: int = 1,
    max_tokens: int = 0,
    precision: torch.dtype = torch.float32,
) -> PairEvaluation:
    """Compute the DPO loss on pairs, and accuracy, margin and the KL estimate.

    Args:
        model: the model, whose training mode is left as it is.
        dataset: the pairs, with the log-probabilities of the starting model.
        tokenizer: not used: the signature is that of `evaluation.loss.evaluate`.
        beta: that of DPO.
        batch_size: pairs in a forward pass.
        max_tokens: evaluate about this many tokens, in evenly spaced pairs; 0 for all.
        precision: autocast type of the forward passes.
    """
    count, size = len(dataset), dataset.seq_len - 1
    if max_tokens and count * size > max_tokens:
        count = max(1, max_tokens // size)
    chosen = torch.from_numpy(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64))
    loss_of = PreferenceLoss(model, beta)
    total = 0.0
    for indices in chosen.split(batch_size):
        parts = [part.to(model.device) for part in dataset.batch(indices, 0)]
        with evaluating(), autocast(model.device, precision):
            total += loss_of(*parts).item() * len(indices)
    assert loss_of.sums is not None
    sums = loss_of.sums.tolist()
    return PairEvaluation(total / count, int(sums[1]), 0, count, figures(sums))
