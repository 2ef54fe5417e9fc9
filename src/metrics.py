"""What a run reports: the console, one JSON line for each logged step, and other services."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from .config import Config
from .errors import AGI2Error, printable
from .utils import human_time, json_line, log, parse_json, sync_file, write_text, writing

# Everything but generated text goes to standard error.
console = Console(stderr=True, highlight=False)


class PrintableFormatter(logging.Formatter):
    """The bare message as one line that a terminal shows as it is, whatever its arguments hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escape the message."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Escape what is added to the message, too: a traceback, in lines of its own."""
        return printable(super().format(record), keep="\n")


def has_live_display() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


def setup_logging(level: int = logging.INFO) -> None:
    """Send the project's log to standard error: bare lines, coloured in a terminal.

    Of several processes under torchrun only the first has something to say.
    """
    if int(os.environ.get("RANK", 0)):
        level = logging.CRITICAL
    handler: logging.Handler
    if has_live_display():
        handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


# Whether this call, alone among those of all threads, was asked to log warnings only.
_is_quiet: ContextVar[bool] = ContextVar("agi2_is_quiet", default=False)
log.addFilter(lambda record: record.levelno >= logging.WARNING or not _is_quiet.get())


class _Visibility:
    """Shows the log while any call wants it, and then leaves the logger as it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before: tuple[list[logging.Handler], int, bool] | None = None

    def begin(self) -> None:
        """Set the logger up for the first of the calls, unless the host has done so."""
        with self._lock:
            self._calls += 1
            is_configured = log.handlers or log.disabled or not log.propagate
            if self._calls > 1 or is_configured:
                return
            self._before = log.handlers[:], log.level, log.propagate
            level = log.level or logging.INFO
            if log.hasHandlers():  # the host's, for all loggers
                log.setLevel(level)
            else:
                setup_logging(level)

    def end(self) -> None:
        """Undo `begin` after the last of the calls."""
        with self._lock:
            self._calls -= 1
            if self._calls or self._before is None:
                return
            log.handlers[:], level, log.propagate = self._before
            log.setLevel(level)
            self._before = None


_visibility = _Visibility()


@contextlib.contextmanager
def visible(verbose: bool = True) -> Iterator[None]:
    """Show what a call from Python does, for as long as it takes.

    Where the host has configured no logging, the log goes to standard error, with a progress bar
    in a terminal. Where it has given the root logger handlers, the records go to these, once. Where
    it has given the logger `agi2` a handler, nothing is changed; a level that it has set stays,
    otherwise INFO is the level. Afterwards the logger is as it was. Calls may be
    nested, and made in several threads.

    Args:
        verbose: whether to show it; warnings are logged all the same.
    """
    if not verbose:
        token = _is_quiet.set(True)
        try:
            yield
        finally:
            _is_quiet.reset(token)
        return
    _visibility.begin()
    try:
        yield
    finally:
        _visibility.end()


def is_drawn() -> bool:
    """Whether bars are drawn: in a terminal that the log shares with them."""
    is_shared = any(isinstance(handler, RichHandler) for handler in log.handlers)
    return has_live_display() and is_logged() and is_shared


def is_logged() -> bool:
    """Whether lines of level INFO are logged for this call."""
    return log.isEnabledFor(logging.INFO) and not _is_quiet.get()


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
            kept = path.read_bytes()[:size]
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
    if path.exists() and not path.is_file():  # a pipe has no end
        raise AGI2Error(f"{path} cannot be read: it is not a file")
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise AGI2Error(f"{path} cannot be read: {error.strerror}") from error
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
            rows = "".join(f"    {key} = {value!r}\n" for key, value in config.items())
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
        with open(note, "rb") as file:
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
        try:
            self._run = wandb.init(
                project="agi2",
                name=config.model_name,
                id=run_id,
                resume="allow",
                dir=folder,
                config=dict(config.items()),
                # The terminal is ours.
                settings=wandb.Settings(console="off", silent=not is_logged()),
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


class TrainingDisplay:
    """A progress bar in a terminal, a line at each logged step elsewhere.

    Args:
        total_steps: where that is known.
    """

    def __init__(self, total_steps: int | None) -> None:
        self._of = f"/{total_steps}" if total_steps else ""
        self._is_live = is_drawn()
        self._bar = BarColumn(bar_width=24)
        self._progress = Progress(
            self._bar,
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            disable=not self._is_live,
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
        # In the order of the line, each with a rank: the highest goes first if there is no room.
        parts = [(0, f"step {step}{self._of}"), (2, f"  loss {loss:.4f}")]
        if val_loss is not None:
            parts.append((3, f"  val {val_loss:.4f}"))
        parts.append((4, f"  {speed:,.0f} tok/s"))
        if share_of_peak is not None:
            parts.append((6, f" ({100 * share_of_peak:.0f} % of peak)"))
        parts += [(5, f"  {memory}"), (1, f"  {human_time(seconds_left)} left")]
        if self._is_live:
            self._bar.bar_width = max(8, min(24, console.width // 6))
            text = _fit(parts, console.width - self._bar.bar_width - 1)
            self._progress.update(self._task, completed=progress, description=text)
        else:
            log.info("%3.0f %%  %s", 100 * progress, "".join(part for _, part in parts))


def _fit(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join as many parts as fit, those of the lowest ranks; the first rank always stays."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(part) for _, part in kept) > width:
        kept.remove(max(kept))
    return "".join(part for _, part in kept)


@contextlib.contextmanager
def busy(what: str, everywhere: bool = False) -> Iterator[None]:
    """Say in a terminal what is being done, with a clock, for as long as it takes.

    Args:
        what: such as `reading the text`.
        everywhere: log it once where no bar can be drawn, too.
    """
    if not is_drawn():
        if everywhere or console.is_terminal:
            log.info("%s", what)
        yield
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(printable(what), total=None)
        yield
