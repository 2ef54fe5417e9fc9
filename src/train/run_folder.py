"""`RunFolder`: the folder of a run that is training, which is created again if it is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..utils import log
from .checkpoint import Checkpoint
from .checkpoint_manager import CheckpointManager
from .distributed import ProcessGroup
from .folder_lock import Phase
from .metrics import MetricsLogger
from .state import RunState


class RunFolder:
    """The folder of a run that is training: its metrics log and its checkpoints.

    Args:
        checkpoints: the manager of the folder's checkpoints.
        metrics_logger: writes the metrics log.
        process_group: the process group; rank 0 writes.
        describe_start: returns what the start entry of the log says about the run.
    """

    def __init__(
        self,
        checkpoints: CheckpointManager,
        metrics_logger: MetricsLogger,
        process_group: ProcessGroup,
        describe_start: Callable[[], dict[str, Any]],
    ) -> None:
        self._checkpoints, self._metrics_logger = checkpoints, metrics_logger
        self._process_group = process_group
        self._describe_start = describe_start
        self.needs_checkpoint = False
        """Whether to save a checkpoint after the next step, because the folder was lost."""

    def open(self, checkpoint: Checkpoint | None, step: int) -> None:
        """Create or reopen the folder and its log, on rank 0.

        Raises:
            AGI2Error: if another process trains in the folder, or it is not writable.
        """
        self._open_log(self._checkpoints.prepare_folder(checkpoint), step)
        self.show_phase("training")

    def show_phase(self, phase: Phase) -> None:
        """Let other processes know what this one does (see `read_phase`)."""
        if self._checkpoints.lock is not None:
            self._checkpoints.lock.set_phase(phase)

    def _open_log(self, logged: int, step: int) -> None:
        """Truncate the log to `logged` bytes and append an entry that describes this start."""
        config, folder = self._checkpoints.config, self._checkpoints.folder
        self._metrics_logger.open(config, folder, logged, step, self._describe_start())

    def recreate_if_lost(self, state: RunState) -> bool:
        """Create the folder again if it was deleted or moved; return whether it was.

        A collective: all ranks must call it. The best weights are lost with the folder, so the
        best val loss of `state` is reset.

        Raises:
            AGI2Error: if another folder is in its place, or it is not writable.
        """
        has_best = state.best_loss < math.inf
        if not self._process_group.broadcast_from_main(lambda: self._is_lost(has_best)):
            return False
        log.warning(
            "%s was deleted or moved away while training: creating it again",
            self._checkpoints.folder,
        )
        state.forget_best()
        self.needs_checkpoint = True
        if self._process_group.is_main:
            self._metrics_logger.close()
            self._checkpoints.restore_folder()
            self._open_log(0, state.step)
        return True

    def _is_lost(self, has_best: bool) -> bool:
        return self._checkpoints.is_lost(has_best) or self._metrics_logger.is_lost

    def save(self, state: Mapping[str, Any]) -> Path:
        """Save a checkpoint and return its path (see `CheckpointManager.save`)."""
        self.needs_checkpoint = False
        return self._checkpoints.save(state)

    def close(self) -> None:
        """Close the log, and release the lock of the folder."""
        self._metrics_logger.close()
        self._checkpoints.release()
