"""What is logged of DPO besides its loss: accuracy, rewards, their margin, and the KL estimate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NAMES = ("accuracy", "margin", "chosen_reward", "rejected_reward")


def sums_over(log_ratios: torch.Tensor, targets: torch.Tensor, beta: float) -> torch.Tensor:
    """Return sums over pairs, from which `figures` are computed.

    Args:
        log_ratios: log-probabilities of the targets minus those in the starting model, (B, 2, W),
            of the chosen and the rejected conversation; 0 where there is no target.
        targets: whether there is a target, (B, 2, W).
        beta: that of DPO.

    Returns:
        The numbers of pairs and of targets, the sum of the KL estimates over the targets, and those
        of `_NAMES` over the pairs, (7,).
    """
    wide = torch.float32 if log_ratios.device.type == "mps" else torch.float64
    log_ratios = log_ratios.detach().to(wide)
    rewards = beta * log_ratios.sum(-1)
    margins = rewards[:, 0] - rewards[:, 1]
    # E[r - 1 - log r] is KL(q || p) for r = p / q and samples of q, and each term is at least 0
    # (Schulman, 2020, "Approximating KL divergence").
    divergence = (log_ratios.expm1() - log_ratios).sum()
    pairs = targets.any(-1).any(-1)
    values = (
        pairs.sum(),
        targets.sum(),
        divergence,
        (margins > 0).sum(),
        margins.sum(),
        *rewards.sum(0).unbind(),
    )
    return torch.stack([value.to(wide) for value in values])


def figures(sums: Sequence[float]) -> dict[str, float]:
    """Return the means: accuracy, margin and rewards per pair, the KL estimate per target."""
    pairs, targets, divergence, *others = sums
    means = {name: value / max(pairs, 1) for name, value in zip(_NAMES, others, strict=True)}
    return {**means, "kl": divergence / max(targets, 1)}


class PairSums:
    """Sums over the pairs of several steps; they synchronize with the device only when read.

    Args:
        sums: sums that were saved; empty if there are none.
    """

    def __init__(self, sums: Sequence[float | None] = ()) -> None:
        self._sums: torch.Tensor | None = None
        if sums:
            values = [float("nan") if value is None else value for value in sums]
            self._sums = torch.tensor(values, dtype=torch.float64, device="cpu")

    def add(self, sums: torch.Tensor) -> None:
        """Add the sums of a step, as `sums_over` returns them."""
        self._sums = sums if self._sums is None else self._sums.to(sums) + sums

    def take(self) -> dict[str, float]:
        """Return the figures, empty if there are no pairs, and reset the sums."""
        sums, self._sums = self.state(), None
        return figures(sums) if sums else {}

    def state(self) -> list[float]:
        """Return the sums, the argument of the constructor."""
        return [] if self._sums is None else list(map(float, self._sums.tolist()))
