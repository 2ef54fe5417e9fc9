"""Parameter groups, optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and layer norms without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, beta2: float = 0.99
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), fused into one pass over the weights."""
    groups = [group for group in parameter_groups(model, weight_decay) if group["params"]]
    fused = model.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=fused)


def learning_rate_factor(schedule: str, progress: float, step: int, warmup_steps: int) -> float:
    """What the learning rate is multiplied by: a pure function of where the run is.

    Args:
        schedule: `constant`, `linear` or `cosine` (Loshchilov and Hutter, 2017), which fall from
            1 after warm-up to 0 at the end.
        progress: the share of the run that is done after warm-up, 0 to 1.
        step: steps done, counted from 0.
        warmup_steps: steps in which the rate rises linearly; the first has 1 / (warmup + 1).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(max(progress, 0.0), 1.0)
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
