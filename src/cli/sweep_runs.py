"""`Sweep`: trains recipes one after the other, each in a process of its own, and keeps the best."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from ..command_line import command_line
from ..config import Config
from ..config_loader import save_config
from ..console import print_line
from ..data.documents import SOURCE_KEYS, ReadOptions
from ..data.sources import check_rereadable
from ..errors import AGI2Error, mask_secrets
from ..formats.run_dir import CHECKPOINTS, WEIGHTS, check_output, list_checkpoints
from ..train.folder_lock import FolderLock, claim_folder
from ..train.sweep_space import TOKENIZER_KEYS, Recipe
from ..utils import (
    human_bytes,
    human_time,
    json_line,
    log,
    parse_json,
    read_bytes,
    read_json_object,
    write_text,
)
from .child_process import python_command
from .sweep_plan import SweepOptions, SweepPlan
from .table import print_table
from .train_text import check_one_process

PLAN, ROWS, BEST = "sweep.json", "sweep.jsonl", "best.toml"
_BITS = "bits_per_byte"
_EMPTY_CELL = "-"
_VAL_SOURCES = ("val_sources", "val_conversations", "val_preferences")
# How much longer the command that is proposed at the end trains.
_LONGER = 10
Row = dict[str, Any]
"""The result of a run; without figures if it failed."""
_NO_RESULT: Row = {
    **dict.fromkeys(("status", "reason", "bits_per_byte", "val_loss", "parameters", "steps")),
    **dict.fromkeys(("tokens", "seconds", "peak_memory")),
}


class Sweep:
    """A sweep: its folder NAME-sweep, its plan and the rows of the runs that are done.

    Args:
        config: the configuration.
        arguments: of the command that continues it: the file, and overrides.

    Raises:
        AGI2Error: if the runs could not be compared, or their folder cannot be created.
    """

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        train = command_line("train")
        check_one_process(f"train it with {train}; a sweep is for one process")
        if not (config.val_fraction or any(config[key] for key in _VAL_SOURCES)):
            raise AGI2Error(
                "a sweep compares runs on held-out text: set val_fraction or val_sources"
            )
        sources = [source for key in SOURCE_KEYS for source in config[key]]
        check_rereadable(sources, "each run of a sweep reads it", ReadOptions.from_config(config))
        name = f"{config.model_name}-sweep"
        check_output({**config, "model_name": name})
        self.config, self._arguments = config, arguments
        self.folder = Path(config.output_dir) / name
        self.lock = FolderLock(self.folder)
        self.rows: list[Row] = []

    def begin(self, options: SweepOptions, is_resumed: bool) -> None:
        """Make the plan, or read that of the sweep to continue; move the folder of another aside.

        Raises:
            AGI2Error: if an option is not valid, or another than that of the sweep to continue.
        """
        file = self.folder / PLAN
        is_resumed = is_resumed and file.is_file()
        if is_resumed:
            self.plan = SweepPlan.resume(read_json_object(file), self.config, options, file)
            self.rows = _read_rows(self.folder / ROWS)
        else:
            self.plan = SweepPlan.make(self.config, options)
        self.recipes = self.plan.recipes(self.config)
        if not is_resumed:
            claim_folder(self.folder, self.lock)
        write_text(file, json_line(self.plan.to_json()) + "\n")
        if len(self.recipes) < self.plan.runs:
            log.info("there are only %d recipes to try", len(self.recipes))

    def train_all(self, keep_all: bool, prints_json: bool, quiet: bool, verbose: bool) -> None:
        """Train the recipes that are not done.

        Args:
            keep_all: whether to keep the weights of all runs.
            prints_json: whether to print a line of JSON for each run.
            quiet: log warnings only.
            verbose: log debug messages, too.

        Raises:
            KeyboardInterrupt: if it is interrupted, with what is done and how to continue.
        """
        done = {row["run"] for row in self.rows}
        missing = [number for number in range(1, len(self.recipes) + 1) if number not in done]
        if missing:
            log.info("%s", self.plan.describe(len(missing)))
        try:
            for number in missing:
                recipe = self.recipes[number - 1]
                log.info("run %d of %d: %s", number, len(self.recipes), _describe(recipe))
                row = {"run": number, "name": _name(number), "keys": recipe, **_NO_RESULT}
                self._add(row | self._train(number, recipe, quiet, verbose), keep_all)
                if prints_json:
                    print_line(json_line(self.rows[-1]))
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(self._describe_interrupt()) from interrupt

    def _add(self, row: Row, keep_all: bool) -> None:
        """Save the row of a run that is done, and the best recipe; delete the others' weights."""
        self.rows.append(row)
        write_text(self.folder / ROWS, "".join(f"{json_line(each)}\n" for each in self.rows))
        if row["status"] == "failed":
            log.warning("%s failed: %s", row["name"], row["reason"])
        best = self.best
        if best is row:
            self._write_best(row)
        for each in self.rows:
            if each is not best and not keep_all:
                folder = self.folder / each["name"]
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                (folder / WEIGHTS).unlink(missing_ok=True)

    @property
    def best(self) -> Row | None:
        """The run with the lowest loss; `None` if none has any."""
        ranked = [row for row in self.rows if self._score(row) is not None]
        return min(ranked, key=self._score, default=None)

    def _score(self, row: Row) -> Any:
        """Return what runs are compared by, the lower, the better; `None` if there is nothing."""
        return row[self._unit]

    @property
    def _unit(self) -> str:
        """Bits per byte; if these are undefined, the loss, which another vocabulary changes."""
        lacks_bits = any(
            row["val_loss"] is not None and row["bits_per_byte"] is None for row in self.rows
        )
        return "val_loss" if lacks_bits and not TOKENIZER_KEYS & self.plan.space.keys() else _BITS

    def _config_of(self, recipe: Recipe, **changes: Any) -> Config:
        return self.config.changed(**{**recipe, **self.plan.limit, "resume": None, **changes})

    def _train(self, number: int, recipe: Recipe, quiet: bool, verbose: bool) -> Row:
        """Train a recipe in a new process, and return its result."""
        name = _name(number)
        if not list_checkpoints(self.folder / name):
            shutil.rmtree(self.folder / name, ignore_errors=True)  # of a run that had just begun
        # Samples take time, and old checkpoints take space, which other runs need.
        config = self._config_of(
            recipe,
            model_name=name,
            output_dir=str(self.folder),
            resume="auto",
            sample_tokens=0,
            keep_checkpoints=1,
        )
        file, result = (self.folder / f".{name}.{kind}" for kind in ("toml", "json"))
        result.unlink(missing_ok=True)
        save_config(config, file)
        try:
            status = run_process(str(file), str(result), quiet, verbose)
            if result.exists():
                return read_json_object(result)
            return {"status": "failed", "reason": _describe_exit(status)}
        finally:
            for each in (file, result):
                each.unlink(missing_ok=True)

    def _write_best(self, row: Row) -> None:
        """Write the configuration of the best recipe, as the run was trained."""
        config = self._config_of(row["keys"], model_name=f"{self.config.model_name}-best")
        keys = config.chosen()
        others = {key: value for key, value in keys.items() if key not in row["keys"]}
        tried = {key: config[key] for key in row["keys"] if config[key] is not None}
        text = (
            f"# The best of the recipes in {ROWS}: {row['name']}, {self._describe_score(row)}.\n"
            f"{tomli_w.dumps(others)}\n# Tried.\n{tomli_w.dumps(tried)}"
        )
        write_text(self.folder / BEST, text, private=mask_secrets(keys) != keys)

    def _describe_score(self, row: Row) -> str:
        return f"{self._score(row):.4f} {self._unit.replace('_', ' ')}"

    def _describe_interrupt(self) -> str:
        best, command = self.best, shlex.join(["agi2", "sweep", *self._arguments, "--resume"])
        found = "" if best is None else f", the best {best['name']}: {self._describe_score(best)}"
        return (
            f"interrupted: {len(self.rows)} of {len(self.recipes)} runs are done{found}; continue "
            f"with: {command}"
        )

    def report(self, prints_json: bool) -> None:
        """Print a table of the runs, the best first; log the best recipe and what to do with it.

        Args:
            prints_json: whether lines of JSON are printed instead.

        Raises:
            AGI2Error: if no run has a result.
        """
        best = self.best
        if not prints_json:
            self._print_table()
        if best is None:
            raise AGI2Error(f"no run of the sweep has a loss: {self.folder / ROWS} says why")
        name, score = best["name"], self._describe_score(best)
        log.info("best: %s, %s: %s", name, score, _describe(best["keys"]))
        own = self.rows[0]
        if own is not best and self._score(own) is not None:
            log.info("the file's own recipe: %s, %s", own["name"], self._describe_score(own))
        log.info("its model: %s", self.folder / name)
        limit = "max_steps" if self.plan.steps else "max_minutes"
        best_file, longer = shlex.quote(str(self.folder / BEST)), _LONGER * self.plan.limit[limit]
        command = command_line(f"train {best_file} --set {limit}={longer:g}")
        log.info("train longer with its recipe: %s", command)

    def _print_table(self) -> None:
        keys = list(self.plan.space)
        unit = "bits/byte" if self._unit == _BITS else "val loss"
        rows = [
            [
                row["name"],
                *(_cell(row["keys"].get(key)) for key in keys),
                *(_EMPTY_CELL if (score := self._score(row)) is None else f"{score:.4f}",),
                *(_count(row["steps"]), _count(row["tokens"])),
                _EMPTY_CELL if row["seconds"] is None else human_time(row["seconds"]),
                _EMPTY_CELL if row["peak_memory"] is None else human_bytes(row["peak_memory"]),
                row["status"] + (f": {row['reason'].split(':')[0]}" if row["reason"] else ""),
            ]
            for row in sorted(self.rows, key=self._rank)
        ]
        head = ["run", *keys, unit, "steps", "tokens", "time", "memory", "end"]
        print_table(head, rows, ["memory", "time", "tokens", "steps"])

    def _rank(self, row: Row) -> tuple[bool, float]:
        """Return the sort key of a row: the runs without a loss come last."""
        score = self._score(row)
        return score is None, score or 0.0


