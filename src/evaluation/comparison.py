"""Comparison of runs: what differs in their configurations, results, and validation curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..config_checks import UNBOUNDED_EPOCHS
from ..errors import mask_secrets
from ..utils import human_time
from .charts import Point
from .report import tokens_per_step
from .run_log import History, RunRecord, RunSummary

EMPTY_CELL = "–"
Rows = list[list[str]]
# Keys not compared: the location of a run, which the column names already show.
_LOCATION_KEYS = ("model_name", "output_dir", "resume")
_MAX_ROWS = 20


def state_of(run: RunSummary) -> str:
    """Return the state of a run: `broken`, its phase, `no log`, `finished` or `unfinished`."""
    if run.problem:
        return "broken"
    if run.phase is not None:
        return run.phase
    if not run.has_log and not run.checkpoints:  # such as an imported model
        return "no log"
    return "finished" if run.is_finished else "unfinished"


def format_count(number: float | None) -> str:
    """Return a whole number as text."""
    return EMPTY_CELL if number is None else f"{number:,.0f}"


def format_number(number: float | None, digits: int = 4) -> str:
    """Return a number as text, with so many decimal places."""
    return EMPTY_CELL if number is None or not math.isfinite(number) else f"{number:.{digits}f}"


def format_best(history: History) -> tuple[str, str]:
    """Return the formatted val loss and bits per byte of the best validation."""
    best = history.best
    return (
        (EMPTY_CELL, EMPTY_CELL)
        if best is None
        else (format_number(best.loss), format_number(best.bits_per_byte, 3))
    )


def differences(runs: Sequence[RunRecord]) -> Rows:
    """Return a row for each configuration key that differs: the key and each run's value."""
    rows = []
    for key in runs[0].config:
        values = [mask_secrets(run.config[key]) for run in runs]
        if key not in _LOCATION_KEYS and any(value != values[0] for value in values):
            rows.append([key, *(_format_value(key, value) for value in values)])
    return rows


def _format_value(key: str, value: Any) -> str:
    is_set = value is not None and not (key == "epochs" and value >= UNBOUNDED_EPOCHS)
    return str(value) if is_set else "not set"


def results(runs: Sequence[RunRecord]) -> Rows:
    """Return rows of parameters, steps, tokens, time, tok/s and losses of each run."""
    histories = [run.history for run in runs]
    rows = {
        "parameters": [format_count(each.start.get("parameters")) for each in histories],
        "steps": [format_count(each.steps) for each in histories],
        "tokens": [format_count(_tokens(each)) for each in histories],
        "time": [
            EMPTY_CELL if seconds is None else human_time(seconds)
            for seconds in (each.last("seconds") for each in histories)
        ],
        "tokens/s": [format_count(each.last("tokens_per_second")) for each in histories],
        "best val loss": [format_best(each)[0] for each in histories],
        "best bits per byte": [format_best(each)[1] for each in histories],
        "last bits per byte": [
            format_number(each.last("val_bits_per_byte"), 3) for each in histories
        ],
    }
    return [[name, *cells] for name, cells in rows.items()]


def _tokens(history: History) -> float | None:
    """Return the tokens that a run was trained on; `None` if they were not logged."""
    size = tokens_per_step(history)
    if size is None:
        return history.last("tokens")
    return round(history.steps * size)


def aligned_curves(runs: Sequence[RunRecord]) -> tuple[str, Rows]:
    """Return validation bits per byte of all runs, aligned on a common x-axis.

    The x-values are those of the run with the fewest validations, within the range that all runs
    cover. Other runs contribute their most recent validation up to x, without interpolation.

    Returns:
        The unit of x (`step` if all runs have the same tokens per step, else `tokens`), and rows
        of x and each run's value.
    """
    unit = _unit(runs)
    curves = [rescale_x(run, run.history.curve("val_bits_per_byte"), unit) for run in runs]
    if not all(curves):
        return unit, []
    start = max(curve[0][0] for curve in curves)
    end = min(curve[-1][0] for curve in curves)
    positions = [x for x, _ in min(curves, key=len) if start <= x <= end]
    positions = positions[:: math.ceil(len(positions) / _MAX_ROWS) or 1]
    rows = []
    for position in positions:
        values = [[y for x, y in curve if x <= position][-1] for curve in curves]
        rows.append([format_count(position), *(format_number(value, 3) for value in values)])
    return unit, rows


def _unit(runs: Sequence[RunRecord]) -> str:
    sizes = {tokens_per_step(run.history) for run in runs}
    return "step" if len(sizes) == 1 or None in sizes else "tokens"


def rescale_x(run: RunRecord, curve: list[Point], unit: str) -> list[Point]:
    """Return a curve with x in `unit`: steps, or tokens."""
    size = (tokens_per_step(run.history) if unit == "tokens" else None) or 1
    return [(step * size, value) for step, value in curve]
