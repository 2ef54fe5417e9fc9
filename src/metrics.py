"""What a run reports: the console, and one JSON line for each logged step."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

from .errors import AGI2Error
from .utils import human_time, log, writing

# Everything but generated text goes to standard error.
console = Console(stderr=True, highlight=False)


def setup_logging(level: int = logging.INFO) -> None:
    """Send the project's log to standard error: bare lines, coloured in a terminal.

    Of several processes under torchrun only the first has something to say.
    """
    if int(os.environ.get("RANK", 0)):
        level = logging.CRITICAL
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


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
            os.truncate(path, min(size, path.stat().st_size))

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line."""
        with writing(self.path), open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that was cut off is left out.

    Raises:
        AGI2Error: where the file is missing or not what it should be.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        return [dict(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise AGI2Error(f"{path} cannot be read: {error}") from error


class TrainingDisplay:
    """A progress bar in a terminal, a line at each logged step elsewhere.

    Args:
        total_steps: where that is known.
    """

    def __init__(self, total_steps: int | None) -> None:
        self._of = f"/{total_steps}" if total_steps else ""
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=console,
            disable=not (console.is_terminal and log.isEnabledFor(logging.INFO)),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=1.0)

    def __enter__(self) -> TrainingDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(
        self,
        step: int,
        progress: float,
        loss: float,
        *,
        speed: float,
        seconds_left: float,
        val_loss: float | None,
        share_of_peak: float | None,
        memory: object,
    ) -> None:
        """Show where the run is: losses in nats per token, speed in tokens per second."""
        parts = [f"step {step}{self._of}", f"loss {loss:.4f}"]
        if val_loss is not None:
            parts.append(f"val {val_loss:.4f}")
        share = "" if share_of_peak is None else f" ({100 * share_of_peak:.0f} % of peak)"
        parts += [f"{speed:,.0f} tok/s{share}", str(memory), f"{human_time(seconds_left)} left"]
        text = "  ".join(parts)
        if console.is_terminal:
            self._progress.update(self._task, completed=progress, description=text)
        else:
            log.info("%3.0f %%  %s", 100 * progress, text)


def busy(what: str) -> contextlib.AbstractContextManager[object]:
    """Say in a terminal what is being done, for as long as it takes."""
    if console.is_terminal and log.isEnabledFor(logging.INFO):
        return console.status(what)
    return contextlib.nullcontext()


class RunningMean:
    """A mean that is summed on the device and read only when it is asked for."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self._total: torch.Tensor | float = total
        self.count = count

    def add(self, value: torch.Tensor) -> None:
        """Count one more value."""
        # MPS has no float64.
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        self._total = self._total + value.detach().to(wide)
        self.count += 1

    def take(self) -> float:
        """The mean, which then starts anew; not a number where there was none."""
        mean = float(self._total) / self.count if self.count else math.nan
        self._total, self.count = 0.0, 0
        return mean

    def state(self) -> tuple[float, int]:
        """Sum and count: what the constructor takes."""
        return float(self._total), self.count
