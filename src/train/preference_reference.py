"""`References`: log-probabilities of the starting model on the pairs of a run, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..data.preference_windows import PreferenceWindows
from ..model import GPT2Model
from .checkpoint_manager import CheckpointManager
from .preference_loss import log_probabilities_of
from .step_runner import StepRunner


class References:
    """The log-probabilities of the starting model on pairs to train and to validate on.

    They are saved in each checkpoint, so that a resumed run needs no starting model.

    Args:
        train: the windows to train on.
        val: those to validate on, if there are any; only pairs of either are considered.
        model: the model, of whose type the log-probabilities are, at least fp32.
    """

    def __init__(self, train: Any, val: Any, model: GPT2Model) -> None:
        windows = {"train": train, "val": val}
        self._windows = {
            name: each for name, each in windows.items() if isinstance(each, PreferenceWindows)
        }
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        for each in self._windows.values():
            each.reference = each.reference.to(dtype)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The log-probabilities, by name in a checkpoint."""
        return {f"reference.{name}": each.reference for name, each in self._windows.items()}

    def compute(self, checkpoints: CheckpointManager, runner: StepRunner) -> None:
        """Compute them with a run's model before its first step, on rank 0; broadcast them.

        LoRA adapters begin at zero: the model is still the starting model.
        """
        if not self._windows:
            return
        model, group = checkpoints.gather(), checkpoints.process_group
        how = runner.micro_batch_size, runner.precision
        for windows in self._windows.values():
            compute = partial(log_probabilities_of, model, windows, *how)
            windows.reference.copy_(group.broadcast_from_main(compute))
