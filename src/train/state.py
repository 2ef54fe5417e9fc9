"""`RunState`: where a run is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..utils import finite

History = dict[str, Any]


class RunningMean:
    """A mean that is summed on the device and read only when it is asked for."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self._total: torch.Tensor | float = total
        self.count = count

    def add(self, value: torch.Tensor, weight: int = 1) -> None:
        """Count one more value, as often as `weight` says."""
        # MPS has no float64.
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        self._total = self._total + weight * value.detach().to(wide)
        self.count += weight

    def take(self) -> float:
        """The mean, which then starts anew; not a number where there was none."""
        mean = float(self._total) / self.count if self.count else math.nan
        self._total, self.count = 0.0, 0
        return mean

    def state(self) -> tuple[float, int]:
        """Sum and count: what the constructor takes."""
        return float(self._total), self.count


def _no_history() -> History:
    return {"train_loss": [], "val_loss": [], "val_steps": []}


@dataclass
class RunState:
    """What a run has counted so far."""

    step: int = 0
    """Steps done, those left out among them."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    epoch_loss: RunningMean = field(default_factory=RunningMean)
    """Since the epoch began, in nats per token."""
    recent_loss: RunningMean = field(default_factory=RunningMean)
    """Since the last line of the log."""
    evaluated_at: int = 0
    best_loss: float = math.inf
    evaluations_without_gain: int = 0
    history: History = field(default_factory=_no_history)
    """A training loss for each epoch; validation losses, and the steps of these."""

    @property
    def val_loss(self) -> float | None:
        """The last validation's."""
        return self.history["val_loss"][-1] if self.history["val_loss"] else None

    def count_step(self, loss: torch.Tensor, taken: bool, rows: int = 1) -> None:
        """Count a step that was taken, or left out; `rows` sequences have this mean loss."""
        self.step += 1
        if taken:
            self.epoch_loss.add(loss, rows)
            self.recent_loss.add(loss, rows)
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1

    def count_epoch(self) -> None:
        """An epoch ends: its mean loss becomes history."""
        self.history["train_loss"].append(self.epoch_loss.take())

    def count_validation(self, loss: float) -> bool:
        """Count a validation; say whether it is the best one so far."""
        self.history["val_loss"].append(loss)
        self.history["val_steps"].append(self.step)
        is_best = loss < self.best_loss
        if is_best:
            self.best_loss, self.evaluations_without_gain = loss, 0
        else:
            self.evaluations_without_gain += 1
        return is_best

    def to_json(self) -> dict[str, Any]:
        """A copy that JSON can hold, which stays as it is while training goes on.

        What is not a finite number is `None`.
        """
        copy = {
            **vars(self),
            "epoch_loss": self.epoch_loss.state(),
            "recent_loss": self.recent_loss.state(),
            "best_loss": self.best_loss if self.best_loss < math.inf else None,
            "history": {key: list(values) for key, values in self.history.items()},
        }
        return dict(finite(copy))

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RunState:
        """What `to_json` gave, in which there may be more."""
        found = {field.name: saved[field.name] for field in fields(cls)}
        for name in ("epoch_loss", "recent_loss"):
            total, count = found[name]
            found[name] = RunningMean(math.nan if total is None else total, count)
        found["history"] = {
            key: [math.nan if value is None else value for value in values]
            for key, values in found["history"].items()
        }
        if found["best_loss"] is None:
            found["best_loss"] = math.inf
        return cls(**found)
