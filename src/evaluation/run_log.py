"""Logs of training runs: load a run's configuration and metrics, list and summarize runs."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..command_line import command_line
from ..config import Config
from ..config_loader import CONFIG, load_config
from ..errors import AGI2Error
from ..formats.run_dir import (
    CHECKPOINTS,
    METRICS,
    TOKENIZER,
    WEIGHTS,
    list_checkpoints,
    read_state,
    step_of,
)
from ..train.folder_lock import Phase, read_phase
from ..train.trackers import find_problem, read_metrics
from .charts import Point


@dataclass(frozen=True)
class Validation:
    """Result of a validation."""

    step: int
    loss: float
    """Mean loss in nats per token."""
    bits_per_byte: float


class History:
    """The metrics that a run logged.

    Args:
        entries: the parsed lines of `metrics.jsonl`.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.entries = entries

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """Return the history that a checkpoint's state holds: its step, time and validations."""
        history = state.get("history")
        curves = history if isinstance(history, dict) else {}
        steps, losses = curves.get("val_steps"), curves.get("val_loss")
        if not (isinstance(steps, list) and isinstance(losses, list)):
            steps = losses = []
        entries = [
            {"step": 0, "start": {"total_steps": state.get("total_steps")}},
            *({"step": a, "val_loss": b} for a, b in zip(steps, losses, strict=False)),
            {"step": state.get("step"), "seconds": state.get("seconds")},
        ]
        return cls([entry for entry in entries if not find_problem(entry)])

    def curve(self, key: str) -> list[Point]:
        """Return step and value of each logged number of this name; NaN if it was not finite."""
        return [
            (entry["step"], math.nan if entry[key] is None else float(entry[key]))
            for entry in self.entries
            if "step" in entry and key in entry and isinstance(entry[key], int | float | None)
        ]

    def last(self, key: str) -> float | None:
        """Return the last logged number of this name, or `None`."""
        curve = self.curve(key)
        return curve[-1][1] if curve else None

    @cached_property
    def starts(self) -> list[tuple[int, dict[str, Any]]]:
        """Step and logged facts of the start, and of each resume."""
        starts = [(e.get("step", 0), e["start"]) for e in self.entries if "start" in e]
        return [(step, start) for step, start in starts if isinstance(start, dict)]

    @property
    def start(self) -> dict[str, Any]:
        """Logged facts of the last start or resume; empty if none was logged."""
        return self.starts[-1][1] if self.starts else {}

    @property
    def steps(self) -> int:
        """Optimizer steps done, up to the last log entry."""
        return max((int(entry.get("step", 0)) for entry in self.entries), default=0)

    @property
    def samples(self) -> list[tuple[int, str]]:
        """Step and text of each sample."""
        return [(e.get("step", 0), str(e["sample"])) for e in self.entries if "sample" in e]

    @property
    def validations(self) -> list[Validation]:
        """All validations, in order."""
        bits = dict(self.curve("val_bits_per_byte"))
        return [
            Validation(int(step), loss, bits.get(step, math.nan))
            for step, loss in self.curve("val_loss")
        ]

    @property
    def best(self) -> Validation | None:
        """The validation with the lowest finite loss, if any."""
        finite = [each for each in self.validations if math.isfinite(each.loss)]
        return min(finite, key=lambda each: each.loss, default=None)

    @property
    def bits_per_nat(self) -> float | None:
        """Factor from train loss in nats per token to bits per byte; `None` if not logged."""
        tokens, size = self.start.get("train_tokens"), self.start.get("train_bytes")
        return tokens / size / math.log(2) if tokens and size else None

    @property
    def speed(self) -> list[Point]:
        """Step and tokens per second since the previous logged step."""
        speeds = []
        before: dict[str, Any] | None = None
        for entry in self.entries:
            if "tokens_per_second" not in entry:
                # No interval spans a restart: the time between is not training.
                before = None if "start" in entry else before
                continue
            speed = entry["tokens_per_second"]
            if before is not None and entry["seconds"] > before["seconds"]:
                seconds = entry["seconds"] - before["seconds"]
                speed = (entry["tokens"] - before["tokens"]) / seconds
            speeds.append((entry["step"], speed))
            before = entry
        return speeds


@dataclass(frozen=True)
class RunRecord:
    """A run: its folder, configuration and logged metrics."""

    folder: Path
    config: Config
    history: History

    @property
    def name(self) -> str:
        """The folder's name: `model_name`, or NAME.1 once a newer run has that name."""
        return self.folder.resolve().name


