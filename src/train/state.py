"""`RunState`: the counters, losses and history of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..utils import log, replace_non_finite
from .preference_figures import PairSums

History = dict[str, Any]


class RunningMean:
    """A weighted mean that accumulates on the device, and synchronizes only in `take`."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self._total: torch.Tensor | float = total
        self.count = count

    def add(self, value: torch.Tensor, weight: int = 1) -> None:
        """Add a scalar with a weight."""
        # MPS has no float64.
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        self._total = self._total + weight * value.detach().to(wide)
        self.count += weight

    def take(self) -> float:
        """Return the mean (NaN if there are no values) and reset it."""
        mean = float(self._total) / self.count if self.count else math.nan
        self._total, self.count = 0.0, 0
        return mean

    def state(self) -> tuple[float, int]:
        """Return the sum and the count, the arguments of the constructor."""
        return float(self._total), self.count


def _no_history() -> History:
    return {"train_loss": [], "val_loss": [], "val_steps": []}


@dataclass
class RunState:
    """The training state of a run, except tensors."""

    step: int = 0
    """Steps done, including skipped steps."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    epoch_loss: RunningMean = field(default_factory=RunningMean)
    """Train loss since the start of the epoch, in nats per token."""
    recent_loss: RunningMean = field(default_factory=RunningMean)
    """Train loss since the last logged step, in nats per token."""
    recent_pairs: PairSums = field(default_factory=PairSums)
    """Sums over the pairs of preferences since the last logged step."""
    evaluated_at: int = 0
    best_loss: float = math.inf
    validations_without_improvement: int = 0
    history: History = field(default_factory=_no_history)
    """`train_loss` per epoch; `val_loss` per validation, and its step in `val_steps`."""

    @property
    def val_loss(self) -> float | None:
        """The last val loss; `None` before the first validation."""
        return self.history["val_loss"][-1] if self.history["val_loss"] else None

    def count_step(
        self,
        loss: torch.Tensor,
        is_taken: bool,
        weight: int = 1,
        sums: torch.Tensor | None = None,
    ) -> None:
        """Count a step that was taken or skipped, with the mean loss of its targets.

        Args:
            loss: the mean loss.
            is_taken: whether the weights were updated.
            weight: of this mean in that of several steps.
            sums: sums over its pairs of preferences, if there are any.
        """
        self.step += 1
        if is_taken:
            self.epoch_loss.add(loss, weight)
            self.recent_loss.add(loss, weight)
            if sums is not None:
                self.recent_pairs.add(sums)
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1

    def count_epoch(self) -> None:
        """Append the mean loss of the epoch to the history."""
        self.history["train_loss"].append(self.epoch_loss.take())

    def count_validation(self, loss: float) -> bool:
        """Count a validation; return whether its loss is the best so far."""
        self.history["val_loss"].append(loss)
        self.history["val_steps"].append(self.step)
        is_best = loss < self.best_loss
        if is_best:
            self.best_loss, self.validations_without_improvement = loss, 0
        else:
            self.validations_without_improvement += 1
        return is_best

    def forget_best(self) -> None:
        """Reset the best val loss, because the best weights are lost."""
        self.best_loss, self.validations_without_improvement = math.inf, 0

    def result(self, stopped: str) -> History:
        """Return the history of a run that ended, with the loss of its last, incomplete epoch.

        Args:
            stopped: why it ended.
        """
        result = {
            **self.history,
            "steps": self.step,
            "seconds": self.seconds,
            "stopped": stopped,
        }
        if self.epoch_loss.count:
            result["train_loss"] = [*self.history["train_loss"], self.epoch_loss.take()]
            log.info("incomplete epoch  train loss %.4f", result["train_loss"][-1])
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable deep copy; numbers that are not finite become `None`."""
        copy = {
            **vars(self),
            "epoch_loss": self.epoch_loss.state(),
            "recent_loss": self.recent_loss.state(),
            "recent_pairs": self.recent_pairs.state(),
            "best_loss": self.best_loss if self.best_loss < math.inf else None,
            "history": {key: list(values) for key, values in self.history.items()},
        }
        return dict(replace_non_finite(copy))

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RunState:
        """Create a state from the result of `to_json`; other keys are ignored."""
        saved = {"recent_pairs": [], **saved}  # checkpoints of earlier versions lack it
        kwargs = {field.name: saved[field.name] for field in fields(cls)}
        kwargs["recent_pairs"] = PairSums(kwargs["recent_pairs"])
        for name in ("epoch_loss", "recent_loss"):
            total, count = kwargs[name]
            kwargs[name] = RunningMean(math.nan if total is None else total, count)
        kwargs["history"] = {
            key: [math.nan if value is None else value for value in values]
            for key, values in kwargs["history"].items()
        }
        if kwargs["best_loss"] is None:
            kwargs["best_loss"] = math.inf
        return cls(**kwargs)
