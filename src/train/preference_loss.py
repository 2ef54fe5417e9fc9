"""Direct preference optimization (DPO; Rafailov et al., 2023).

B pairs, W inputs of one of the two conversations, N = B * 2 W, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..config import Config
from ..console import show_progress
from ..cuda_utils import autocast, logits_chunk_tokens
from ..data.preference_windows import PreferenceWindows
from ..data.windows import IGNORE_INDEX
from ..model import GPT2Model
from ..nn.dropout import evaluating
from .loss import NextTokenLoss, compile_blocks
from .preference_figures import sums_over


class PreferenceLoss(nn.Module):
    """A model and its DPO loss as one module, which is wrapped in DDP or FSDP.

    Logits are materialized for at most `logits_chunk_tokens` targets at a time.

    Args:
        model: the model.
        beta: the weight of the KL divergence from the starting model.
    """

    def __init__(self, model: GPT2Model, beta: float) -> None:
        super().__init__()
        self.model, self.beta = model, beta
        self.sums: torch.Tensor | None = None
        """Sums over the pairs since it was set to `None`; see `preference_figures`."""
        self._blocks: list[Callable[..., torch.Tensor]] | None = None

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the transformer block, once for all layers."""
        self._blocks = compile_blocks(self.model, backend)

    @staticmethod
    def count(targets: torch.Tensor) -> torch.Tensor:
        """Return the number of pairs in targets (B, 2 W): rows with a target that counts."""
        return (targets != IGNORE_INDEX).any(-1).sum()

    def forward(
        self, inputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean loss of pairs; 0 if there are none.

        Args:
            inputs: the chosen conversations and then the rejected ones, (B, 2 W).
            targets: the same; those that are `IGNORE_INDEX` do not count.
            reference: log-probabilities of the targets in the starting model; 0 for the others.
        """
        is_target = targets != IGNORE_INDEX
        log_ratios = self.log_probabilities(inputs, targets) - reference
        log_ratios, is_target = (_in_two(each) for each in (log_ratios, is_target))
        chosen, rejected = log_ratios.sum(-1).unbind(1)
        losses = -F.logsigmoid(self.beta * (chosen - rejected))
        is_pair = is_target.any(-1).any(-1)
        sums = sums_over(log_ratios, is_target, self.beta)
        self.sums = sums if self.sums is None else self.sums + sums
        return losses.masked_fill(~is_pair, 0.0).sum() / is_pair.sum().clamp(min=1)

    def log_probabilities(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target, (B, 2 W); 0 for `IGNORE_INDEX`."""
        rows = inputs.view(-1, inputs.size(1) // 2)
        hidden = self.model.hidden_states(rows, blocks=self._blocks).flatten(0, 1)
        flat = targets.flatten()
        places = (flat != IGNORE_INDEX).nonzero().squeeze(1)
        size = logits_chunk_tokens(hidden.device)
        chunks = zip(hidden[places].split(size), flat[places].split(size), strict=True)
        found = [
            checkpoint(_of_targets, x, self.model.output_weight, y, **_RECOMPUTED)
            for x, y in chunks
        ]
        values = torch.cat(found)
        return values.new_zeros(flat.shape).index_put((places,), values).view_as(targets)


# Logits are computed again in the backward pass; nothing in them is random.
_RECOMPUTED: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}

TrainingLoss = NextTokenLoss | PreferenceLoss


def make_loss(model: GPT2Model, config: Config) -> TrainingLoss:
    """Return a model with the loss that a run minimizes."""
    if config.preferences:
        return PreferenceLoss(model, config.dpo_beta)
    return NextTokenLoss(model, config.self_distillation)


def _in_two(rows: torch.Tensor) -> torch.Tensor:
    """Return rows, (B, 2 W), as their two halves, (B, 2, W)."""
    return rows.view(len(rows), 2, rows.size(1) // 2)


def _of_targets(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of targets (N,), given hidden (N, C) and the weight (V, C)."""
    logits = F.linear(hidden, weight)
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return scores.gather(-1, targets[:, None]).squeeze(-1)


@torch.no_grad()
def log_probabilities_of(
    model: GPT2Model, windows: PreferenceWindows, batch_size: int, precision: torch.dtype
) -> torch.Tensor:
    """Return the log-probabilities of all targets of pairs, (targets,), on the CPU.

    Args:
        model: the model, whose training mode is left as it is; dropout is off.
        windows: the pairs.
        batch_size: pairs in a forward pass.
        precision: autocast type of the forward passes.
    """
    loss = PreferenceLoss(model, 1.0)
    found = []
    with show_progress("computing the reference", is_determinate=True) as advance:
        for indices in torch.arange(len(windows), device="cpu").split(batch_size):
            inputs, targets, _ = windows.batch(indices, 0)
            with evaluating(), autocast(model.device, precision):
                values = loss.log_probabilities(inputs.to(model.device), targets.to(model.device))
            found.append(values.cpu()[targets != IGNORE_INDEX])
            advance((int(indices[-1]) + 1) / len(windows))
    return torch.cat(found)