def read_run(folder: str | Path) -> RunRecord:
    """Load the configuration and metrics of a run.

    A model without a log, such as an imported one, has an empty history.

    Raises:
        AGI2Error: if the folder is not a run's, or a file in it is corrupt.
    """
    folder = Path(folder)
    if not is_run(folder) and not (folder / WEIGHTS).is_file():
        raise AGI2Error(
            f"{folder} is not a run's folder: it has no {METRICS}; {command_line('list')} shows "
            "the runs"
        )
    return RunRecord(folder, _read_config(folder), _read_history(folder))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's: it has a log, or a configuration and parts of a model."""

    # Not `isfile`: a broken link or a folder of this name is a corrupt run, to be reported.
    def has(name: str) -> bool:
        return os.path.lexists(folder / name)

    return has(METRICS) or (has(CONFIG) and any(map(has, (WEIGHTS, CHECKPOINTS, TOKENIZER))))


def _read_history(folder: Path) -> History:
    """Read a run's log; without a log, derive what is known from the newest checkpoint."""
    if os.path.lexists(folder / METRICS):
        return History(read_metrics(folder / METRICS))
    return History.from_state(_newest_state(folder))


@dataclass(frozen=True)
class RunSummary:
    """A line of `agi2 list` about a run, which may be corrupt."""

    name: str
    history: History
    checkpoints: list[int]
    """Steps of the checkpoints on disk."""
    size: int
    """Size on disk in bytes."""
    changed: float
    """Time of the last log entry, or without a log of the model, in seconds since 1970."""
    has_log: bool
    is_finished: bool
    """Whether it reached its steps, `max_minutes`, or early stopping, and validated its result."""
    phase: Phase | None
    """What the process that trains it does now; `None` if there is none."""
    problem: str
    """Error message of a corrupt run, else empty."""


def list_runs(folder: Path) -> list[RunSummary]:
    """Summarize the runs in a folder, newest last; other folders are skipped.

    Raises:
        AGI2Error: if the folder cannot be read.
    """
    try:
        runs = [path for path in folder.iterdir() if is_run(path)]
    except OSError as error:
        raise AGI2Error(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(map(summarize, runs), key=lambda run: run.changed)


def summarize(folder: Path) -> RunSummary:
    """Summarize a run; errors go to `problem`."""
    history, is_finished, problem = History([]), False, ""
    try:
        history = _read_history(folder)
        config = _read_config(folder)
        is_finished = _is_finished(folder, config, history)
    except AGI2Error as error:
        problem = str(error).splitlines()[0]
    has_log = os.path.lexists(folder / METRICS)
    dated = (METRICS,) if has_log else (CONFIG, WEIGHTS)
    return RunSummary(
        name=folder.name,
        history=history,
        checkpoints=[step_of(path) for path in list_checkpoints(folder)],
        size=_folder_size(folder),
        changed=max(_modification_time(folder / name) for name in dated),
        has_log=has_log,
        is_finished=is_finished,
        phase=read_phase(folder),
        problem=problem,
    )


def _is_finished(folder: Path, config: Config, history: History) -> bool:
    if not _is_validated(history):
        return False
    state = _newest_state(folder)
    total = history.start.get("total_steps")
    if total is not None and history.steps >= total:
        return True
    seconds, without_improvement = state.get("seconds"), state.get(
        "validations_without_improvement"
    )
    if not (isinstance(seconds, int | float) and isinstance(without_improvement, int)):
        return False
    if config.max_minutes is not None and seconds >= 60 * config.max_minutes:
        return True
    patience = config.early_stopping_patience
    return patience is not None and without_improvement >= patience


def _is_validated(history: History) -> bool:
    """Return whether the last step was validated, or the run has no text to validate on."""
    validations = history.validations
    if not validations:
        return not history.start.get("val_tokens")
    return validations[-1].step >= history.steps


def _read_config(folder: Path) -> Config:
    return load_config(folder / CONFIG)


# Upper bound of times, in the year 9892: `datetime` raises beyond 9999.
_MAX_TIME = 250_000_000_000.0


def _modification_time(path: Path) -> float:
    """Return the modification time of a file in seconds since 1970; 0 if it was deleted."""
    try:
        return max(0.0, min(os.lstat(path).st_mtime, _MAX_TIME))
    except OSError:
        return 0.0


def _newest_state(folder: Path) -> dict[str, Any]:
    """Load the state of the newest readable checkpoint, without tensors; empty if there is none."""
    for path in reversed(list_checkpoints(folder)):
        with contextlib.suppress(AGI2Error):
            return read_state(path)
    return {}


def _folder_size(folder: Path) -> int:
    """Return the total size of a folder's files in bytes; hard links count once."""
    sizes = {}
    for place, _, names in os.walk(folder):
        for name in names:
            # A concurrent training run may have deleted it.
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(place, name))
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
