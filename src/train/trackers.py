"""A run's log: one JSON line for each logged step, and other services."""

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
from ..errors import AGI2Error, masked
from ..utils import json_line, open_file, parse_json, read_bytes, sync_file, write_text, writing


class MetricsFile:
    """`metrics.jsonl`: appended line by line, each one flushed.

    Args:
        path: the file.
        size: bytes to keep of it: what stood there when the checkpoint was saved from which the
            run goes on.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        with writing(path):
            path.touch()
            # After a power cut the file may be shorter, and end within a line.
            with open_file(path) as file:
                kept = file.read(size)
            os.truncate(path, kept.rfind(b"\n") + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line; JSON has no word for a number that is not finite but `null`."""
        with writing(self.path), open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json_line(entry) + "\n")

    def sync(self) -> None:
        """Ask the disk to keep what was written."""
        with writing(self.path):
            sync_file(self.path)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        with writing(self.path):
            return self.path.stat().st_size


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that was cut off is left out.

    Raises:
        AGI2Error: where the file is missing or not what it should be.
    """
    lines = read_bytes(path).split(b"\n")[:-1]
    entries = []
    for number, line in enumerate(lines, 1):
        name = f"{path} cannot be read: line {number:,}"
        entry = parse_json(line, name)
        if not isinstance(entry, dict):
            raise AGI2Error(f"{name} is no JSON object")
        entries.append(entry)
    for number, entry in enumerate(entries, 1):
        if problem := _problem_of(entry):
            raise AGI2Error(f"{path}:{number}: {problem}: not a line that a run has written")
    return entries


# Of a step's line, what is read together.
_SPEED = ("tokens_per_second", "tokens", "seconds")
# Of a start's description, what is reckoned with.
_COUNTS = ("parameters", "total_steps", "train_tokens", "train_bytes", "tokens_per_step")
# No count or figure of a run is larger; products of two are still numbers of a chart.
_LARGEST_NUMBER = 1e100


def _problem_of(entry: dict[str, Any]) -> str:
    """What those who read the log could not read of a line; empty where there is nothing."""
    start = entry.get("start", {})
    if type(entry.get("step", 0)) is not int or not isinstance(start, dict):
        return "its step is no whole number, or its start no description"
    numbers = [value for value in [*entry.values(), *start.values()] if type(value) in (int, float)]
    # NaN is not, either: a run writes null in its place.
    if not all(abs(number) <= _LARGEST_NUMBER for number in numbers) or entry.get("step", 0) < 0:
        return "a number is negative, or too large"
    counts = [start.get(key, 0) for key in _COUNTS]
    speeds = [entry[key] for key in _SPEED if key in entry]
    if not all(isinstance(value, int | float | None) for value in [*counts, *speeds]):
        return "a number is none"
    if "tokens_per_second" in entry and (len(speeds) < len(_SPEED) or None in speeds):
        return "it has no tokens or seconds"
    return ""


class Sink(Protocol):
    """Another place that a run's log goes to."""

    def write(self, entry: dict[str, Any]) -> None:
        """Take one line of the log."""

    def close(self) -> None:
        """Bring everything written to its place."""


class RunLog:
    """A run's log: `metrics.jsonl`, and whatever `log_to` names beside it.

    Args:
        config: the run's.
        folder: the run's.
        size: bytes to keep of an earlier `metrics.jsonl`.
        step: where the run begins or goes on.

    Raises:
        AGI2Error: where a package is missing, or a service refuses.
    """

    def __init__(self, config: Config, folder: Path, size: int = 0, step: int = 0) -> None:
        check_log_to(config.log_to)
        self.file = MetricsFile(folder / "metrics.jsonl", size)
        self.sinks: list[Sink] = []
        if "tensorboard" in config.log_to:
            logged = read_metrics(self.file.path)
            self.sinks.append(TensorBoardSink(config, folder, step, logged))
        if "wandb" in config.log_to:
            self.sinks.append(WandbSink(config, folder))

    def write(self, entry: dict[str, Any]) -> None:
        """Log one line everywhere."""
        self.file.write(entry)
        for sink in self.sinks:
            sink.write(entry)

    def sync(self) -> None:
        """Ask the disk to keep `metrics.jsonl` as it is."""
        self.file.sync()

    @property
    def size(self) -> int:
        """Bytes in `metrics.jsonl`."""
        return self.file.size

    def close(self) -> None:
        """Finish writing, also where a run dies."""
        for sink in self.sinks:
            sink.close()


