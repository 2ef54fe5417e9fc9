"""Parameter groups, optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..utils import sharded_as, whole

Optimizer = torch.optim.Optimizer


def make_optimizers(model: nn.Module, config: Config) -> list[Optimizer]:
    """The optimizers that a configuration names; each group's `initial_lr` is its highest rate.

    `adamw`: one AdamW. `muon`: Muon on the matrices inside the blocks, AdamW on embeddings,
    head, biases and norms.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inside = {
        name: p
        for name, p in named
        if config.optimizer == "muon" and name.startswith("blocks.") and p.dim() == 2
    }
    rest = [p for name, p in named if name not in inside]
    groups = parameter_groups(rest, config.weight_decay)
    device = next(model.parameters()).device.type
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            fused=device in ("cpu", "cuda"),
        )
    ]
    if inside:
        # Query, key and value are three matrices in one parameter.
        split = [{"params": [p], "parts": 3 if "qkv" in name else 1} for name, p in inside.items()]
        optimizers.append(Muon(split, config.muon_learning_rate, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and layer norms without. Empty groups are left out."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Muon(Optimizer):
    """Momentum whose every matrix is orthogonalised (Jordan et al., 2024).

    All matrices of one shape are orthogonalised together, as one batched product.

    Args:
        params: groups of matrices; a group's `parts` says how many matrices stand on top of each
            other in each of its parameters (3 for query, key and value), 1 by default.
        lr: the learning rate; an update has a root mean square of about lr / sqrt(columns).
        weight_decay: decoupled, times the learning rate.
        momentum: of the Nesterov average.
    """

    def __init__(
        self, params: Any, lr: float = 0.02, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        updates: list[tuple[nn.Parameter, torch.Tensor, dict[str, Any]]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                # Of a sharded matrix every process needs all: a part has other singular values.
                update = whole(update)
                updates.append((parameter, update, group))
                for part in update.chunk(group["parts"]):
                    # The smaller side first: the products below are then the smallest.
                    part = part.mT if part.size(0) > part.size(1) else part
                    by_shape[part.shape].append(part)
        for parts in by_shape.values():
            for part, result in zip(parts, orthogonalize(torch.stack(parts)), strict=True):
                part.copy_(result)
        for parameter, update, group in updates:
            # A tall matrix moves further, as its outputs are more.
            tallness = update.size(0) / group["parts"] / update.size(1)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            rate = group["lr"] * math.sqrt(max(1.0, tallness))
            parameter.add_(sharded_as(update, parameter), alpha=-rate)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices (N, rows, columns), rows <= columns, close to 1.

    Newton-Schulz iteration with the coefficients of Jordan et al. (2024), which trade an exact 1
    for speed: singular values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # Tensor cores make short work of it, and the coefficients forgive the rounding.
    if x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        x = x.bfloat16()  # pragma: needs gpu
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


# Warm-up is over when this share of the run is done, however few steps that was; but it has so many
# steps where the run is slow or begins with a pause, such as that of compiling.
WARMUP_SHARE, SHORTEST_WARMUP = 0.1, 5


def learning_rate_factor(
    schedule: str,
    step: int,
    total_steps: int,
    warmup_steps: int,
    decay_fraction: float = 0.2,
    clock: float = 0.0,
) -> float:
    """Compute what the learning rate is multiplied by: a pure function of where the run is.

    The share of the run that is done is that of its steps or that of its time, whichever is
    larger. Warm-up and decay both follow it, and meet where warm-up ends: the factor is
    continuous in the steps and in the time. Without a clock, it depends on the steps alone.

    Args:
        schedule: `constant`, or one that falls from 1 after warm-up to 0 at the end: `linear`,
            `cosine` (Loshchilov and Hutter, 2017), or `wsd`, which is constant until its linear
            fall (warm-up, stable, decay: Hu et al., 2024).
        step: steps done, counted from 0.
        total_steps: steps at most, at least 1.
        warmup_steps: steps in which the rate rises linearly, the first with 1 / (warmup + 1);
            fewer where they would be more than a tenth of the run.
        decay_fraction: the share of the run after warm-up in which `wsd` falls.
        clock: the share of the run's time that is over; 0 where no time limits it.
    """
    progress = min(max(step / total_steps, clock), 1.0)
    warmup = min(warmup_steps, total_steps // 10)
    # Of a run that its clock ends, the length in steps is estimated: step / progress.
    by_clock = min(warmup * progress / max(step, 1), WARMUP_SHARE)
    start = warmup / total_steps if clock <= step / total_steps else by_clock
    fastest = step / max(min(warmup, SHORTEST_WARMUP), 1)
    rise = max((step + 1) / (warmup + 1), min(progress / WARMUP_SHARE, fastest))
    return min(rise, 1.0) * _decay(schedule, (progress - start) / (1 - start), decay_fraction)


def _decay(schedule: str, progress: float, decay_fraction: float) -> float:
    """The factor after warm-up, from 1 to 0 as `progress` goes from 0 to 1."""
    progress = max(progress, 0.0)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "wsd":
        return min(1.0, (1.0 - progress) / decay_fraction)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