def _name(number: int) -> str:
    return f"run-{number:02d}"


def _describe(recipe: Recipe) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in recipe.items())


def _cell(value: Any) -> str:
    if value is None:
        return _EMPTY_CELL
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: int | None) -> str:
    return _EMPTY_CELL if value is None else f"{value:,}"


def _read_rows(file: Path) -> list[Row]:
    """Return the rows of a sweep that is continued.

    Raises:
        AGI2Error: if the file is damaged.
    """
    if not file.exists():
        return []
    rows = [parse_json(line, str(file)) for line in read_bytes(file).splitlines()]
    if not all(
        isinstance(row, dict) and {"run", "name", "keys", *_NO_RESULT} <= row.keys() for row in rows
    ):
        raise AGI2Error(f"{file} is damaged: begin anew, without --resume")
    return rows


def run_process(config_file: str, result_file: str, quiet: bool, verbose: bool) -> int:
    """Train a recipe in a new process, and return its exit status.

    Raises:
        KeyboardInterrupt: if it is interrupted; the process has saved a checkpoint.
    """
    call = f"train_recipe({config_file!r}, {result_file!r}, {quiet!r}, {verbose!r})"
    # In a session of its own, so that Ctrl-C in a terminal does not reach it twice.
    process = subprocess.Popen(
        python_command(f"{__package__}.sweep_worker", call), stdout=2, start_new_session=True
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        _stop(process)
        raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let a process save a checkpoint and end; interrupted again, it ends at once."""
    while True:
        process.terminate()
        try:
            process.wait()
        except KeyboardInterrupt:
            continue
        return


def _describe_exit(status: int) -> str:
    """Return why a process ended without a result."""
    if status == -getattr(signal, "SIGKILL", 0):
        return "killed, as by a system that is out of memory"
    return f"its process ended with the status {status}"