def check_log_to(names: Sequence[str]) -> None:
    """Raise where a package is missing, before anything else is done.

    Raises:
        AGI2Error: which says what to install.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise AGI2Error(
                f"log_to: {name} is not installed; install it with uv sync --extra {name} or "
                f"pip install {name}, or take it out of log_to"
            )


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """What of a line is a curve over steps."""
    axes = ("step", "epoch")
    return {k: v for k, v in entry.items() if k not in axes and isinstance(v, int | float)}


class TensorBoardSink:
    """Event files in the run's folder `tensorboard`.

    A resumed run takes back what was written at or after its first step, and writes what the log
    kept of that step once more; a run that was not watched before is written from its beginning.

    Args:
        config: the run's.
        folder: the run's.
        step: where the run begins or goes on.
        logged: the log's lines so far.
    """

    def __init__(
        self, config: Config, folder: Path, step: int, logged: Sequence[dict[str, Any]]
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        is_new = not place.exists()
        with writing(place):
            self._writer = SummaryWriter(place, purge_step=step, flush_secs=10)
        if is_new:
            rows = "".join(f"    {key} = {value!r}\n" for key, value in masked(config).items())
            self._writer.add_text("config", rows, 0)
        for entry in logged:
            if is_new or entry.get("step", 0) >= step:
                self.write(entry)

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line's numbers as points, and its sample as text."""
        for key, value in _numbers(entry).items():
            self._writer.add_scalar(key, value, entry.get("step", 0))
        if "sample" in entry:
            # It is shown as Markdown, in which indented lines are taken as they are.
            lines = "\n".join("    " + line for line in entry["sample"].split("\n"))
            self._writer.add_text("sample", lines, entry.get("step", 0))

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


def _read_run_id(note: Path) -> str:
    """The id under which an earlier part of the run is known.

    Raises:
        AGI2Error: where the file holds something else.
    """
    try:
        with open_file(note) as file:
            found = file.read(100).decode("ascii").strip()
    except (OSError, ValueError):
        found = ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise AGI2Error(f"{note} holds no run's id: delete it, and a new run begins there")
    return found


class WandbSink:
    """A run of the same name in the project `agi2` of Weights & Biases.

    Its files and its id stand in the run's folder `wandb`, so that a resumed run goes on there:
    the service leaves out steps that it has seen. `WANDB_MODE=offline` sends nothing anywhere.

    Args:
        config: the run's.
        folder: the run's.

    Raises:
        AGI2Error: where nobody is logged in, or the service cannot be reached.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        note = folder / "wandb" / "run_id"
        run_id = _read_run_id(note) if note.exists() else uuid.uuid4().hex[:12]
        with writing(note):
            note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, run_id)
        # The service is sent the command, too.
        hiding: dict[str, Any] = {"x_disable_meta": True} if masked(sys.argv) != sys.argv else {}
        try:
            self._run = wandb.init(
                project="agi2",
                name=config.model_name,
                id=run_id,
                resume="allow",
                dir=folder,
                config=masked(config),
                settings=wandb.Settings(
                    console="off",  # the terminal is ours
                    silent=not is_logged(),
                    **hiding,
                ),
            )
        except (wandb.Error, ValueError) as error:  # the latter for settings in the environment
            raise AGI2Error(
                f"log_to: wandb: {' '.join(str(error).split())}; run wandb login, or set the "
                "environment variable WANDB_MODE=offline"
            ) from error

    def write(self, entry: dict[str, Any]) -> None:
        """Send a line's numbers, and its sample as text."""
        found: dict[str, Any] = _numbers(entry)
        if "sample" in entry:
            found["sample"] = entry["sample"]
        if found:
            self._run.log(found, step=entry["step"])

    def close(self) -> None:
        """Wait until all is sent, or on disk."""
        self._run.finish()
