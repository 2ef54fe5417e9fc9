"""The metrics log `metrics.jsonl` (JSON Lines) and experiment trackers: TensorBoard, W&B."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..config import Config
from ..console import is_logged
from ..errors import AGI2Error, mask_secrets
from ..utils import (
    convert_write_errors,
    human_bytes,
    json_line,
    log,
    open_file,
    parse_json,
    read_bytes,
    sync_file,
    write_text,
)


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, flushed after each.

    Args:
        path: the file.
        size: the size, in bytes, to truncate it to: its size at the resumed checkpoint.

    Raises:
        AGI2Error: if it cannot be written, or what is kept of it is damaged.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        with convert_write_errors(path):
            path.touch()
            # After a power failure the file may be shorter, and end in an incomplete line.
            with open_file(path) as file:
                kept = file.read(size)
            try:
                _parse(kept, path)
            except AGI2Error as error:
                raise AGI2Error(f"{error}: delete it to resume without the earlier log") from error
            os.truncate(path, kept.rfind(b"\n") + 1)
        if len(kept) < size:
            missing = human_bytes(size - len(kept))
            log.warning("%s: the last %s before the checkpoint are missing", path, missing)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line; numbers that are not finite become `null`."""
        with (
            convert_write_errors(self.path),
            open(self.path, "a", encoding="utf-8", newline="\n") as file,
        ):
            file.write(json_line(entry) + "\n")

    def sync(self) -> None:
        """Flush the file to disk (fsync)."""
        with convert_write_errors(self.path):
            sync_file(self.path)

    @property
    def size(self) -> int:
        """The file's size, in bytes."""
        with convert_write_errors(self.path):
            return self.path.stat().st_size


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a `metrics.jsonl`, except an incomplete last line.

    Raises:
        AGI2Error: if the file is missing or invalid.
    """
    return _parse(read_bytes(path), path)


def _parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    """Parse the entries of a log, except an incomplete last line; `path` is for messages."""
    lines = content.split(b"\n")[:-1]
    entries = []
    for number, line in enumerate(lines, 1):
        name = f"{path} cannot be read: line {number:,}"
        entry = parse_json(line, name)
        if not isinstance(entry, dict):
            raise AGI2Error(f"{name} is not a JSON object")
        entries.append(entry)
    for number, entry in enumerate(entries, 1):
        if problem := find_problem(entry):
            raise AGI2Error(f"{path}:{number}: {problem}: not a valid log entry")
    return entries


# Keys of a step entry that are used together.
_SPEED = ("tokens_per_second", "tokens", "seconds")
# Keys of a start entry that are used in calculations.
_COUNTS = ("parameters", "total_steps", "train_tokens", "train_bytes", "tokens_per_step")
# No valid metric is larger, and the product of two does not overflow in a chart.
_MAX_NUMBER = 1e100


def find_problem(entry: dict[str, Any]) -> str:
    """Return what makes an entry invalid; empty if it is valid."""
    start = entry.get("start", {})
    if type(entry.get("step", 0)) is not int or not isinstance(start, dict):
        return "its step is not an integer, or its start is not an object"
    numbers = [value for value in [*entry.values(), *start.values()] if type(value) in (int, float)]
    # NaN fails this comparison, too; a run writes null instead.
    if not all(abs(number) <= _MAX_NUMBER for number in numbers) or entry.get("step", 0) < 0:
        return "a number is negative, or too large"
    counts = [start.get(key, 0) for key in _COUNTS]
    speeds = [entry[key] for key in _SPEED if key in entry]
    if not all(isinstance(value, int | float | None) for value in [*counts, *speeds]):
        return "a value is not a number"
    if "tokens_per_second" in entry and (len(speeds) < len(_SPEED) or None in speeds):
        return "it has no tokens or seconds"
    return ""


class Tracker(Protocol):
    """An experiment tracker that receives the entries of the log."""

    def write(self, entry: dict[str, Any]) -> None:
        """Log one entry."""

    def close(self) -> None:
        """Flush and close."""


class RunLog:
    """A run's log: `metrics.jsonl` and the trackers named in `log_to`.

    Args:
        config: the run's configuration.
        folder: the run folder.
        size: the size, in bytes, to truncate an earlier `metrics.jsonl` to.
        step: the step at which the run starts or resumes.

    Raises:
        AGI2Error: if a package is missing, or a tracker cannot be initialized.
    """

    def __init__(self, config: Config, folder: Path, size: int = 0, step: int = 0) -> None:
        check_log_to(config.log_to)
        self.file = MetricsFile(folder / "metrics.jsonl", size)
        self.trackers: list[Tracker] = []
        if "tensorboard" in config.log_to:
            logged = read_metrics(self.file.path)
            self.trackers.append(TensorBoardTracker(config, folder, step, logged))
        if "wandb" in config.log_to:
            self.trackers.append(WandbTracker(config, folder))

    def write(self, entry: dict[str, Any]) -> None:
        """Log one entry to the file and to all trackers."""
        self.file.write(entry)
        for tracker in self.trackers:
            tracker.write(entry)

    def sync(self) -> None:
        """Flush `metrics.jsonl` to disk (fsync)."""
        self.file.sync()

    @property
    def size(self) -> int:
        """The size of `metrics.jsonl`, in bytes."""
        return self.file.size

    def close(self) -> None:
        """Close all trackers; also called if the run fails."""
        for tracker in self.trackers:
            tracker.close()


def check_log_to(names: Sequence[str]) -> None:
    """Check that the trackers' packages are installed.

    Raises:
        AGI2Error: if one is not.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # None: a folder of that name, not a package
            raise AGI2Error(
                f"log_to: {name} is not installed; install it with uv sync --extra {name} or "
                f"pip install {name}, or remove it from log_to"
            )


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """Return the scalar metrics of an entry."""
    axes = ("step", "epoch")
    return {k: v for k, v in entry.items() if k not in axes and isinstance(v, int | float)}


class TensorBoardTracker:
    """Writes TensorBoard event files to `tensorboard/` in the run folder.

    A resumed run purges the events at or after `step` and writes the log's entries of that step
    again. If there are no event files yet, all entries of the log are written.

    Args:
        config: the run's configuration.
        folder: the run folder.
        step: the step at which the run starts or resumes.
        logged: the entries of the log so far.
    """

    def __init__(
        self, config: Config, folder: Path, step: int, logged: Sequence[dict[str, Any]]
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "tensorboard"
        is_new = not path.exists()
        with convert_write_errors(path):
            self._writer = SummaryWriter(path, purge_step=step, flush_secs=10)
        if is_new:
            rows = "".join(
                f"    {key} = {value!r}\n" for key, value in mask_secrets(config).items()
            )
            self._writer.add_text("config", rows, 0)
        for entry in logged:
            if is_new or entry.get("step", 0) >= step:
                self.write(entry)

    def write(self, entry: dict[str, Any]) -> None:
        """Write an entry's scalars, and its sample as text."""
        for key, value in _numbers(entry).items():
            self._writer.add_scalar(key, value, entry.get("step", 0))
        if "sample" in entry:
            # TensorBoard renders Markdown, in which indented lines are verbatim.
            lines = "\n".join("    " + line for line in entry["sample"].split("\n"))
            self._writer.add_text("sample", lines, entry.get("step", 0))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _read_run_id(path: Path) -> str:
    """Read the W&B run id of an earlier start of the run.

    Raises:
        AGI2Error: if the file does not contain one.
    """
    try:
        with open_file(path) as file:
            found = file.read(100).decode("ascii").strip()
    except (OSError, ValueError):
        found = ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise AGI2Error(f"{path} contains no run id: delete it, and a new run begins there")
    return found


class WandbTracker:
    """Logs to Weights & Biases: to a run named `model_name` in the project `agi2`.

    The W&B run id is stored in `wandb/` in the run folder, so that a resumed run continues the
    same W&B run; W&B ignores steps that it has already. `WANDB_MODE=offline` sends nothing.

    Args:
        config: the run's configuration.
        folder: the run folder.

    Raises:
        AGI2Error: if nobody is logged in, or W&B cannot be reached.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        path = folder / "wandb" / "run_id"
        run_id = _read_run_id(path) if path.exists() else uuid.uuid4().hex[:12]
        with convert_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, run_id)
        # W&B also uploads the command line: not if it contains secrets.
        extra_settings: dict[str, Any] = (
            {"x_disable_meta": True} if mask_secrets(sys.argv) != sys.argv else {}
        )
        try:
            self._run = wandb.init(
                project="agi2",
                name=config.model_name,
                id=run_id,
                resume="allow",
                dir=folder,
                config=mask_secrets(config),
                settings=wandb.Settings(
                    console="off",  # W&B must not capture the terminal, where progress is shown
                    silent=not is_logged(),
                    **extra_settings,
                ),
            )
        except (wandb.Error, ValueError) as error:  # ValueError: environment variables of W&B
            raise AGI2Error(
                f"log_to: wandb: {' '.join(str(error).split())}; run wandb login, or set the "
                "environment variable WANDB_MODE=offline"
            ) from error

    def write(self, entry: dict[str, Any]) -> None:
        """Log an entry's scalars, and its sample as text."""
        found: dict[str, Any] = _numbers(entry)
        if "sample" in entry:
            found["sample"] = entry["sample"]
        if found:
            self._run.log(found, step=entry["step"])

    def close(self) -> None:
        """Finish the W&B run: wait until all data is uploaded, or on disk."""
        self._run.finish()
